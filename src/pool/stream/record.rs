//! The records in which the process that parses a stream tells the process that carries it out what is in it.
//!
//! All records have the same fields: a kind (one byte), six numbers (eight bytes each), the lengths of three texts (four bytes
//! each), and the texts. Numbers are little-endian. Fields that a kind has no use for are 0 and empty.
//!
//! The reader trusts nothing here, since the stream may have taken over the process that writes: it holds every field to what
//! its type allows, and every path to what leads down.

use std::io::{self, Read, Write};

use super::attributes::{is_attribute_name, is_link_target, is_path};
use super::{Command, MAX_COMMAND, Refused, Time, Uuid};

const NUMBERS: usize = 6;
const TEXTS: usize = 3;
/// What stands before the texts.
const HEAD: usize = 1 + 8 * NUMBERS + 4 * TEXTS;

/// A record.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Record<T = Vec<u8>> {
    /// For a command, its number in a send stream. From 64 on it is no command.
    pub kind: u8,
    pub numbers: [u64; NUMBERS],
    pub texts: [T; TEXTS],
}

impl Record<&[u8]> {
    /// Writes the record.
    ///
    /// # Errors
    /// Those of `to`, and `InvalidInput` for a text that is too long to be written.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut head = Vec::with_capacity(HEAD);
        head.push(self.kind);
        for number in self.numbers {
            head.extend(number.to_le_bytes());
        }
        for text in self.texts {
            head.extend(u32::try_from(text.len()).map_err(|_| io::ErrorKind::InvalidInput)?.to_le_bytes());
        }
        to.write_all(&head)?;
        self.texts.iter().try_for_each(|text| to.write_all(text))
    }
}

impl Record {
    /// Reads a record. Its texts have at most `most` bytes together. `None` at the end.
    ///
    /// # Errors
    /// Those of `from`, and `InvalidData` for a record that is longer or is cut off.
    pub fn read(from: &mut impl Read, most: usize) -> io::Result<Option<Record>> {
        let mut kind = [0];
        if from.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let mut head = [0; HEAD - 1];
        from.read_exact(&mut head)?;
        let (numbers, lengths) = head.split_at(8 * NUMBERS);
        let mut record = Record::<Vec<u8>> { kind: kind[0], ..Record::default() };
        for (number, bytes) in record.numbers.iter_mut().zip(numbers.as_chunks().0) {
            *number = u64::from_le_bytes(*bytes);
        }
        let mut left = most;
        for (text, bytes) in record.texts.iter_mut().zip(lengths.as_chunks().0) {
            let length = u32::from_le_bytes(*bytes) as usize;
            left = left.checked_sub(length).ok_or_else(|| io::Error::other("a record is too long"))?;
            *text = vec![0; length];
        }
        record.texts.iter_mut().try_for_each(|text| from.read_exact(text))?;
        Ok(Some(record))
    }

    /// The bytes of the record.
    pub fn length(&self) -> u64 {
        HEAD as u64 + self.texts.iter().map(|text| text.len() as u64).sum::<u64>()
    }
}

/// Most bytes of the texts of a command.
pub const MOST: usize = MAX_COMMAND;

fn halves(uuid: &Uuid) -> [u64; 2] {
    let whole = u128::from_le_bytes(*uuid);
    [whole as u64, (whole >> 64) as u64]
}

/// The record of a command.
pub fn encode(command: &Command) -> Record<&[u8]> {
    use Command as C;
    let (no, none): ([u64; NUMBERS], &[u8]) = ([0; NUMBERS], &[]);
    let (kind, numbers, texts): (u8, [u64; NUMBERS], [&[u8]; TEXTS]) = match command {
        C::Subvol { path, uuid, ctransid } => {
            let [a, b] = halves(uuid);
            (1, [a, b, *ctransid, 0, 0, 0], [path, none, none])
        }
        C::Snapshot { path, uuid, ctransid, clone_uuid, clone_ctransid } => {
            let ([a, b], [c, d]) = (halves(uuid), halves(clone_uuid));
            (2, [a, b, *ctransid, c, d, *clone_ctransid], [path, none, none])
        }
        C::MkFile { path } => (3, no, [path, none, none]),
        C::MkDir { path } => (4, no, [path, none, none]),
        C::MkNod { path, mode, rdev } => (5, [(*mode).into(), *rdev, 0, 0, 0, 0], [path, none, none]),
        C::MkFifo { path } => (6, no, [path, none, none]),
        C::MkSock { path } => (7, no, [path, none, none]),
        C::Symlink { path, link } => (8, no, [path, link, none]),
        C::Rename { path, to } => (9, no, [path, to, none]),
        C::Link { path, link } => (10, no, [path, link, none]),
        C::Unlink { path } => (11, no, [path, none, none]),
        C::RmDir { path } => (12, no, [path, none, none]),
        C::SetXattr { path, name, value } => (13, no, [path, name, value]),
        C::RemoveXattr { path, name } => (14, no, [path, name, none]),
        C::Write { path, offset, data } => (15, [*offset, 0, 0, 0, 0, 0], [path, data, none]),
        C::Clone { path, offset, len, clone_uuid, clone_ctransid, clone_path, clone_offset } => {
            let [a, b] = halves(clone_uuid);
            (16, [*offset, *len, a, b, *clone_ctransid, *clone_offset], [path, clone_path, none])
        }
        C::Truncate { path, size } => (17, [*size, 0, 0, 0, 0, 0], [path, none, none]),
        C::Chmod { path, mode } => (18, [(*mode).into(), 0, 0, 0, 0, 0], [path, none, none]),
        C::Chown { path, uid, gid } => (19, [(*uid).into(), (*gid).into(), 0, 0, 0, 0], [path, none, none]),
        C::Utimes { path, atime, mtime, ctime } => {
            let [a, m, c] = [atime, mtime, ctime].map(|time| (time.0 as u64, u64::from(time.1)));
            (20, [a.0, a.1, m.0, m.1, c.0, c.1], [path, none, none])
        }
        C::End => (21, no, [none; TEXTS]),
        C::UpdateExtent { path, offset, size } => (22, [*offset, *size, 0, 0, 0, 0], [path, none, none]),
    };
    Record { kind, numbers, texts }
}

