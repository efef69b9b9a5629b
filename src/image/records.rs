//! The records in which the process that parses a tar archive tells the one that makes the files what is in it.
//!
//! A record is a kind (one byte), a length (four) and that many bytes. Numbers are little-endian. An entry comes first; if it is
//! a file, pieces of its content follow, each with its offset; what no piece has is a hole. The last record is the end.
//!
//! The reader trusts nothing here: whoever writes the records may have been taken over by the archive. It holds each field to
//! what its type allows, and content to what its entry has announced. Names are judged where files are made.

use std::io::{self, BufWriter, Read, Write};

use super::archive::{Entry, Kind, LARGEST};

const ENTRY: u8 = 1;
const CONTENT: u8 = 2;
const END: u8 = 3;

/// Most bytes of an entry: two pax headers, and long names.
const MOST: usize = 4 << 20;
/// Most bytes of content in one record.
pub(super) const PIECE: usize = 256 << 10;
/// An offset before the content.
const OFFSET: usize = 8;
/// Kind and length.
const HEAD: usize = 5;

const KINDS: [Kind; 7] =
    [Kind::File, Kind::Directory, Kind::Symlink, Kind::HardLink, Kind::Fifo, Kind::Device, Kind::Nothing];

fn head(kind: u8, length: usize) -> [u8; HEAD] {
    let [a, b, c, d] = (length as u32).to_le_bytes();
    [kind, a, b, c, d]
}

/// Writes records.
pub(super) struct Writer<W: Write> {
    to: BufWriter<W>,
    /// A record of content: what stands before the content, and the content.
    piece: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W) -> Writer<W> {
        Writer { to: BufWriter::with_capacity(64 << 10, to), piece: vec![0; HEAD + OFFSET + PIECE] }
    }

    /// Writes an entry.
    pub(super) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let mut out = Vec::with_capacity(256);
        let kind = KINDS.iter().position(|kind| *kind == entry.kind).unwrap_or_default();
        out.push(kind as u8);
        out.extend(entry.mode.to_le_bytes());
        for number in [entry.uid, entry.gid, entry.mtime.0 as u64] {
            out.extend(number.to_le_bytes());
        }
        out.extend(entry.mtime.1.to_le_bytes());
        for number in [entry.size, entry.content] {
            out.extend(number.to_le_bytes());
        }
        let mut text = |bytes: &[u8]| {
            out.extend((bytes.len() as u32).to_le_bytes());
            out.extend(bytes);
        };
        text(&entry.name);
        text(&entry.link);
        for (name, value) in &entry.xattrs {
            text(name);
            text(value);
        }
        self.to.write_all(&head(ENTRY, out.len()))?;
        self.to.write_all(&out)
    }

    /// Writes content of the entry before, which `read` gives.
    pub(super) fn content(
        &mut self,
        mut at: u64,
        length: u64,
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        let end = at + length;
        while at < end {
            let want = (end - at).min(PIECE as u64) as usize;
            let (before, content) = self.piece.split_at_mut(HEAD + OFFSET);
            let n = read(&mut content[..want])?;
            if n == 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it ends too early"));
            }
            before[..HEAD].copy_from_slice(&head(CONTENT, OFFSET + n));
            before[HEAD..].copy_from_slice(&at.to_le_bytes());
            self.to.write_all(&self.piece[..HEAD + OFFSET + n])?;
            at += n as u64;
        }
        Ok(())
    }

    /// Writes the end.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.to.write_all(&head(END, 0))?;
        self.to.flush()
    }
}

/// Reads records.
pub(super) struct Records<R> {
    from: R,
    /// The head of the record that comes next.
    next: Option<(u8, usize)>,
    /// Of the entry that was read last: its size, how much of its content is to come, and where the next piece may begin.
    size: u64,
    left: u64,
    at: u64,
    buffer: Vec<u8>,
}

/// No honest process writes what was read.
fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the process that reads it was taken over: {what}"))
}

/// A process that says that all went well has written all records.
fn unfinished(e: io::Error) -> io::Error {
    if e.kind() == io::ErrorKind::UnexpectedEof { damaged("its records have no end") } else { e }
}

impl<R: Read> Records<R> {
    pub(super) fn new(from: R) -> Records<R> {
        Records { from, next: None, size: 0, left: 0, at: 0, buffer: Vec::new() }
    }

