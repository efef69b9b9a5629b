//! Layers over layers: what whiteouts hide.
//!
//! A whiteout hides what is below its layer, and nothing of its own layer, wherever in the archive it stands.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use super::files::{Made, Problem, Root, io, is, not_inside, split};
use crate::sys::tree::{self, Mtime};

/// What begins so is no file, but says that one is gone.
const WHITEOUT: &[u8] = b".wh.";
/// What begins so says something of its directory.
const OF_DIRECTORY: &[u8] = b".wh..wh.";

/// What a marker hides.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Hidden {
    /// What has a path.
    Path(Vec<u8>),
    /// Everything in a directory.
    Inside(Vec<u8>),
    /// Nothing: what a union filesystem noted for itself.
    Nothing,
}

/// Says what an entry's path hides, if it is a marker.
pub(super) fn whiteout(path: &[u8]) -> Made<Option<Hidden>> {
    let (dir, name) = split(path);
    if name == b".wh..wh..opq" {
        return Ok(Some(Hidden::Inside(dir.to_owned())));
    }
    if path.split(|b| *b == b'/').any(|part| part.starts_with(OF_DIRECTORY)) {
        return Ok(Some(Hidden::Nothing));
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(None),
        Some(b"" | b"." | b"..") => Err(Problem::Refused("hides what is no name".into())),
        Some(name) if dir.is_empty() => Ok(Some(Hidden::Path(name.to_owned()))),
        Some(name) => Ok(Some(Hidden::Path([dir, name].join(&b'/')))),
    }
}

/// A layer while it is unpacked.
#[derive(Debug, Default)]
pub(super) struct Layer {
    /// The paths that it has itself, as hashes: a million of them take little, and nobody can choose two that are
    /// equal.
    made: HashSet<u64>,
    /// What it has hidden: a second time there is nothing left to hide.
    hidden: HashSet<u64>,
    /// Directories in which it changed something.
    entered: HashSet<u64>,
    hasher: RandomState,
}

impl Layer {
    /// It has this path.
    pub(super) fn made(&mut self, path: &[u8]) {
        self.made.insert(self.hasher.hash_one(path));
    }

    /// It is about to change something in a directory. The time of one that it does not have itself is another layer's,
    /// and given back in the end. Returns it where it has to be remembered.
    pub(super) fn enter(&mut self, root: &mut Root, dir: &[u8]) -> Option<Mtime> {
        if !self.entered.insert(self.hasher.hash_one(dir)) || self.has(dir) {
            return None;
        }
        // What is not there, or no directory, is told by who needs it.
        let stat = rustix::fs::fstat(root.open_dir(dir).ok()?).ok()?;
        Some((stat.st_mtime, stat.st_mtime_nsec as u32))
    }

    fn has(&self, path: &[u8]) -> bool {
        self.made.contains(&self.hasher.hash_one(path))
    }

    /// Removes what is hidden, but for what this layer has put there.
    pub(super) fn hide(&mut self, root: &mut Root, hidden: &Hidden) -> Made<()> {
        if !self.hidden.insert(self.hasher.hash_one(hidden)) {
            return Ok(());
        }
        root.forget();
        // A directory is looked at twice: for what is in it, and when that has gone.
        let mut todo = Vec::new();
        match hidden {
            Hidden::Nothing => {}
            Hidden::Path(path) => todo.push((path.clone(), false)),
            Hidden::Inside(dir) => match tree::open_dir(root.fd(), dir) {
                Ok(fd) => todo.extend(children(&fd, dir)?),
                Err(e) if is(&e, libc::ENOENT) => {}
                Err(e) => return Err(not_inside(root.fd(), dir, e)),
            },
        }
        while let Some((path, emptied)) = todo.pop() {
            let (above, name) = split(&path);
            let dir = match tree::open_dir(root.fd(), above) {
                Ok(dir) => dir,
                Err(e) if is(&e, libc::ENOENT) => continue,
                Err(e) => return Err(not_inside(root.fd(), above, e)),
            };
            if emptied {
                match tree::remove_dir(&dir, name) {
                    // This layer has something in it.
                    Err(e) if is(&e, libc::ENOTEMPTY) => {}
                    other => other.map_err(io("remove"))?,
                }
                continue;
            }
            let stat = match tree::stat(&dir, name) {
                Ok(stat) => stat,
                Err(e) if is(&e, libc::ENOENT) => continue,
                Err(e) => return Err(Problem::Io("inspect", e)),
            };
            let own = self.has(&path);
            if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
                if !own {
                    tree::unlink(&dir, name).map_err(io("remove"))?;
                }
                continue;
            }
            let fd = tree::open_child(&dir, name).map_err(io("open"))?;
            let inside = children(&fd, &path)?;
            if !own {
                todo.push((path, true));
            }
            todo.extend(inside);
        }
        Ok(())
    }
}

fn children(fd: &std::os::fd::OwnedFd, path: &[u8]) -> Made<Vec<(Vec<u8>, bool)>> {
    let names = tree::names(fd).map_err(io("list"))?;
    let child = |name: Vec<u8>| if path.is_empty() { name } else { [path, &name].join(&b'/') };
    Ok(names.into_iter().map(|name| (child(name), false)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_told_from_files_and_hide_nothing_outside() {
        let of = |path: &str| whiteout(path.as_bytes()).unwrap();
        assert_eq!(of("a/b"), None);
        assert_eq!(of("a/.wh.b"), Some(Hidden::Path(b"a/b".to_vec())));
        assert_eq!(of(".wh.b"), Some(Hidden::Path(b"b".to_vec())));
        assert_eq!(of("a/.wh..wh..opq"), Some(Hidden::Inside(b"a".to_vec())));
        assert_eq!(of(".wh..wh..opq"), Some(Hidden::Inside(Vec::new())));
        assert_eq!(of(".wh..wh.plnk/1.2"), Some(Hidden::Nothing));
        for bad in [".wh.", "a/.wh..", "a/.wh..."] {
            assert!(whiteout(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
