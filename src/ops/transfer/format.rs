//! The stream as bytes: docs/send-format.md.
//!
//! A magic word and a version; one zstd frame of records; the SHA-256 of all that. The sum is over the compressed bytes,
//! so that no altered bit is without effect on it.

use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use zstd::stream::write::Encoder;

use super::{Header, Section};
use crate::error::{Error, Result};

pub(super) const MAGIC: &[u8; 12] = b"spark-stream";
pub(super) const VERSION: u32 = 1;
const LEVEL: i32 = 3;
/// Largest record, and what ours have.
pub(super) const MAX_RECORD: u32 = 1 << 20;
pub(super) const CHUNK: usize = 128 << 10;

pub(super) const HEADER: u8 = 1;
pub(super) const SECTION: u8 = 2;
/// A piece of a section's content; an empty one ends it.
pub(super) const DATA: u8 = 3;

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

/// Passes bytes on, and sums them up.
pub(super) struct Summing<T> {
    pub(super) inner: T,
    pub(super) sum: Sha256,
    pub(super) bytes: u64,
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
pub(super) fn damage(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => corrupt("it ends too early"),
        _ if e.raw_os_error().is_none() => corrupt(e),
        _ => Error::sys("read the stream")(e),
    }
}