    /// Reads what follows the end, which is nothing.
    ///
    /// # Errors
    /// Those of the process that writes, and `InvalidData` if something follows.
    pub(super) fn finish(mut self) -> io::Result<()> {
        match self.from.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(damaged("something follows the end")),
        }
    }

    fn peek(&mut self) -> io::Result<(u8, usize)> {
        if let Some(head) = self.next {
            return Ok(head);
        }
        let mut head = [0; HEAD];
        self.from.read_exact(&mut head).map_err(unfinished)?;
        let [kind, length @ ..] = head;
        let head = (kind, u32::from_le_bytes(length) as usize);
        self.next = Some(head);
        Ok(head)
    }

    fn take(&mut self, length: usize) -> io::Result<()> {
        self.next = None;
        self.buffer.resize(length, 0);
        self.from.read_exact(&mut self.buffer).map_err(unfinished)
    }

    /// The next entry; what was not read of the content of the one before is passed over. `None` at the end.
    ///
    /// # Errors
    /// `InvalidData` for what no honest process writes; those of the process.
    pub(super) fn entry(&mut self) -> io::Result<Option<Entry>> {
        while self.content()?.is_some() {}
        match self.peek()? {
            (END, 0) => Ok(None),
            (ENTRY, length) if length <= MOST => {
                self.take(length)?;
                let entry = parse(&self.buffer).ok_or_else(|| damaged("an entry is none"))?;
                let is_file = entry.kind == Kind::File;
                (self.size, self.at) = (entry.size, 0);
                self.left = if is_file { entry.content } else { 0 };
                Ok(Some(entry))
            }
            _ => Err(damaged("a record is of no kind")),
        }
    }

    /// The next piece of the entry's content: its offset and the bytes. `None` after the last.
    ///
    /// # Errors
    /// As [`Records::entry`].
    pub(super) fn content(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        if self.left == 0 {
            return Ok(None);
        }
        let (CONTENT, length @ OFFSET..) = self.peek()? else {
            return Err(damaged("it left out content"));
        };
        if length > OFFSET + PIECE {
            return Err(damaged("a record is too long"));
        }
        self.take(length)?;
        let (offset, bytes) = self.buffer.split_first_chunk().ok_or_else(|| damaged("a piece is none"))?;
        let (offset, length) = (u64::from_le_bytes(*offset), bytes.len() as u64);
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        let end = end.filter(|_| offset >= self.at && (1..=self.left).contains(&length));
        self.at = end.ok_or_else(|| damaged("a piece lies outside of its file"))?;
        self.left -= length;
        Ok(Some((offset, bytes)))
    }
}

