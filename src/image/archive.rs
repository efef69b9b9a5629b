//! Reading tar: POSIX ustar and pax, GNU long names and sparse files, and old V7 archives.
//!
//! Headers come from the `tar` crate's types; the walk over them is ours, since what an archive may make us
//! keep in memory has to be bounded, and attributes and names may hold newlines.

use std::collections::HashMap;
use std::io::{self, Read};

const BLOCK: u64 = 512;
/// Most bytes of a pax header, and of all global ones together.
const PAX: u64 = 1 << 20;
/// What the keys of extended attributes begin with.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// Most bytes of a GNU long name.
const LONG_NAME: u64 = 64 << 10;
/// Most pieces of a sparse file.
const PIECES: usize = 1 << 20;
/// Most bytes that a file may seem to have: what ext4 can hold.
pub(super) const LARGEST: u64 = 1 << 44;
/// Most bytes after the end, which padding to a tape's record takes.
const TRAILER: u64 = 16 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Device,
    /// Of the archive itself: a volume's label.
    Nothing,
}

/// One entry. Names are as they stand in the archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: Vec<u8>,
    pub kind: Kind,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: (i64, u32),
    /// How long the file is.
    pub size: u64,
    /// How much of that is content, and no hole.
    pub content: u64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Where the content of an entry belongs: offset and length, in order.
pub(super) type Pieces = Vec<(u64, u64)>;

type Pax = HashMap<Vec<u8>, Vec<u8>>;

/// A tar stream.
pub(super) struct Archive<R> {
    input: R,
    /// Of the entry's data, what was not read yet, and the padding after it.
    left: u64,
    pad: u64,
    global: Pax,
    global_bytes: u64,
    begun: bool,
    /// Whether it may end without saying so. Some that write layers do that, and a digest finds cuts as well.
    pub(super) open_end: bool,
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// What is collected from the headers before an entry's own.
#[derive(Default)]
struct Before {
    pax: Pax,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(input: R) -> Archive<R> {
        Archive { input, left: 0, pad: 0, global: Pax::new(), global_bytes: 0, begun: false, open_end: false }
    }

    /// The next entry; what was not read of the one before is passed over. At the end the stream is read to
    /// its own end, so that its checksum counts.
    pub(super) fn next(&mut self) -> io::Result<Option<(Entry, Pieces)>> {
        let mut before = Before::default();
        for _ in 0..64 {
            self.pass(self.left + self.pad)?;
            (self.left, self.pad) = (0, 0);
            let Some(header) = self.header()? else {
                self.read_out()?;
                return Ok(None);
            };
            let raw = header.as_old();
            let size = number(&raw.size)?;
            match header.entry_type().as_byte() {
                b'x' | b'X' => before.pax = parse_pax(&self.block(size, PAX)?)?,
                b'g' => {
                    self.global_bytes += size;
                    if self.global_bytes > PAX {
                        return Err(bad("its global headers are too large"));
                    }
                    let more = parse_pax(&self.block(size, PAX)?)?;
                    self.global.extend(usable_globals(more)?);
                }
                b'L' => before.name = Some(text(self.block(size, LONG_NAME)?)),
                b'K' => before.link = Some(text(self.block(size, LONG_NAME)?)),
                _ => return self.entry(&header, size, before).map(Some),
            }
        }
        Err(bad("it has headers without end"))
    }

