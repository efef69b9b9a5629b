//! What a stream says, taken apart by a process that can do nothing else: decompressed, verified, and written anew as records
//! ([`record`]).

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use sha2::{Digest, Sha256};
use zstd::stream::read::Decoder;

use super::format::{
    CHUNK, DATA, HEADER, MAGIC, MAX_RECORD, SECTION, Summing, VERSION, corrupt, damage, later,
};
use crate::error::{Error, Result};
use crate::image::reading::Role;
use crate::pool::stream::Reader;
use crate::pool::stream::record::{self, Record};

/// Far more than level 3 uses, and no burden: what a decoder may take of memory is 2 to this power.
const WINDOW_LOG: u32 = 23;
/// What is written at once.
const BUFFER: usize = 256 << 10;

/// Kinds of records that are no commands. A header and a section have their JSON as text.
pub(super) const IS_HEADER: u8 = 64;
pub(super) const IS_SECTION: u8 = 65;
/// The stream was verified to its last byte.
pub(super) const IS_END: u8 = 66;
/// What a later version wrote: the first text says what, and the second what to do.
pub(super) const IS_LATER: u8 = 67;

/// The task of the process that parses a stream.
pub(in crate::ops) static PARSER: Role = Role { name: "read-stream", memory: 256 << 20, work: parse };

/// Reads a stream from anybody, and writes records of what is in it.
///
/// # Errors
/// Why the stream is refused, and those of `output`.
fn parse(input: &mut dyn Read, output: &mut dyn Write) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER, output);
    let ended = match records(input, &mut out) {
        Ok(()) => text(IS_END, &[]).write(&mut out),
        Err(Error::NotSupported { what, hint }) => {
            let hint = hint.unwrap_or_default();
            let texts = [what.as_bytes(), hint.as_bytes(), &[]];
            Record { kind: IS_LATER, texts, ..Record::default() }.write(&mut out)
        }
        Err(Error::Corrupt { why, .. }) => Err(io::Error::other(why)),
        Err(Error::Sys { source, .. }) => Err(source),
        Err(e) => Err(io::Error::other(e.to_string())),
    };
    ended.and_then(|()| out.flush())
}

fn text(kind: u8, text: &[u8]) -> Record<&[u8]> {
    Record { kind, texts: [text, &[], &[]], ..Record::default() }
}

fn records(input: impl Read, out: &mut impl Write) -> Result<()> {
    let mut stream = Stream::open(input)?;
    let mut put = |record: Record<&[u8]>| record.write(out).map_err(Error::sys("write a record"));
    put(text(IS_HEADER, &stream.header()?))?;
    while let Some(section) = stream.section()? {
        put(text(IS_SECTION, &section))?;
        let mut content = BufReader::with_capacity(CHUNK, stream.content());
        let mut reader = Reader::new(&mut content).map_err(blame)?;
        while let Some(command) = reader.next().map_err(blame)? {
            put(record::encode(&command))?;
        }
        match content.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(corrupt("something follows a subvolume")),
            Err(e) => return Err(damage(e)),
        }
    }
    stream.finish()
}

/// An error that has come through a reader of a section's content.
fn blame(e: Error) -> Error {
    match e {
        Error::Sys { source, .. } => damage(source),
        e => e,
    }
}

/// A stream whose beginning was read.
struct Stream<R: Read> {
    input: Decoder<'static, Summing<BufReader<R>>>,
}

impl<R: Read> Stream<R> {
    /// Reads what stands before the frame.
    fn open(input: R) -> Result<Stream<R>> {
        let mut input =
            Summing { inner: BufReader::with_capacity(CHUNK, input), sum: Sha256::new(), bytes: 0 };
        let mut magic = [0; MAGIC.len()];
        let mut version = [0; 4];
        input.read_exact(&mut magic).map_err(damage)?;
        if magic != *MAGIC {
            return Err(corrupt("`spark send` has not written it"));
        }
        input.read_exact(&mut version).map_err(damage)?;
        match u32::from_le_bytes(version) {
            VERSION => {}
            other => {
                return Err(later(format!("the stream has version {other}, and this spark knows {VERSION}")));
            }
        }
        let mut input = Decoder::with_buffer(input).map_err(damage)?.single_frame();
        input.window_log_max(WINDOW_LOG).map_err(damage)?;
        Ok(Stream { input })
    }

    fn header(&mut self) -> Result<Vec<u8>> {
        match self.record()? {
            Some((HEADER, json)) => Ok(json),
            _ => Err(corrupt("it has no header")),
        }
    }

    /// The next section; `None` after the last. The one before has to have been read to its end.
    fn section(&mut self) -> Result<Option<Vec<u8>>> {
        match self.record()? {
            None => Ok(None),
            Some((SECTION, json)) => Ok(Some(json)),
            Some((kind, _)) => Err(corrupt(format!("a record of kind {kind} stands between sections"))),
        }
    }

    /// The content of the section that was read last.
    fn content(&mut self) -> Content<'_, R> {
        Content { stream: self, left: 0, ended: false }
    }

    /// Verifies the sum of all that was read, and that nothing follows.
    fn finish(self) -> Result<()> {
        let mut input = self.input.finish();
        let sum = input.sum.finalize_reset();
        let mut said = [0; 32];
        input.inner.read_exact(&mut said).map_err(damage)?;
        if said[..] != sum[..] {
            return Err(corrupt("it is not as it was sent: its checksum is another"));
        }
        match input.inner.fill_buf().map_err(damage)? {
            [] => Ok(()),
            _ => Err(corrupt("something follows it")),
        }
    }

    /// Kind and length of the next record. `None` at the end of the frame.
    fn begin_record(&mut self) -> io::Result<Option<(u8, u32)>> {
        let mut kind = [0];
        if self.input.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.input.read_exact(&mut length)?;
        match u32::from_le_bytes(length) {
            length if length > MAX_RECORD => Err(io::Error::other(format!("a record of {length} bytes"))),
            length => Ok(Some((kind[0], length))),
        }
    }

    fn record(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let Some((kind, length)) = self.begin_record().map_err(damage)? else { return Ok(None) };
        let mut payload = vec![0; length as usize];
        self.input.read_exact(&mut payload).map_err(damage)?;
        Ok(Some((kind, payload)))
    }
}

/// A section's content as one.
struct Content<'a, R: Read> {
    stream: &'a mut Stream<R>,
    /// Of the present record.
    left: usize,
    ended: bool,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            match self.stream.begin_record()? {
                Some((DATA, length)) => self.left = length as usize,
                _ => return Err(io::Error::other("a section has no end")),
            }
            self.ended = self.left == 0;
        }
        let most = self.left.min(buffer.len());
        let read = self.stream.input.read(&mut buffer[..most])?;
        self.left -= read;
        if read == 0 && most > 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
    }
}

impl<R: BufRead> BufRead for Summing<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        // What is consumed is in the buffer still: nothing is read.
        if bytes > 0
            && let Ok(buffer) = self.inner.fill_buf()
        {
            self.sum.update(&buffer[..bytes]);
        }
        self.bytes += bytes as u64;
        self.inner.consume(bytes);
    }
}

impl<R: BufRead> Read for Summing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}