/// The command of a record.
///
/// # Errors
/// Why it is none that a parser would have let through.
pub fn decode(record: Record) -> Result<Command, Refused> {
    use Command as C;
    let Record { kind, numbers: [n0, n1, n2, n3, n4, n5], texts: [first, second, third] } = record;
    let refuse = |what: &str| Err(Refused::from(format!("a record is none: {what}")));
    let small = |number: u64| u32::try_from(number).map_err(|_| Refused::from("a number is too large"));
    let range = |begin: u64, length: u64| match begin.checked_add(length) {
        Some(end) if end <= i64::MAX as u64 => Ok(begin),
        _ => Err(Refused::from("no file is so long")),
    };
    let time = |seconds: u64, nanos: u64| match nanos {
        0..1_000_000_000 => Ok::<Time, Refused>((seconds as i64, nanos as u32)),
        _ => Err("a time has too many nanoseconds".into()),
    };
    let uuid = |low: u64, high: u64| (u128::from(low) | u128::from(high) << 64).to_le_bytes();
    // Only these may be about the top itself.
    let is_about_top = matches!(kind, 13 | 14 | 18..=21);
    if !is_path(&first) || (first.is_empty() && !is_about_top) {
        return refuse("its path leads elsewhere");
    }
    if matches!(kind, 9 | 10 | 16) && (second.is_empty() || !is_path(&second)) {
        return refuse("its second path leads elsewhere");
    }
    if matches!(kind, 13 | 14) && !is_attribute_name(&second) {
        return refuse("an extended attribute has no proper name");
    }
    let path = first;
    Ok(match kind {
        1 => C::Subvol { path, uuid: uuid(n0, n1), ctransid: n2 },
        2 => C::Snapshot {
            path,
            uuid: uuid(n0, n1),
            ctransid: n2,
            clone_uuid: uuid(n3, n4),
            clone_ctransid: n5,
        },
        3 => C::MkFile { path },
        4 => C::MkDir { path },
        5 => C::MkNod { path, mode: small(n0)?, rdev: n1 },
        6 => C::MkFifo { path },
        7 => C::MkSock { path },
        8 if is_link_target(&second) => C::Symlink { path, link: second },
        9 => C::Rename { path, to: second },
        10 => C::Link { path, link: second },
        11 => C::Unlink { path },
        12 => C::RmDir { path },
        13 => C::SetXattr { path, name: second, value: third },
        14 => C::RemoveXattr { path, name: second },
        15 => C::Write { path, offset: range(n0, second.len() as u64)?, data: second },
        16 => C::Clone {
            path,
            offset: range(n0, n1)?,
            len: n1,
            clone_uuid: uuid(n2, n3),
            clone_ctransid: n4,
            clone_path: second,
            clone_offset: range(n5, n1)?,
        },
        17 => C::Truncate { path, size: range(n0, 0)? },
        18 => C::Chmod { path, mode: small(n0)? & 0o7777 },
        19 => C::Chown { path, uid: small(n0)?, gid: small(n1)? },
        20 => C::Utimes { path, atime: time(n0, n1)?, mtime: time(n2, n3)?, ctime: time(n4, n5)? },
        21 => C::End,
        22 => C::UpdateExtent { path, offset: range(n0, n1)?, size: n1 },
        _ => return refuse("no command is of its kind"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands() -> Vec<Command> {
        use Command as C;
        let (path, uuid): (Vec<u8>, Uuid) = (b"a/b".into(), std::array::from_fn(|i| i as u8));
        vec![
            C::Subvol { path: path.clone(), uuid, ctransid: 7 },
            C::Snapshot { path: path.clone(), uuid, ctransid: 7, clone_uuid: [9; 16], clone_ctransid: 8 },
            C::MkFile { path: path.clone() },
            C::MkDir { path: path.clone() },
            C::MkNod { path: path.clone(), mode: 0o20600, rdev: 3 },
            C::MkFifo { path: path.clone() },
            C::MkSock { path: path.clone() },
            C::Symlink { path: path.clone(), link: b"../../etc".into() },
            C::Rename { path: path.clone(), to: b"c".into() },
            C::Link { path: path.clone(), link: b"c".into() },
            C::Unlink { path: path.clone() },
            C::RmDir { path: path.clone() },
            C::SetXattr { path: Vec::new(), name: b"user.a".into(), value: b"\0x".into() },
            C::RemoveXattr { path: Vec::new(), name: b"user.a".into() },
            C::Write { path: path.clone(), offset: 1 << 40, data: b"hello".into() },
            C::Clone {
                path: path.clone(),
                offset: 1,
                len: 2,
                clone_uuid: uuid,
                clone_ctransid: 3,
                clone_path: b"d".into(),
                clone_offset: 4,
            },
            C::Truncate { path: path.clone(), size: 5 },
            C::Chmod { path: Vec::new(), mode: 0o4755 },
            C::Chown { path: Vec::new(), uid: 1, gid: u32::MAX },
            C::Utimes { path: path.clone(), atime: (-1, 2), mtime: (3, 999_999_999), ctime: (i64::MIN, 0) },
            C::End,
            C::UpdateExtent { path, offset: 1, size: 2 },
        ]
    }

    fn written(record: &Record<&[u8]>) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.write(&mut bytes).unwrap();
        bytes
    }

    fn read(mut bytes: &[u8]) -> io::Result<Option<Record>> {
        Record::read(&mut bytes, MOST)
    }

    #[test]
    fn every_command_arrives_as_it_was() {
        for command in commands() {
            let record = read(&written(&encode(&command))).unwrap().unwrap();
            assert_eq!(decode(record).unwrap(), command);
        }
        assert!(read(b"").unwrap().is_none());
    }

    #[test]
    fn a_record_cut_off_anywhere_or_longer_than_it_may_be_is_an_error() {
        for command in commands() {
            let bytes = written(&encode(&command));
            for length in 1..bytes.len() {
                assert!(read(&bytes[..length]).is_err(), "{command:?}, {length}");
            }
        }
        // No memory is taken for what is too long.
        let mut bytes = written(&encode(&Command::End));
        for length in [u32::MAX, MOST as u32 + 1] {
            bytes[HEAD - 4..HEAD].copy_from_slice(&length.to_le_bytes());
            assert_eq!(read(&bytes).unwrap_err().to_string(), "a record is too long");
        }
    }

    #[test]
    fn what_a_parser_that_was_taken_over_would_write_is_refused() {
        let ok: &[u8] = b"a";
        let long = b"a/".repeat(3000);
        for bad in [&b"/etc"[..], b"..", b"a/../b", b"a//b", b"a/", b"a\0b", &long] {
            for kind in 1..=22 {
                let record = Record { kind, numbers: [0; 6], texts: [bad, ok, ok] };
                assert!(decode(read(&written(&record)).unwrap().unwrap()).is_err(), "{kind} {bad:?}");
            }
            for kind in [9, 10, 16] {
                let record = Record { kind, numbers: [0; 6], texts: [ok, bad, ok] };
                assert!(decode(read(&written(&record)).unwrap().unwrap()).is_err(), "{kind} {bad:?}");
            }
        }
        let most = u64::MAX;
        for (kind, numbers, texts) in [
            (0, [0; 6], [ok, ok, ok]),
            (23, [0; 6], [ok, ok, ok]),
            (255, [0; 6], [ok, ok, ok]),
            // Only what describes may be about the top.
            (3, [0; 6], [b"", ok, ok]),
            (11, [0; 6], [b"", ok, ok]),
            (9, [0; 6], [ok, b"", ok]),
            (8, [0; 6], [ok, b"", ok]),
            (8, [0; 6], [ok, b"a\0", ok]),
            (13, [0; 6], [ok, b"", ok]),
            (14, [0; 6], [ok, b"user.a\0", ok]),
            (5, [most, 0, 0, 0, 0, 0], [ok, ok, ok]),
            (15, [i64::MAX as u64, 0, 0, 0, 0, 0], [ok, ok, ok]),
            (16, [1, most, 0, 0, 0, 0], [ok, ok, ok]),
            (16, [0, 1, 0, 0, 0, most], [ok, ok, ok]),
            (17, [most, 0, 0, 0, 0, 0], [ok, ok, ok]),
            (18, [most, 0, 0, 0, 0, 0], [ok, ok, ok]),
            (19, [0, 1 << 32, 0, 0, 0, 0], [ok, ok, ok]),
            (20, [0, 1_000_000_000, 0, 0, 0, 0], [ok, ok, ok]),
            (22, [most, 1, 0, 0, 0, 0], [ok, ok, ok]),
        ] {
            let record = Record { kind, numbers, texts };
            assert!(decode(read(&written(&record)).unwrap().unwrap()).is_err(), "{record:?}");
        }
    }
}