    /// Reads stored bytes of the entry.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(buffer.len() as u64) as usize;
        if most == 0 {
            return Ok(0);
        }
        let n = self.input.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(bad("it ends too early"));
        }
        self.left -= n as u64;
        Ok(n)
    }

    /// Has `pass` go over the entry's data in its own way. It gets the input, and how many bytes are to be passed over.
    pub(super) fn pass_over(&mut self, pass: impl FnOnce(&mut R, u64)) {
        pass(&mut self.input, self.left);
        self.left = 0;
    }

    fn header(&mut self) -> io::Result<Option<tar::Header>> {
        let mut header = tar::Header::new_old();
        let mut read = Vec::with_capacity(BLOCK as usize);
        self.input.by_ref().take(BLOCK).read_to_end(&mut read)?;
        match read.len() as u64 {
            BLOCK => header.as_mut_bytes().copy_from_slice(&read),
            // A layer without entries may have no bytes at all.
            0 if self.open_end => return Ok(None),
            _ if self.begun => return Err(bad("it ends too early")),
            _ => return Err(bad("it is not a tar archive")),
        }
        let bytes = header.as_bytes();
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        if !number(&header.as_old().cksum).is_ok_and(|sum| sums(bytes).contains(&sum)) {
            return Err(bad(if self.begun {
                "a header's checksum is wrong"
            } else {
                "it is not a tar archive"
            }));
        }
        self.begun = true;
        Ok(Some(header))
    }

    fn entry(&mut self, header: &tar::Header, size: u64, before: Before) -> io::Result<(Entry, Pieces)> {
        let raw = header.as_old();
        let pax = before.pax;
        // A record without a value takes back what the global headers say (pax(1)).
        let get = |key: &[u8]| match pax.get(key) {
            Some(value) => Some(value).filter(|value| !value.is_empty()),
            None => self.global.get(key).filter(|value| !value.is_empty()),
        };
        let take_number = |key: &[u8], field: &[u8]| match get(key) {
            Some(value) => decimal(value),
            None => number(field),
        };
        let flag = header.entry_type().as_byte();
        let mut kind = match flag {
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'V' => Kind::Nothing,
            b'M' => return Err(bad("it is one volume of several")),
            // Also what nobody knows: pax(1) has it treated as a regular file.
            _ => Kind::File,
        };
        let name = get(b"path").cloned().or(before.name).unwrap_or_else(|| name_of(header.as_bytes()));
        let link = get(b"linkpath").cloned().or(before.link);
        let link = link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        if kind == Kind::File && name.ends_with(b"/") {
            // The old way to write a directory.
            kind = Kind::Directory;
        }
        // Links, devices, directories and fifos have no content, whatever their size says: some writers put there the
        // size of the file that a link leads to.
        let stored = match flag {
            b'1'..=b'6' => 0,
            _ => get(b"size").map_or(Ok(size), |value| decimal(value))?,
        };
        if stored > LARGEST {
            return Err(bad("a file is larger than any can be"));
        }
        (self.left, self.pad) = (stored, stored.next_multiple_of(BLOCK) - stored);
        let mut entry = Entry {
            kind,
            mode: number(&raw.mode)? as u32 & 0o7777,
            uid: take_number(b"uid", &raw.uid)?,
            gid: take_number(b"gid", &raw.gid)?,
            mtime: match get(b"mtime") {
                Some(value) => time(value)?,
                None => (number(&raw.mtime)? as i64, 0),
            },
            size: stored,
            content: stored,
            xattrs: pax
                .iter()
                .filter_map(|(k, v)| Some((k.strip_prefix(XATTR)?.to_vec(), v.clone())))
                .collect(),
            name,
            link,
        };
        entry.xattrs.sort();
        let pieces = if header.entry_type().is_gnu_sparse() {
            Some(self.sparse_gnu(header, &mut entry)?)
        } else if kind == Kind::File {
            self.sparse_pax(&pax, &mut entry)?
        } else {
            None
        };
        Ok((entry, pieces.unwrap_or_else(|| vec![(0, stored)])))
    }

    /// GNU's own sparse files: pieces in the header, and in blocks after it.
    fn sparse_gnu(&mut self, header: &tar::Header, entry: &mut Entry) -> io::Result<Pieces> {
        let gnu = header.as_gnu().ok_or_else(|| bad("a sparse file has no GNU header"))?;
        let mut pieces = Vec::new();
        let mut add = |blocks: &[tar::GnuSparseHeader]| -> io::Result<()> {
            for block in blocks.iter().filter(|b| !b.is_empty()) {
                pieces.push((number(&block.offset)?, number(&block.numbytes)?));
            }
            if pieces.len() > PIECES { Err(bad("a sparse file has too many pieces")) } else { Ok(()) }
        };
        add(&gnu.sparse)?;
        let (mut more, mut blocks) = (gnu.is_extended(), 0);
        while more {
            blocks += 1;
            if blocks > PIECES {
                return Err(bad("a sparse file has too many pieces"));
            }
            let mut block = tar::GnuExtSparseHeader::new();
            self.input.read_exact(block.as_mut_bytes())?;
            add(&block.sparse)?;
            more = block.is_extended();
        }
        let size = number(&gnu.realsize)?;
        self.check_pieces(&pieces, entry, size)?;
        Ok(pieces)
    }

    /// Sparse files in pax: version 1.0 has the pieces before the content, 0.0 and 0.1 have them in the header. `None` for
    /// another file.
    fn sparse_pax(&mut self, pax: &Pax, entry: &mut Entry) -> io::Result<Option<Pieces>> {
        let get = |key: &str| pax.get(key.as_bytes()).filter(|value| !value.is_empty());
        let numbers = if get("GNU.sparse.major").is_some_and(|v| v == b"1") {
            self.piece_block()?
        } else if let Some(map) = get("GNU.sparse.map") {
            map.split(|b| *b == b',').map(decimal).collect::<io::Result<Vec<_>>>()?
        } else if get("GNU.sparse.size").is_some() {
            // A hole and nothing else.
            Vec::new()
        } else {
            return Ok(None);
        };
        let size = get("GNU.sparse.realsize")
            .or(get("GNU.sparse.size"))
            .ok_or_else(|| bad("a sparse file has no size"))?;
        if let Some(name) = get("GNU.sparse.name") {
            entry.name.clone_from(name);
        }
        if numbers.len() % 2 != 0 {
            return Err(bad("a sparse file's map is odd"));
        }
        let pieces: Pieces = numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect();
        self.check_pieces(&pieces, entry, decimal(size)?)?;
        Ok(Some(pieces))
    }

    /// Checks the pieces of a sparse file against what is stored of it, and sets its size.
    fn check_pieces(&self, pieces: &[(u64, u64)], entry: &mut Entry, size: u64) -> io::Result<()> {
        let (mut at, mut content) = (0u64, 0u64);
        for (offset, length) in pieces {
            let end = offset.checked_add(*length).filter(|end| *end <= size && *offset >= at);
            at = end.ok_or_else(|| bad("a sparse file's pieces overlap or leave it"))?;
            content += length;
        }
        if content > self.left || size > LARGEST {
            return Err(bad("a sparse file has more than is stored, or than any can have"));
        }
        (entry.size, entry.content) = (size, content);
        Ok(())
    }

    /// The map of a 1.0 sparse file: a count and numbers, a line each, filled up to a block.
    fn piece_block(&mut self) -> io::Result<Vec<u64>> {
        let (mut numbers, mut digits, mut count) = (Vec::new(), Vec::new(), None);
        loop {
            let mut block = [0; BLOCK as usize];
            if self.left < BLOCK {
                return Err(bad("a sparse file's map is cut off"));
            }
            self.input.read_exact(&mut block)?;
            self.left -= BLOCK;
            for byte in block {
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err(bad("a sparse file's map is damaged"));
                    }
                    continue;
                }
                let value = decimal(&std::mem::take(&mut digits))?;
                match count {
                    None if value as usize > PIECES => return Err(bad("a sparse file has too many pieces")),
                    None => count = Some(value as usize * 2),
                    Some(_) => numbers.push(value),
                }
                if count == Some(numbers.len()) {
                    return Ok(numbers);
                }
            }
        }
    }

    /// Reads the data of a header that is one.
    fn block(&mut self, size: u64, most: u64) -> io::Result<Vec<u8>> {
        if size > most {
            return Err(bad("a header is too large"));
        }
        let mut data = vec![0; size as usize];
        self.input.read_exact(&mut data)?;
        self.pad = size.next_multiple_of(BLOCK) - size;
        Ok(data)
    }

    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        match io::copy(&mut self.input.by_ref().take(bytes), &mut io::sink())? {
            n if n == bytes => Ok(()),
            _ => Err(bad("it ends too early")),
        }
    }

    fn read_out(&mut self) -> io::Result<()> {
        match io::copy(&mut self.input.by_ref().take(TRAILER + 1), &mut io::sink())? {
            n if n > TRAILER => Err(bad("it goes on after its end")),
            _ => Ok(()),
        }
    }
}

