//! The objects of a repository that nobody trusts, copied as the plain files that they are.
//!
//! Packs and single objects only: no index of a pack, which git makes anew, and nothing of `info`, where `alternates`
//! would name directories of the host. Packs get names of ours: what git calls them depends on who made them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::sys::copy::{self, Flush};
use crate::sys::{file, tree};

/// Most packs: git itself packs anew beyond fifty.
const PACKS: usize = 1000;
/// Most files that belong to one pack.
const PER_PACK: usize = 8;
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

/// A pack: as it is called inside, and by us.
#[derive(Debug)]
pub(super) struct Pack {
    pub inside: String,
    pub name: String,
}

/// Copies what is in `objects` of a git directory into an empty directory. Returns the packs.
pub(super) fn copy(git_dir: &OwnedFd, to: &Path) -> At<Vec<Pack>> {
    let from = tree::open_dir(git_dir, b"objects").map_err(at(b"objects"))?;
    let to = file::open_dir(to).map_err(at(b"objects"))?;
    let mut copier = Copier { from, to, bytes: 0 };
    let packs = copier.packs()?;
    for first in 0..=255_u8 {
        copier.loose(format!("{first:02x}").as_bytes())?;
    }
    Ok(packs)
}

struct Copier {
    from: OwnedFd,
    to: OwnedFd,
    bytes: u64,
}

impl Copier {
    /// Copies the packs that git has an index of: it uses no others.
    fn packs(&mut self) -> At<Vec<Pack>> {
        let Some((from, mut names)) = self.list(b"pack", PACKS * PER_PACK)? else { return Ok(Vec::new()) };
        names.sort();
        let to = tree::open_dir(&self.to, b"pack").map_err(at(b"pack"))?;
        let packs = names.iter().filter(|name| is_pack(name) && names.binary_search(&index_of(name)).is_ok());
        let mut copied = Vec::new();
        for (number, inside) in packs.enumerate() {
            let name = format!("pack-{number}.pack");
            let path = [b"pack/", inside.as_slice()].concat();
            self.file((&from, inside), (&to, name.as_bytes())).map_err(at(&path))?;
            copied.push(Pack { inside: path.escape_ascii().to_string(), name });
        }
        Ok(copied)
    }

    /// Copies objects that have files of their own, of one directory.
    fn loose(&mut self, dir: &[u8]) -> At<()> {
        let Some((from, names)) = self.list(dir, LOOSE)? else { return Ok(()) };
        tree::make_dir(&self.to, dir).map_err(at(dir))?;
        let to = tree::open_child(&self.to, dir).map_err(at(dir))?;
        for name in names.iter().filter(|name| is_loose(name)) {
            self.file((&from, name), (&to, name)).map_err(at(&[dir, b"/", name].concat()))?;
        }
        Ok(())
    }

    /// A directory and what is in it; none if it is not there.
    fn list(&self, dir: &[u8], most: usize) -> At<Option<(OwnedFd, Vec<Vec<u8>>)>> {
        match tree::open_dir(&self.from, dir) {
            Ok(from) => {
                let names = tree::names_at_most(&from, most).map_err(at(dir))?;
                Ok(Some((from, names)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(at(dir)(e)),
        }
    }

    /// Copies one file. A link to a file is none, nor is a fifo.
    fn file(&mut self, (from, name): (&OwnedFd, &[u8]), (to, new): (&OwnedFd, &[u8])) -> io::Result<()> {
        let from = tree::open_file(from, name)?;
        self.bytes = self.bytes.saturating_add(from.metadata()?.len());
        if self.bytes > BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more than 64 GiB of objects"));
        }
        copy::content(&from, &tree::create_file(to, new)?, Flush::Later, &mut |_| {}).map(drop)
    }
}

fn is_hex(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
}

/// Whatever git or a tool calls it: `pack-HASH`, `loose-HASH`. What begins with a dot is being written.
fn is_pack(name: &[u8]) -> bool {
    name.ends_with(b".pack") && !name.starts_with(b".")
}

/// The name of the index of a pack.
fn index_of(pack: &[u8]) -> Vec<u8> {
    [pack.strip_suffix(b"pack").unwrap_or(pack), b"idx"].concat()
}

fn is_loose(name: &[u8]) -> bool {
    matches!(name.len(), 38 | 62) && is_hex(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packs_and_objects_are_wanted() {
        assert!(is_loose(&[b'a'; 38]) && is_loose(&[b'a'; 62]));
        assert!(!is_loose(&[b'a'; 40]) && !is_loose(&[b'.'; 38]));
        assert!(is_pack(b"pack-00ff.pack") && is_pack(b"loose-00ff.pack"));
        assert_eq!(index_of(b"loose-00ff.pack"), b"loose-00ff.idx");
        for bad in [&b"pack-00ff.idx"[..], b".tmp-1-pack-00ff.pack", b"tmp_pack_x", b"multi-pack-index"] {
            assert!(!is_pack(bad), "{}", bad.escape_ascii());
        }
    }
}