/// The fields of an entry. `None` if they are not all there, not all allowed, or followed by something.
fn parse(bytes: &[u8]) -> Option<Entry> {
    let mut fields = Fields(bytes);
    let kind = *KINDS.get(usize::from(fields.array::<1>()?[0]))?;
    let mode = fields.u32()?;
    let (uid, gid) = (fields.u64()?, fields.u64()?);
    let mtime = (fields.u64()? as i64, fields.u32()?);
    let (size, content) = (fields.u64()?, fields.u64()?);
    let (name, link) = (fields.text()?, fields.text()?);
    let mut xattrs = Vec::new();
    while !fields.0.is_empty() {
        xattrs.push((fields.text()?, fields.text()?));
    }
    let is_allowed = mode <= 0o7777 && mtime.1 < 1_000_000_000 && content <= size && size <= LARGEST;
    is_allowed.then_some(Entry { name, kind, link, mode, uid, gid, mtime, size, content, xattrs })
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<Vec<u8>> {
        let length = self.u32()? as usize;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text.to_vec())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(kind: Kind, size: u64) -> Entry {
        Entry {
            name: b"a/b".to_vec(),
            kind,
            link: b"c".to_vec(),
            mode: 0o4755,
            uid: 7,
            gid: u64::MAX,
            mtime: (-3, 999_999_999),
            size,
            content: size,
            xattrs: vec![(b"user.a".to_vec(), b"x".to_vec()), (b"user.b".to_vec(), Vec::new())],
        }
    }

    fn written(work: impl FnOnce(&mut Writer<&mut Vec<u8>>)) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        work(&mut writer);
        writer.end().unwrap();
        out
    }

    fn file(size: u64, pieces: &[(u64, &[u8])]) -> Vec<u8> {
        written(|writer| {
            let content = pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum();
            writer.entry(&Entry { content, ..entry(Kind::File, size) }).unwrap();
            for &(at, mut bytes) in pieces {
                writer.content(at, bytes.len() as u64, |buffer| bytes.read(buffer)).unwrap();
            }
        })
    }

    /// All content of all entries, or why not.
    fn read(bytes: &[u8]) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let mut passed = Records::new(bytes);
        while passed.entry()?.is_some() {}
        let mut records = Records::new(bytes);
        let mut all = Vec::new();
        while records.entry()?.is_some() {
            while let Some((at, bytes)) = records.content()? {
                all.push((at, bytes.to_vec()));
            }
        }
        records.finish().map(|()| all)
    }

    #[test]
    fn an_entry_arrives_as_it_was_written() {
        for kind in KINDS {
            let bytes = written(|writer| writer.entry(&entry(kind, 0)).unwrap());
            let mut records = Records::new(&bytes[..]);
            let (is, was) = (records.entry().unwrap().unwrap(), entry(kind, 0));
            assert_eq!((is.name, is.link, is.xattrs), (was.name, was.link, was.xattrs));
            assert_eq!((is.kind, is.mode, is.uid, is.gid), (kind, was.mode, was.uid, was.gid));
            assert_eq!((is.mtime, is.size, is.content), (was.mtime, 0, 0));
            assert!(records.entry().unwrap().is_none());
            records.finish().unwrap();
        }
        let content = read(&file(100, &[(3, b"abc"), (90, b"defg")])).unwrap();
        assert_eq!(content, [(3, b"abc".to_vec()), (90, b"defg".to_vec())]);
    }

    #[test]
    fn records_that_are_cut_off_anywhere_are_refused() {
        let whole = file(10, &[(0, b"abc")]);
        for end in 0..whole.len() {
            let why = read(&whole[..end]).unwrap_err();
            assert!(why.to_string().contains("was taken over: its records have no end"), "{end}: {why}");
        }
        assert!(read(&[&whole[..], b"x"].concat()).is_err());
    }

    #[test]
    fn content_is_held_to_what_its_entry_announced() {
        let lies = |size: u64, stored: u64, pieces: &[(u64, &[u8])]| {
            let mut bytes = file(size, pieces);
            // Behind kind, mode, owner, group, time and size.
            let at = HEAD + 1 + 4 + 8 + 8 + 8 + 4 + 8;
            bytes[at..at + 8].copy_from_slice(&stored.to_le_bytes());
            read(&bytes)
        };
        assert!(lies(4, 4, &[(0, b"abcd")]).is_ok());
        for (size, stored, pieces) in [
            (4, 3, &[(0, &b"abcd"[..])][..]),
            (4, 4, &[(0, b"abc")]),
            (4, 4, &[(1, b"abcd")]),
            (4, 4, &[(u64::MAX - 4, b"abcd")]),
            (8, 8, &[(4, b"abcd"), (0, b"abcd")]),
            (8, 8, &[(0, b"abcd"), (3, b"abcd")]),
            (4, 5, &[(0, b"abcd")]),
            (1 << 50, 4, &[(0, b"abcd")]),
        ] {
            let why = lies(size, stored, pieces).unwrap_err();
            assert!(why.to_string().contains("was taken over"), "{size} {stored}: {why}");
        }
        // An offset whose end is beyond all numbers.
        let mut bytes = file(4, &[(0, b"abcd")]);
        let at = bytes.len() - HEAD - 4 - OFFSET;
        bytes[at..at + OFFSET].fill(0xff);
        assert!(read(&bytes).unwrap_err().to_string().contains("was taken over"));
    }

    #[test]
    fn no_length_makes_the_reader_allocate_and_no_field_is_taken_unchecked() {
        for record in [
            &[ENTRY, 0xff, 0xff, 0xff, 0xff][..],
            &[CONTENT, 0xff, 0xff, 0xff, 0xff],
            &[CONTENT, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'x'],
            &[END, 1, 0, 0, 0, 0],
            &[9, 0, 0, 0, 0],
            &[ENTRY, 0, 0, 0, 0],
        ] {
            assert!(read(record).unwrap_err().to_string().contains("was taken over"), "{record:?}");
        }
        let good = written(|writer| writer.entry(&entry(Kind::Directory, 0)).unwrap());
        let (kind, mode, nanos) = (HEAD, HEAD + 1, HEAD + 1 + 4 + 8 + 8 + 8);
        let name = nanos + 4 + 8 + 8;
        for (at, value) in [(kind, 7_u8), (mode + 1, 0xff), (nanos + 3, 0x7f), (name + 3, 0xff), (name, 250)]
        {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(read(&bad).unwrap_err().to_string().contains("was taken over"), "{at}");
        }
    }
}
