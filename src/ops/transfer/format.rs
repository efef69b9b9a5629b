//! The stream as bytes: docs/send-format.md.
//!
//! A magic word and a version; one zstd frame of records; the SHA-256 of all that. The sum is over the compressed bytes,
//! so that no altered bit is without effect on it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use zstd::stream::{read::Decoder, write::Encoder};

use super::{Header, Section};
use crate::error::{Error, Result};

const MAGIC: &[u8; 12] = b"spark-stream";
const VERSION: u32 = 1;
const LEVEL: i32 = 3;
/// Far more than level 3 uses, and no burden: what a decoder may take of memory is 2 to this power.
const WINDOW_LOG: u32 = 23;
/// Largest record, and what ours have.
const MAX_RECORD: u32 = 1 << 20;
const CHUNK: usize = 128 << 10;

const HEADER: u8 = 1;
const SECTION: u8 = 2;
/// A piece of a section's content; an empty one ends it.
const DATA: u8 = 3;

/// The action of an error that is the output's.
pub const WRITE: &str = "write the stream";

/// Hears how many bytes of content have passed.
pub(super) type Progress<'a> = &'a dyn Fn(u64);

/// Writes a stream.
pub(super) struct Writer<W: Write> {
    out: Encoder<'static, Summing<W>>,
    passed: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn begin(out: W, header: &Header) -> Result<Writer<W>> {
        let mut out = Summing { inner: out, sum: Sha256::new(), bytes: 0 };
        let begun = out.write_all(MAGIC).and_then(|()| out.write_all(&VERSION.to_le_bytes()));
        let out = begun.and_then(|()| Encoder::new(out, LEVEL)).map_err(Error::sys(WRITE))?;
        let mut writer = Writer { out, passed: 0 };
        writer.json(HEADER, header)?;
        Ok(writer)
    }

    /// Writes a section: what it is, and all of its content.
    pub(super) fn section(
        &mut self,
        section: &Section<impl serde::Serialize>,
        mut content: impl Read,
        progress: Progress<'_>,
    ) -> Result<()> {
        self.json(SECTION, section)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            let mut filled = 0;
            while filled < chunk.len() {
                match content.read(&mut chunk[filled..]).map_err(Error::sys("send a subvolume"))? {
                    0 => break,
                    n => filled += n,
                }
            }
            self.record(DATA, &chunk[..filled])?;
            if filled == 0 {
                return Ok(());
            }
            self.passed += filled as u64;
            progress(self.passed);
        }
    }

    /// Writes the end. Returns how many bytes the stream has.
    pub(super) fn finish(self) -> Result<u64> {
        let finish = || {
            let mut out = self.out.finish()?;
            let sum = out.sum.finalize_reset();
            out.inner.write_all(&sum)?;
            out.inner.flush()?;
            Ok(out.bytes + sum.len() as u64)
        };
        finish().map_err(Error::sys(WRITE))
    }

    fn json(&mut self, kind: u8, value: &impl serde::Serialize) -> Result<()> {
        let json = serde_json::to_vec(value).map_err(io::Error::other).map_err(Error::sys(WRITE))?;
        self.record(kind, &json)
    }

    fn record(&mut self, kind: u8, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len()).ok().filter(|length| *length <= MAX_RECORD);
        let Some(length) = length else {
            return Err(Error::NotSupported {
                what: "the spark has more options than a stream can carry".into(),
                hint: None,
            });
        };
        let [a, b, c, d] = length.to_le_bytes();
        self.out
            .write_all(&[kind, a, b, c, d])
            .and_then(|()| self.out.write_all(payload))
            .map_err(Error::sys(WRITE))
    }
}

/// Reads a stream from anybody.
pub(super) struct Incoming<R: Read> {
    input: Decoder<'static, Summing<BufReader<R>>>,
    /// Bytes of content that may come, and that have.
    limit: u64,
    passed: u64,
}

impl<R: Read> Incoming<R> {
    /// Reads the header. Of content, `limit` bytes may follow.
    ///
    /// # Errors
    /// `corrupt` if it is no stream of ours, `not_supported` if it is one of a later version.
    pub(super) fn open(input: R, limit: u64) -> Result<(Header, Incoming<R>)> {
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
        let mut incoming = Incoming { input, limit, passed: 0 };
        match incoming.record()? {
            Some((HEADER, json)) => Ok((parse(&json)?, incoming)),
            _ => Err(corrupt("it has no header")),
        }
    }

    /// The next section; `None` after the last. The one before has to have been read to its end.
    pub(super) fn section(&mut self) -> Result<Option<Section>> {
        match self.record()? {
            None => Ok(None),
            Some((SECTION, json)) => Ok(Some(parse(&json)?)),
            Some((kind, _)) => Err(corrupt(format!("a record of kind {kind} stands between sections"))),
        }
    }

    /// The content of the section that was read last.
    pub(super) fn content<'a>(&'a mut self, progress: Progress<'a>) -> Content<'a, R> {
        Content { incoming: self, left: 0, ended: false, progress }
    }

    /// Verifies the sum of all that was read, and that nothing follows.
    pub(super) fn finish(self) -> Result<()> {
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
pub(super) struct Content<'a, R: Read> {
    incoming: &'a mut Incoming<R>,
    /// Of the present record.
    left: usize,
    ended: bool,
    progress: Progress<'a>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            match self.incoming.begin_record()? {
                Some((DATA, length)) => self.left = length as usize,
                _ => return Err(io::Error::other("a section has no end")),
            }
            self.ended = self.left == 0;
            self.incoming.passed += self.left as u64;
            if self.incoming.passed > self.incoming.limit {
                // More than the pool has room for: said as the full disk that it would become.
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            (self.progress)(self.incoming.passed);
        }
        let most = self.left.min(buffer.len());
        let read = self.incoming.input.read(&mut buffer[..most])?;
        self.left -= read;
        if read == 0 && most > 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
    }
}

/// Passes bytes on, and sums them up.
struct Summing<T> {
    inner: T,
    sum: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.sum.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
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

fn parse<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(misread)
}

pub(super) fn misread(e: serde_json::Error) -> Error {
    corrupt(format!("a record is not understood: {e}"))
}

pub(super) fn corrupt(why: impl ToString) -> Error {
    Error::corrupt(Path::new("the stream"), why)
}

/// What a later version may write.
pub(super) fn later(what: String) -> Error {
    Error::NotSupported { what, hint: Some("a newer spark wrote it: upgrade this one".into()) }
}

/// An error of reading: the stream's own fault, unless the system says otherwise.
fn damage(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => corrupt("it ends too early"),
        _ if e.raw_os_error().is_none() => corrupt(e),
        _ => Error::sys("read the stream")(e),
    }
}

/// The same for an error that has come through a reader of a section's content.
pub(super) fn blame(e: Error) -> Error {
    match e {
        Error::Sys { source, .. } => damage(source),
        e => e,
    }
}
