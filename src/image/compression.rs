//! Decompression, chosen by the first bytes and never by a name.

use std::io::{self, BufReader, Read};

/// What a decoder may take of memory: `xz -9` needs 65 MiB.
const MEMORY: u64 = 256 << 20;

/// Whether what begins so is compressed, as far as that is known here.
pub(super) fn is_compressed(magic: &[u8]) -> bool {
    [&[0x1f, 0x8b][..], &[0xfd, b'7', b'z', b'X', b'Z', 0], &[0x28, 0xb5, 0x2f, 0xfd], b"BZh", b"PK\x03\x04"]
        .iter()
        .any(|known| magic.starts_with(known))
}

/// Decompresses what begins like gzip, xz or zstd, and passes everything else through. Concatenated streams are
/// one, and checksums are checked by whoever reads to the end.
///
/// # Errors
/// `InvalidData` for a compression that is not supported.
pub(super) fn open<'a>(mut input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::new();
    input.by_ref().take(6).read_to_end(&mut magic)?;
    let kind = magic.clone();
    let whole = BufReader::with_capacity(128 << 10, io::Cursor::new(magic).chain(input));
    match kind.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            let stream = liblzma::stream::Stream::new_stream_decoder(MEMORY, liblzma::stream::CONCATENATED)
                .map_err(io::Error::other)?;
            Ok(Box::new(liblzma::bufread::XzDecoder::new_stream(whole, stream)))
        }
        // Its window is 128 MiB at most unless told otherwise.
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Box::new(zstd::stream::read::Decoder::with_buffer(whole)?)),
        [b'B', b'Z', b'h', ..] => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "bzip2 is not supported: use gzip, xz or zstd"))
        }
        [b'P', b'K', 3, 4, ..] => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "zip is not supported: use tar"))
        }
        _ => Ok(Box::new(whole)),
    }
}