/// The sum of a header's bytes, with blanks in the place of the sum itself. Some old writers added signed bytes.
fn sums(header: &[u8; BLOCK as usize]) -> [u64; 2] {
    let blank = |i: usize, b: u8| if (148..156).contains(&i) { b' ' } else { b };
    let bytes = || header.iter().enumerate().map(|(i, b)| blank(i, *b));
    let signed: i64 = bytes().map(|b| i64::from(b as i8)).sum();
    [bytes().map(u64::from).sum(), signed as u64]
}

/// The name in a header. POSIX puts the beginning of a long one into a field of its own, whatever its version says;
/// GNU has times there.
fn name_of(header: &[u8; BLOCK as usize]) -> Vec<u8> {
    let name = text(header[..100].to_vec());
    let prefix = text(header[345..500].to_vec());
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() { [prefix, name].join(&b'/') } else { name }
}

fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// A number of a header: octal digits, or GNU's binary form. An empty field is 0.
fn number(field: &[u8]) -> io::Result<u64> {
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        let (high, low) = field.split_at(field.len() - field.len().min(8));
        let negative = field[0] == 0xff;
        if !negative && (high.iter().skip(1).any(|b| *b != 0) || high.first().is_some_and(|b| *b != 0x80)) {
            return Err(bad("a number is too large"));
        }
        let mut value = low.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
        if high.is_empty() {
            // The flag is the highest bit of the number itself; sign-extend what remains.
            let bits = field.len() * 8 - 1;
            value &= (1 << bits) - 1;
            if negative {
                value |= !0 << bits;
            }
        }
        return Ok(value);
    }
    let digits = field.iter().copied().skip_while(|b| *b == b' ').take_while(|b| !matches!(b, 0 | b' '));
    digits.into_iter().try_fold(0u64, |n, b| match b {
        b'0'..=b'7' if n >> 61 == 0 => Ok(n << 3 | u64::from(b - b'0')),
        _ => Err(bad("a number is damaged")),
    })
}

