//! Decompressing and hashing ahead of who unpacks, in a thread of its own: each of the two takes about as long.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender};

use sha2::{Digest as _, Sha256};

use super::compression;
use crate::domain::image::Digest;

/// What is handed over at a time.
const PIECE: usize = 256 << 10;

/// Decompresses all of an archive, hands it over in pieces, and returns its digest. An error is handed over too. Ends
/// early when nobody wants more.
pub(super) fn decompress(archive: impl Read, to: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let work = || -> io::Result<()> {
        let mut plain = compression::open(archive)?;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            plain.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
            if piece.is_empty() {
                return Ok(());
            }
            hash.update(&piece);
            to.send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
    };
    match work() {
        Ok(()) => Ok(Digest::of_hash(&hash.finalize())),
        Err(e) => {
            let _ = to.send(Err(io::Error::new(e.kind(), e.to_string())));
            Err(e)
        }
    }
}

/// The pieces, as one stream.
pub(super) struct Pieces {
    from: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
}

impl Pieces {
    pub(super) fn new(from: Receiver<io::Result<Vec<u8>>>) -> Pieces {
        Pieces { from, piece: Vec::new(), at: 0 }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            match self.from.recv() {
                Ok(piece) => (self.piece, self.at) = (piece?, 0),
                // The other side has ended, having handed over all there is.
                Err(_) => return Ok(0),
            }
        }
        let n = buffer.len().min(self.piece.len() - self.at);
        buffer[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
