//! Directories that things are put into.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::node::At;
use crate::sys::tree;

/// Makes a directory, or opens the one that is there. The flag says whether it is new.
///
/// # Errors
/// `ENOTDIR` or `ELOOP` where something else has the name.
pub(super) fn directory(to: At<'_>) -> io::Result<(OwnedFd, bool)> {
    let new = match tree::make_dir(to.dir, to.name) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
        Err(e) => return Err(e),
    };
    Ok((tree::open_child(to.dir, to.name)?, new))
}

/// Whether a directory is another one, or somewhere below it. Where both move meanwhile, no more than a guess.
pub(super) fn is_within(dir: impl AsFd, other: (u64, u64)) -> io::Result<bool> {
    let mut at = tree::open_child(dir, b".")?;
    loop {
        let here = rustix::fs::fstat(&at)?;
        if (here.st_dev, here.st_ino) == other {
            return Ok(true);
        }
        let up = tree::open_child(&at, b"..")?;
        let above = rustix::fs::fstat(&up)?;
        if (above.st_dev, above.st_ino) == (here.st_dev, here.st_ino) {
            return Ok(false);
        }
        at = up;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_directory_is_within_itself_and_what_is_above() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(top.path().join("a/b")).unwrap();
        let id = |path: &str| {
            let stat = rustix::fs::stat(top.path().join(path)).unwrap();
            (stat.st_dev, stat.st_ino)
        };
        let a = File::open(top.path().join("a")).unwrap();
        assert!(is_within(&a, id("")).unwrap() && is_within(&a, id("a")).unwrap());
        assert!(!is_within(&a, id("a/b")).unwrap());
    }
}