fn decimal(text: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or_else(|| bad("a number is damaged"))
}

/// Seconds, which may be negative and have a fraction.
fn time(text: &[u8]) -> io::Result<(i64, u32)> {
    let text = std::str::from_utf8(text).map_err(|_| bad("a time is damaged"))?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| bad("a time is damaged"))?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().map_err(|_| bad("a time is damaged"))?;
    // -1.25 is 750 ms after -2.
    let negative = whole.starts_with('-') && nanos > 0;
    Ok(if negative { (seconds.saturating_sub(1), 1_000_000_000 - nanos) } else { (seconds, nanos) })
}

/// Of a global header, what an entry may need: what is said for all entries is kept, and looked at for each.
fn usable_globals(all: Pax) -> io::Result<Pax> {
    if all.keys().any(|key| key.starts_with(XATTR)) {
        return Err(bad(
            "its global header gives extended attributes to all that follows, as no tool writes it",
        ));
    }
    let used = |key: &[u8]| matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime");
    let usable: Pax = all.into_iter().filter(|(key, _)| used(key)).collect();
    if usable.values().any(|value| value.len() as u64 > LONG_NAME) {
        return Err(bad("its global headers are too large"));
    }
    Ok(usable)
}

/// Records of `LENGTH KEY=VALUE\n`, where the length counts all of it and the value may hold anything.
fn parse_pax(mut data: &[u8]) -> io::Result<Pax> {
    let mut pax = Pax::new();
    while !data.is_empty() && data[0] != 0 {
        let damaged = || bad("a pax header is damaged");
        let space = data.iter().take(20).position(|b| *b == b' ').ok_or_else(damaged)?;
        let length = decimal(&data[..space])? as usize;
        let record = data.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(damaged)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(damaged)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
            // Version 0.0 of sparse files says these again and again: 0.1 has the same numbers in one record.
            let map = pax.entry(b"GNU.sparse.map".to_vec()).or_default();
            if !map.is_empty() {
                map.push(b',');
            }
            map.extend_from_slice(value);
        } else {
            pax.insert(key.to_vec(), value.to_vec());
        }
        data = &data[length..];
    }
    Ok(pax)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   17 \0").unwrap(), 0o17);
        assert_eq!(number(b"\0\0\0\0").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]).unwrap(), 2 << 32);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 1, 0, 0]).unwrap(), 1 << 16);
        assert_eq!(number(&[0xff; 12]).unwrap() as i64, -1);
        assert_eq!(number(&[0xff; 8]).unwrap() as i64, -1);
        assert!(number(&[0x81; 12]).is_err() && number(b"9").is_err() && number(&[b'7'; 100]).is_err());
    }

    #[test]
    fn pax_values_may_hold_newlines_and_lengths_are_checked() {
        let pax = parse_pax(b"9 a=\n\n\n\x01\n6 b=c\n").unwrap();
        assert_eq!(pax[&b"a"[..]], b"\n\n\n\x01");
        for broken in
            [&b"9 a=b\n"[..], b"x a=b\n", b"0 a=b\n", b"3 a=b\n", b"5 ab\n", b"99999999999999999999999 a=b\n"]
        {
            assert!(parse_pax(broken).is_err(), "{}", broken.escape_ascii());
        }
    }

    #[test]
    fn times_before_1970_keep_their_fraction() {
        assert_eq!(time(b"1.5").unwrap(), (1, 500_000_000));
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert!(time(b"1.x").is_err() && time(b"").is_err());
    }
}
