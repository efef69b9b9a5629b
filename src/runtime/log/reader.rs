//! Reading a log while others write to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::bounded::{CHUNK, MOST};
use super::{PATIENCE, older, read_start, start};
use crate::sys::flock::{Mode, lock_file};

/// Reads a log from where it was last left, in pieces, whatever its size.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    /// Bytes since the log began.
    at: u64,
    /// At the first read: how many lines from the end to begin with.
    tail: Option<u64>,
    lost: u64,
}

/// The files at one moment. They are locked while this is there, so nobody waits meanwhile.
struct View {
    newer: File,
    older: Option<File>,
    /// Offsets: of the first byte that is kept, of the newer file, and of its end.
    first: u64,
    start: u64,
    end: u64,
}

impl Reader {
    /// Begins with the last `tail` lines, or with all.
    pub fn new(path: &Path, tail: Option<u64>) -> Reader {
        Reader { path: path.to_owned(), at: 0, tail, lost: 0 }
    }

    /// Passes on what is new, up to what was there when this was called: somebody may write faster than it is read. No file
    /// is an empty one.
    pub fn pass_on<E>(
        &mut self,
        to: &mut dyn FnMut(&[u8]) -> Result<(), E>,
        failed: impl Fn(io::Error) -> E,
    ) -> Result<(), E> {
        let mut buffer = vec![0; CHUNK];
        let mut end = None;
        while let n @ 1.. = self.read(&mut buffer, &mut end).map_err(&failed)? {
            to(&buffer[..n])?;
        }
        Ok(())
    }

    /// Reads on, up to the end that the log had at the first call. 0 is the end.
    fn read(&mut self, buffer: &mut [u8], end: &mut Option<u64>) -> io::Result<usize> {
        let Some(view) = View::of(&self.path)? else { return Ok(0) };
        if let Some(lines) = self.tail.take() {
            self.at = view.last_lines(lines)?;
        } else if self.at > view.end {
            // Another log: that of another spark with the name.
            self.at = view.first;
        }
        if self.at < view.first {
            self.lost += view.first - self.at;
            self.at = view.first;
        }
        let end = *end.get_or_insert(view.end);
        let most = end.saturating_sub(self.at).min(buffer.len() as u64) as usize;
        let n = view.read_at(&mut buffer[..most], self.at)?;
        self.at += n as u64;
        Ok(n)
    }

    /// The bytes that were gone before they were read, since this was last asked.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}

/// The offset at which a log ends.
pub(super) fn end_of(path: &Path) -> io::Result<u64> {
    Ok(View::of(path)?.map_or(0, |view| view.end))
}

impl View {
    fn of(path: &Path) -> io::Result<Option<View>> {
        let open = |path: &Path| match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        };
        let Some(newer) = open(path)? else { return Ok(None) };
        lock_file(&newer, Mode::Shared, PATIENCE)?;
        let older = open(&older(path))?;
        let start = open(&start(path))?.map_or(0, |file| read_start(&file));
        let end = start.saturating_add(newer.metadata()?.len());
        let before = older.as_ref().map_or(Ok(0), |file| file.metadata().map(|meta| meta.len()))?;
        // A log of an older version may be longer.
        let first = start.saturating_sub(before).max(end.saturating_sub(2 * MOST));
        Ok(Some(View { newer, older, first, start, end }))
    }

    /// Reads from one of the files.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        match &self.older {
            Some(older) if at < self.start => {
                let most = (self.start - at).min(buffer.len() as u64) as usize;
                let length = older.metadata()?.len();
                older.read_at(&mut buffer[..most], (length + at).saturating_sub(self.start))
            }
            _ => self.newer.read_at(buffer, at.saturating_sub(self.start)),
        }
    }

    /// Where the last `lines` lines begin, looking from the end.
    fn last_lines(&self, lines: u64) -> io::Result<u64> {
        if lines == 0 {
            return Ok(self.end);
        }
        // The newline that ends the last line does not begin another.
        let (mut end, mut found) = (self.end.saturating_sub(1).max(self.first), 0);
        let mut block = vec![0; CHUNK];
        while end > self.first {
            let begin = end.saturating_sub(CHUNK as u64).max(self.first);
            let mut filled = 0;
            while filled < (end - begin) as usize {
                let n = self.read_at(&mut block[filled..(end - begin) as usize], begin + filled as u64)?;
                if n == 0 {
                    break;
                }
                filled += n;
            }
            for at in (0..filled).rev().filter(|at| block[*at] == b'\n') {
                found += 1;
                if found == lines {
                    return Ok(begin + at as u64 + 1);
                }
            }
            end = begin;
        }
        Ok(self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut Reader) -> String {
        let mut text = Vec::new();
        let mut keep = |chunk: &[u8]| {
            text.extend_from_slice(chunk);
            Ok(())
        };
        reader.pass_on(&mut keep, |e| e).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_log_is_read_from_its_last_lines_and_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut reader = Reader::new(&path, None);
        assert_eq!(read(&mut reader), "");
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        let tail = |n| read(&mut Reader::new(&path, Some(n)));
        assert_eq!(
            (tail(2), tail(0), tail(9)),
            ("two\nthree\n".into(), "".into(), "one\ntwo\nthree\n".into())
        );
        assert_eq!(read(&mut reader), "one\ntwo\nthree\n");
        assert_eq!(read(&mut reader), "");
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(read(&mut reader), "new\n");
        std::fs::write(&path, "a\nb").unwrap();
        assert_eq!(read(&mut Reader::new(&path, Some(1))), "b");
    }

    #[test]
    fn lines_are_counted_across_blocks_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(older(&path), format!("first\n{}", "x".repeat(100_000))).unwrap();
        std::fs::write(start(&path), super::super::bounded::format(200_006)).unwrap();
        std::fs::write(&path, format!("{}\nlast\n", "x".repeat(100_000))).unwrap();
        assert_eq!(read(&mut Reader::new(&path, Some(2))), format!("{}\nlast\n", "x".repeat(200_000)));
        let mut all = Reader::new(&path, None);
        assert_eq!(read(&mut all).len(), 200_012);
        assert_eq!(all.take_lost(), 100_000);
    }
}
