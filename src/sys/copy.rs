//! The content of files: exactly what they hold, whatever they say about their size, and whatever happens to them
//! meanwhile.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// The most that is copied between two reports of progress, and between two times that it is written to disk.
const PIECE: u64 = 16 << 20;

/// The least that is copied between two times that it is written to disk. Smaller ones cost more than they save.
const LEAST: u64 = 2 << 20;

/// How long writing to disk may take at a time. A snapshot of the target waits for what is being written, for what has been
/// copied since, and for its own part: three times this is the most that a copy is to delay it.
const WAIT: Duration = Duration::from_millis(50);

/// The most that is read of a file that does not say how long it is. Those of /proc and /sys are small, and one that never
/// ends must not fill the pool.
const ENDLESS: u64 = 64 << 20;

/// Whether what was copied is written to disk while the copy goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// When the kernel likes to, or a later sync asks for it.
    Later,
    /// Whenever there is as much as the disk takes in a short time: so no snapshot of the target waits for long.
    Often,
}

/// Writes what was copied to disk, portion by portion. Their size follows the disk: a portion that a fast disk takes at
/// once keeps a slow or busy one for half a second.
struct Pace {
    flush: Flush,
    portion: u64,
    unflushed: u64,
}

impl Pace {
    fn new(flush: Flush) -> Pace {
        let portion = match flush {
            Flush::Later => PIECE,
            Flush::Often => PIECE / 4,
        };
        Pace { flush, portion, unflushed: 0 }
    }

    /// Counts what was copied, and writes it to disk if it is enough.
    fn copied(&mut self, to: &File, bytes: u64) -> io::Result<()> {
        self.unflushed += bytes;
        if self.flush == Flush::Often && self.unflushed >= self.portion {
            let begun = Instant::now();
            rustix::fs::fdatasync(to)?;
            self.unflushed = 0;
            self.portion = next_portion(self.portion, begun.elapsed());
        }
        Ok(())
    }
}

/// The size of the next portion, after one that took so long to be written.
fn next_portion(portion: u64, took: Duration) -> u64 {
    match took {
        _ if took > WAIT => (portion / 2).max(LEAST),
        _ if took < WAIT / 3 => (portion * 2).min(PIECE),
        _ => portion,
    }
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Bytes that were data.
    pub bytes: u64,
    /// How many of them are to be written to disk still.
    pub unflushed: u64,
}

/// Copies the content of a file into an empty one: by sharing its extents where both are on one filesystem that can, else
/// hole by hole. What is appended meanwhile is not copied, and what is cut off meanwhile is not made up. `progress` hears
/// how far into the file it is.
///
/// # Errors
/// `InvalidData` for what has no end.
pub fn content(from: &File, to: &File, flush: Flush, progress: &mut dyn FnMut(u64)) -> io::Result<Copied> {
    let size = from.metadata()?.len();
    if size == 0 {
        return unsized_content(from, to, ENDLESS).map(|bytes| Copied { bytes, unflushed: bytes });
    }
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(Copied { bytes: size, unflushed: 0 });
    }
    let (mut at, mut end) = (0, 0);
    let (mut copied, mut pace) = (0, Pace::new(flush));
    while at < size {
        let data = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            // Not every filesystem knows holes.
            Err(Errno::INVAL | Errno::NOTSUP) => at,
            Err(e) => return Err(e.into()),
        };
        let hole = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(data)).unwrap_or(size).min(size);
        if data >= hole {
            break;
        }
        at = hole.min(data + pace.portion);
        let (mut reader, mut writer) = (from, to);
        reader.seek(SeekFrom::Start(data))?;
        writer.seek(SeekFrom::Start(data))?;
        let bytes = io::copy(&mut reader.take(at - data), &mut writer)?;
        copied += bytes;
        pace.copied(to, bytes)?;
        if bytes < at - data {
            // It was cut off meanwhile, or is shorter than it says, as files of /sys are.
            cut(from, to, (end, data, bytes))?;
            return Ok(Copied { bytes: copied, unflushed: pace.unflushed });
        }
        end = at;
        if copied > ENDLESS && is_of_proc(from)? {
            return Err(endless());
        }
        progress(at);
    }
    // It ends in a hole, unless it was cut off there meanwhile.
    let size = size.min(from.metadata()?.len());
    if end < size {
        to.set_len(size)?;
    }
    Ok(Copied { bytes: copied, unflushed: pace.unflushed })
}

/// Gives a copy the length of a file that ended early: `bytes` were read at `data`, and what is before it was copied up to
/// `end`.
fn cut(from: &File, to: &File, (end, data, bytes): (u64, u64, u64)) -> io::Result<()> {
    match bytes {
        // In the hole before, then.
        0 if end < data => to.set_len(from.metadata()?.len().clamp(end, data)),
        _ => Ok(()),
    }
}

/// Copies what does not say how long it is, such as the files of /proc.
fn unsized_content(mut from: &File, mut to: &File, most: u64) -> io::Result<u64> {
    let mut first = [0; 4096];
    let n = read(&mut from, &mut first)?;
    // It was empty when it was looked at, and has grown since.
    if n == 0 || from.metadata()?.len() > 0 {
        return Ok(0);
    }
    to.write_all(&first[..n])?;
    let copied = n as u64 + io::copy(&mut from.take(most), &mut to).map_err(blocked)?;
    if copied > most { Err(endless()) } else { Ok(copied) }
}

fn read(from: &mut &File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(blocked),
        }
    }
}

/// What would wait for more, as the log of the kernel does, has no end. Files are opened so that they do not wait.
fn blocked(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::WouldBlock => {
            io::Error::new(io::ErrorKind::InvalidData, "it has no end, and waits for more")
        }
        _ => e,
    }
}

