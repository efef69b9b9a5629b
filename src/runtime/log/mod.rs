//! A spark's log: what detached commands wrote, as much of it as is kept.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use bounded::{CHUNK, DIGITS, Files};

use crate::sys::flock::{Mode, lock_file};

pub mod bounded;
mod keeper;
mod reader;

pub(in crate::runtime) use keeper::Keeper;
pub use keeper::{settle, wait_end};
pub use reader::Reader;

/// How long the log's lock is waited for: a keeper that was frozen may have it, and what is read or written without it
/// is at worst out of order.
const PATIENCE: Duration = Duration::from_millis(500);

/// The files of a log, opened to be written.
#[derive(Debug)]
pub struct Log {
    newer: File,
    older: File,
    start: File,
    buffer: Vec<u8>,
}

impl Log {
    /// Opens the files of the log at `path`, and makes them if they are not there.
    pub fn open(path: &Path) -> io::Result<Log> {
        let mut options = OpenOptions::new();
        options.read(true).create(true).mode(0o600);
        let newer = options.clone().append(true).open(path)?;
        options.write(true);
        let (older, start) = (options.open(older(path))?, options.open(start(path))?);
        Ok(Log { newer, older, start, buffer: Vec::new() })
    }

    /// Writes a few words of ours to the end of the log.
    pub fn append(mut self, text: &str) -> io::Result<()> {
        lock_file(&self.newer, Mode::Exclusive, PATIENCE)?;
        bounded::make_room(&mut self, text.len() as u64);
        self.newer.write_all(text.as_bytes())
    }
}

impl Files for Log {
    fn length(&mut self) -> u64 {
        self.newer.metadata().map_or(0, |meta| meta.len())
    }

    fn read(&mut self, at: u64) -> usize {
        self.buffer.resize(CHUNK, 0);
        self.newer.read_at(&mut self.buffer, at).unwrap_or(0)
    }

    fn write_older(&mut self, at: u64, bytes: usize) -> bool {
        self.older.write_all_at(&self.buffer[..bytes], at).is_ok()
    }

    fn empty_older(&mut self) {
        let _ = self.older.set_len(0);
    }

    fn empty(&mut self) {
        let _ = self.newer.set_len(0);
    }

    fn advance(&mut self, by: u64) {
        let start = read_start(&self.start).wrapping_add(by);
        let _ = self.start.write_all_at(&bounded::format(start), 0);
    }
}

fn read_start(file: &File) -> u64 {
    let mut digits = [0; DIGITS];
    file.read_exact_at(&mut digits, 0).map_or(0, |()| bounded::parse(&digits))
}

/// The older of the two files.
fn older(path: &Path) -> std::path::PathBuf {
    path.with_extension("1")
}

/// The file that says at which offset the newer file begins.
fn start(path: &Path) -> std::path::PathBuf {
    path.with_extension("start")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use bounded::MOST;

    /// All that a reader finds, and how many bytes were gone before.
    fn read(path: &Path, tail: Option<u64>) -> (Vec<u8>, u64) {
        let (mut reader, mut text) = (Reader::new(path, tail), Vec::new());
        keep(&mut reader, &mut text);
        (text, reader.take_lost())
    }

    fn keep(reader: &mut Reader, text: &mut Vec<u8>) {
        let mut keep = |chunk: &[u8]| {
            text.extend_from_slice(chunk);
            Ok(())
        };
        reader.pass_on(&mut keep, |e| e).unwrap();
    }

    #[test]
    fn a_log_keeps_its_last_bytes_within_the_bound_and_says_how_many_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let line = |n: u64| format!("{n:0>1000}\n");
        let lines = 5 * MOST / 1001;
        for n in 0..lines {
            Log::open(&path).unwrap().append(&line(n)).unwrap();
            if n % 1000 == 0 {
                let sizes = [path.clone(), older(&path), start(&path)].map(|p| p.metadata().unwrap().size());
                assert!(sizes.iter().sum::<u64>() < 32 << 20, "{sizes:?}");
            }
        }
        let (text, lost) = read(&path, None);
        assert_eq!(text.len() as u64 + lost, lines * 1001);
        assert!(text.len() as u64 > MOST, "at least the newer file and some of the older one");
        assert!(text.ends_with(line(lines - 1).as_bytes()));
        let first = lost / 1001;
        assert!(text.starts_with(line(first).as_bytes()), "no byte between the two files is gone");
        assert_eq!(read(&path, Some(2)).0, [line(lines - 2), line(lines - 1)].concat().into_bytes());
    }

    #[test]
    fn the_end_of_a_huge_log_of_an_older_version_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = File::create(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"\nlast words\n", (1 << 40) - 12).unwrap();
        assert_eq!(read(&path, Some(1)).0, b"last words\n");
        assert_eq!(read(&path, None).0.len() as u64, 2 * MOST);
        Log::open(&path).unwrap().append("new\n").unwrap();
        assert_eq!(path.metadata().unwrap().len(), 4);
        assert_eq!(older(&path).metadata().unwrap().len(), MOST);
        assert_eq!(read(&path, Some(2)).0, b"last words\nnew\n");
    }

    #[test]
    fn a_follower_loses_no_byte_when_the_files_change_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let block = |n: u8| String::from_utf8(vec![b'a' + n % 26; 1 << 20]).unwrap();
        let (mut reader, mut seen, mut written) = (Reader::new(&path, None), Vec::new(), Vec::new());
        for n in 0..50 {
            Log::open(&path).unwrap().append(&block(n)).unwrap();
            written.extend_from_slice(block(n).as_bytes());
            if n % 7 == 0 {
                keep(&mut reader, &mut seen);
                assert!(seen == written, "{} of {} bytes", seen.len(), written.len());
            }
        }
        assert_eq!(reader.take_lost(), 0);
        for n in 0..40 {
            Log::open(&path).unwrap().append(&block(n)).unwrap();
        }
        let before = seen.len();
        keep(&mut reader, &mut seen);
        assert_eq!(reader.take_lost() + (seen.len() - before) as u64, 40 << 20, "what it has missed is told");
    }

    #[test]
    fn numbers_are_read_as_they_were_written() {
        for number in [0, 7, u64::MAX] {
            assert_eq!(bounded::parse(&bounded::format(number)), number);
        }
        assert_eq!(bounded::parse(&[0; DIGITS]), 0);
    }
}
