//! The objects of a repository that nobody trusts, copied as the plain files that they are.
//!
//! Packs and single objects only: no index of a pack, which git makes anew, and nothing of `info`, where `alternates`
//! would name directories of the host.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::sys::{file, tree};

/// Most packs: git itself packs anew beyond fifty.
const PACKS: usize = 1000;
/// Most objects in files of their own, in one of 256 directories.
const LOOSE: usize = 100_000;
/// Most bytes, holes included.
const BYTES: u64 = 64 << 30;

/// What went wrong, and where below `objects`.
type At<T> = Result<T, (String, io::Error)>;

fn at(path: &[u8]) -> impl FnOnce(io::Error) -> (String, io::Error) + use<> {
    let path = path.escape_ascii().to_string();
    move |e| (path, e)
}

/// Copies what is in `objects` of a git directory into an empty directory. Returns the names of the packs.
pub(super) fn copy(git_dir: &OwnedFd, to: &Path) -> At<Vec<String>> {
    let from = tree::open_dir(git_dir, b"objects").map_err(at(b"objects"))?;
    let to = file::open_dir(to).map_err(at(b"objects"))?;
    let mut copier = Copier { from, to, bytes: 0 };
    let mut packs = copier.files(b"pack", PACKS * 4, is_pack)?;
    packs.sort();
    for first in 0..=255_u8 {
        copier.files(format!("{first:02x}").as_bytes(), LOOSE, is_loose)?;
    }
    Ok(packs)
}

struct Copier {
    from: OwnedFd,
    to: OwnedFd,
    bytes: u64,
}

impl Copier {
    /// Copies the files of one directory whose names are `wanted`. A link to a file is none, nor is a fifo.
    fn files(&mut self, dir: &[u8], most: usize, wanted: fn(&[u8]) -> bool) -> At<Vec<String>> {
        let from = match tree::open_dir(&self.from, dir) {
            Ok(from) => from,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(at(dir)(e)),
        };
        tree::make_dir(&self.to, dir).map_err(at(dir))?;
        let to = tree::open_child(&self.to, dir).map_err(at(dir))?;
        let mut names = tree::names_at_most(&from, most).map_err(at(dir))?;
        names.retain(|name| wanted(name));
        for name in &names {
            self.file((&from, &to), name).map_err(at(&[dir, b"/", name].concat()))?;
        }
        Ok(names.into_iter().map(|name| String::from_utf8_lossy(&name).into_owned()).collect())
    }

    fn file(&mut self, (from, to): (&OwnedFd, &OwnedFd), name: &[u8]) -> io::Result<()> {
        let from = tree::open_file(from, name)?;
        self.bytes = self.bytes.saturating_add(from.metadata()?.len());
        if self.bytes > BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more than 64 GiB of objects"));
        }
        tree::copy_content(&from, &tree::create_file(to, name)?, &mut |_| {}).map(drop)
    }
}

fn is_hex(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
}

fn is_pack(name: &[u8]) -> bool {
    let hash = name.strip_prefix(b"pack-").and_then(|n| n.strip_suffix(b".pack"));
    hash.is_some_and(|h| h.len() <= 64 && is_hex(h))
}

fn is_loose(name: &[u8]) -> bool {
    matches!(name.len(), 38 | 62) && is_hex(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packs_and_objects_are_wanted() {
        assert!(is_pack(b"pack-00ff.pack") && is_loose(&[b'a'; 38]) && is_loose(&[b'a'; 62]));
        for bad in [&b"pack-00ff.idx"[..], b"pack-.pack", b"pack-../x.pack", b"tmp_pack_x", b"pack-0.pack\n"]
        {
            assert!(!is_pack(bad), "{}", bad.escape_ascii());
        }
        assert!(!is_loose(&[b'a'; 40]) && !is_loose(&[b'.'; 38]));
    }
}