fn endless() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it does not say how long it is, and goes on after 64 MiB")
}

/// Some of its files claim to be as long as all memory could be.
fn is_of_proc(file: &File) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type == libc::PROC_SUPER_MAGIC)
}

/// Copies what comes out of a stream into an empty file, until it ends.
pub fn all(from: &File, mut to: &File, flush: Flush, progress: &mut dyn FnMut(u64)) -> io::Result<Copied> {
    let (mut copied, mut pace) = (0, Pace::new(flush));
    loop {
        let bytes = io::copy(&mut from.take(pace.portion), &mut to)?;
        if bytes == 0 {
            return Ok(Copied { bytes: copied, unflushed: pace.unflushed });
        }
        copied += bytes;
        pace.copied(to, bytes)?;
        progress(copied);
    }
}

/// Writes the content of a file to what is no file, from front to end, up to the size that it has now.
pub fn stream(from: &File, to: &mut impl Write) -> io::Result<u64> {
    let size = from.metadata()?.len();
    let most = if size == 0 { ENDLESS } else { size };
    let copied = io::copy(&mut from.take(most), to).map_err(blocked)?;
    if size == 0 && copied == ENDLESS { Err(endless()) } else { Ok(copied) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::path::Path;

    /// Copies a file of the host into a new one, and returns its content.
    fn copy(from: &Path) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let to = File::create(dir.path().join("copy")).unwrap();
        content(&File::open(from)?, &to, Flush::Often, &mut |_| {})?;
        Ok(std::fs::read(dir.path().join("copy")).unwrap())
    }

    #[test]
    fn what_says_nothing_of_its_size_or_a_wrong_one_is_copied_as_it_reads() {
        for path in ["/proc/version", "/proc/self/maps", "/sys/kernel/mm/transparent_hugepage/enabled"] {
            let path = Path::new(path);
            // Of this process's own memory, no more than the beginning stays the same.
            let expected = std::fs::read(path).unwrap();
            let copied = copy(path).unwrap();
            assert!(!copied.is_empty() && !copied.ends_with(b"\0"), "{path:?}");
            assert_eq!(copied[..16], expected[..16], "{path:?}");
        }
        assert_eq!(copy(Path::new("/proc/version")).unwrap(), std::fs::read("/proc/version").unwrap());
    }

    #[test]
    fn what_has_no_end_is_refused() {
        let to = tempfile::tempfile().unwrap();
        let e = unsized_content(&File::open("/proc/self/pagemap").unwrap(), &to, 1 << 20).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{e}");
    }

    /// Each change is made between two pieces, where it is certain to be in the middle of the copy.
    #[test]
    fn what_grows_is_copied_up_to_its_size_and_what_shrinks_up_to_its_end() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let size = 3 * PIECE + 5;
        for (change, expected) in [(Some(size + 1000), size), (Some(PIECE + 7), PIECE + 7), (Some(0), PIECE)]
        {
            let file =
                File::options().read(true).write(true).create(true).truncate(true).open(&from).unwrap();
            file.write_all_at(&vec![1; size as usize], 0).unwrap();
            let mut change = change;
            let mut changing = |_| {
                if let Some(now) = change.take() {
                    file.set_len(now).unwrap();
                    if now > size {
                        file.write_all_at(&[2; 1000], size).unwrap();
                    }
                }
            };
            let copy = File::create(&to).unwrap();
            let copied = content(&file, &copy, Flush::Later, &mut changing).unwrap();
            assert_eq!((copied.bytes, copy.metadata().unwrap().len()), (expected, expected));
            assert!(std::fs::read(&to).unwrap().iter().all(|b| *b == 1));
        }
    }

    #[test]
    fn holes_stay_holes_and_what_is_cut_off_in_one_ends_there() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&from).unwrap();
        for (cut, expected) in [(None, 3 * PIECE), (Some(PIECE), PIECE), (Some(2 * PIECE + 9), 2 * PIECE + 9)]
        {
            file.set_len(0).unwrap();
            file.set_len(3 * PIECE).unwrap();
            for at in [0, 2 * PIECE] {
                file.write_all_at(b"data", at).unwrap();
            }
            let mut cut = cut;
            let mut cutting = |_| {
                if let Some(now) = cut.take() {
                    file.set_len(now).unwrap();
                }
            };
            let copy = File::create(&to).unwrap();
            content(&file, &copy, Flush::Later, &mut cutting).unwrap();
            let there = copy.metadata().unwrap();
            assert_eq!(there.len(), expected);
            assert!(there.blocks() < 100);
        }
    }

    #[test]
    fn portions_are_as_large_as_what_the_disk_takes_in_time() {
        let slow = |portion| next_portion(portion, WAIT * 2);
        let fast = |portion| next_portion(portion, WAIT / 10);
        assert_eq!((slow(PIECE), slow(LEAST)), (PIECE / 2, LEAST));
        assert_eq!((fast(LEAST), fast(PIECE)), (2 * LEAST, PIECE));
        assert_eq!(next_portion(PIECE / 2, WAIT / 2), PIECE / 2);
        // A disk of 100 MB/s.
        let settled =
            (0..8).fold(PIECE, |portion, _| next_portion(portion, Duration::from_micros(portion / 100)));
        assert_eq!(settled, PIECE / 4);
    }

    #[test]
    fn a_stream_gets_what_the_file_holds() {
        let mut out = Vec::new();
        stream(&File::open("/proc/version").unwrap(), &mut out).unwrap();
        assert_eq!(out, std::fs::read("/proc/version").unwrap());
    }
}
