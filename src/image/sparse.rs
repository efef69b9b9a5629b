//! Files with holes, as archives are written.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use rustix::fs::SeekFrom as Look;
use rustix::io::Errno;

/// Most pieces of a file that are told apart. More than that are one piece with zeros in it. Readers keep them in memory.
const PIECES: usize = 64 << 10;
const BLOCK: usize = 512;

/// Where a file has data: offsets and lengths. The rest is holes. A filesystem that knows none has one piece.
pub(super) fn pieces(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let (mut pieces, mut at) = (Vec::new(), 0);
    while at < size {
        let data = match rustix::fs::seek(file, Look::Data(at)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::NOTSUP) => at,
            Err(e) => return Err(e.into()),
        };
        let end = match rustix::fs::seek(file, Look::Hole(data)) {
            Ok(end) if pieces.len() < PIECES - 1 => end.min(size),
            _ => size,
        };
        if data < end {
            pieces.push((data, end - data));
        }
        at = end.max(data);
    }
    Ok(pieces)
}

/// The map of pieces that GNU tar puts before the content, in version 1.0 of its format: a count and numbers, a line each,
/// filled up to a block. A hole at the end is told by an empty piece.
pub(super) fn map(pieces: &[(u64, u64)], size: u64) -> Vec<u8> {
    let ends = pieces.last().is_some_and(|(at, length)| at + length == size);
    let last = (!ends).then_some((size, 0));
    let mut map = format!("{}\n", pieces.len() + usize::from(!ends)).into_bytes();
    for (at, length) in pieces.iter().copied().chain(last) {
        map.extend_from_slice(format!("{at}\n{length}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// Writes the pieces of a file, and nothing of its holes.
pub(super) fn write_pieces(file: &File, pieces: &[(u64, u64)], out: &mut impl Write) -> io::Result<()> {
    pieces.iter().try_for_each(|piece| write_piece(file, *piece, out))
}

/// Writes a file with zeros for its holes, which are not read.
pub(super) fn write_filled(
    file: &File,
    pieces: &[(u64, u64)],
    size: u64,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut at = 0;
    for (data, length) in pieces.iter().copied().chain([(size, 0)]) {
        io::copy(&mut io::repeat(0).take(data - at), out)?;
        write_piece(file, (data, length), out)?;
        at = data + length;
    }
    Ok(())
}

fn write_piece(mut file: &File, (at, length): (u64, u64), out: &mut impl Write) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    if io::copy(&mut file.take(length), out)? != length {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_are_found_wherever_they_are_and_filled_with_zeros() {
        const PIECE: u64 = 64 << 10;
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(5 * PIECE).unwrap();
        assert_eq!(pieces(&file, 5 * PIECE).unwrap(), []);
        assert_eq!(map(&[], 9)[..8], *b"1\n9\n0\n\0\0");
        for at in [1, 3] {
            file.write_all_at(&[7; PIECE as usize], at * PIECE).unwrap();
        }
        let found = pieces(&file, 5 * PIECE).unwrap();
        assert_eq!(found, [(PIECE, PIECE), (3 * PIECE, PIECE)]);
        let (mut filled, mut packed) = (Vec::new(), Vec::new());
        write_filled(&file, &found, 5 * PIECE, &mut filled).unwrap();
        write_pieces(&file, &found, &mut packed).unwrap();
        let mut whole = vec![0; 5 * PIECE as usize];
        file.read_exact_at(&mut whole, 0).unwrap();
        assert!(filled == whole && packed == vec![7; 2 * PIECE as usize]);
    }
}
