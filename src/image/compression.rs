//! Decompression, chosen by the first bytes and never by a name.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;
use liblzma::bufread::XzDecoder;

/// What a decoder of xz may take of memory: `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;
/// The largest window of zstd, as a power of two: what `zstd -d` takes unless it is told otherwise.
const ZSTD_WINDOW: u32 = 27;

/// What all decoders together may take of memory.
pub(super) const MEMORY: u64 = XZ_MEMORY + (1 << ZSTD_WINDOW);

/// What a stream begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
    Zip,
    /// Not compressed, or with something that is not known here.
    Plain,
}

impl Format {
    fn of(magic: &[u8]) -> Format {
        match magic {
            [0x1f, 0x8b, ..] => Format::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Format::Xz,
            // A skippable frame may come before the first that has content, as `pzstd` writes it (RFC 8878, 3.1.2).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Format::Zstd,
            [b'B', b'Z', b'h', ..] => Format::Bzip2,
            [b'P', b'K', 3, 4, ..] => Format::Zip,
            _ => Format::Plain,
        }
    }
}

/// How many bytes of the beginning tell the format.
pub(super) const MAGIC: u64 = 6;

/// Whether what begins so is compressed, as far as that is known here.
pub(super) fn is_compressed(magic: &[u8]) -> bool {
    Format::of(magic) != Format::Plain
}

/// Decompresses, in a process that can do nothing else, what begins like gzip, xz or zstd, and passes everything else through. Concatenated streams are
/// one, and checksums are checked by whoever reads to the end.
///
/// # Errors
/// `InvalidData` for a compression that is not supported.
pub(super) fn open<'a>(mut input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::new();
    input.by_ref().take(MAGIC).read_to_end(&mut magic)?;
    let format = Format::of(&magic);
    let whole = BufReader::with_capacity(128 << 10, io::Cursor::new(magic).chain(input));
    match format {
        Format::Gzip => Ok(Box::new(Gzip { member: Some(GzDecoder::new(whole)) })),
        Format::Xz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
                    .map_err(io::Error::other)?;
            let why = format!(
                "it needs more memory to be decompressed than the {} MiB that xz may take here",
                XZ_MEMORY >> 20
            );
            Ok(Box::new(Explained { inner: XzDecoder::new_stream(whole, stream), said: "memory", why }))
        }
        Format::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            let why = format!(
                "its zstd window is larger than {} MiB, the most that is supported: compress it without `--long`",
                (1 << ZSTD_WINDOW) >> 20
            );
            Ok(Box::new(Explained { inner: decoder, said: "too much memory", why }))
        }
        Format::Bzip2 => Err(bad("bzip2 is not supported: use gzip, xz or zstd")),
        Format::Zip => Err(bad("zip is not supported: use tar")),
        Format::Plain => Ok(Box::new(whole)),
    }
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Members of gzip, one after the other. As gzip(1) has it, zeros may follow the last: tapes and block devices are
/// filled up with them.
struct Gzip<R> {
    /// None at the end.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let n = member.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let Some(mut rest) = self.member.take().map(GzDecoder::into_inner) else { break };
            let mut padded = false;
            loop {
                let filled = rest.fill_buf()?;
                let zeros = filled.iter().take_while(|b| **b == 0).count();
                match (filled.get(zeros).copied(), zeros) {
                    (None, 0) => return Ok(0),
                    (None, _) => padded = true,
                    // The first byte of another member.
                    (Some(0x1f), 0) if !padded => break,
                    (Some(_), _) => return Err(bad("something follows the end of its gzip stream")),
                }
                rest.consume(zeros);
            }
            self.member = Some(GzDecoder::new(rest));
        }
        Ok(0)
    }
}

/// A decoder whose error names no limit gets one that does.
struct Explained<R> {
    inner: R,
    /// What the decoder says where the limit was met.
    said: &'static str,
    why: String,
}

impl<R: Read> Read for Explained<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|e| match e.to_string().to_lowercase().contains(self.said) {
            true => bad(&self.why),
            false => e,
        })
    }
}
