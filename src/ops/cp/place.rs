//! Putting what was made in its place, whole or not at all: readers of a name see what was there, or all of what is new.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::node::At;
use crate::domain::spark::Id;
use crate::sys::tree;

/// A name that is only used until a rename. Whatever has it is removed in the end: after the rename that is nothing,
/// unless old and new were names of one file, which a rename leaves alone.
struct Temporary<'a> {
    dir: BorrowedFd<'a>,
    name: Vec<u8>,
}

impl<'a> Temporary<'a> {
    /// One that nobody guesses, so that nothing inside a spark can be in its way.
    fn new(dir: BorrowedFd<'a>) -> Temporary<'a> {
        Temporary { dir, name: format!(".spark-cp-{}", Id::generate().as_str()).into_bytes() }
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let _ = tree::remove(self.dir, &self.name);
    }
}

/// Makes something in the place of what has its name.
///
/// # Errors
/// `EISDIR` where that is a directory.
pub(super) fn place<T>(to: At<'_>, make: impl Fn(BorrowedFd<'_>, &[u8]) -> io::Result<T>) -> io::Result<T> {
    match make(to.dir, to.name) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            // A rename would refuse it too, but only after something was made beside it.
            if tree::stat(to.dir, to.name).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR) {
                return Err(io::Error::from_raw_os_error(libc::EISDIR));
            }
            let temporary = Temporary::new(to.dir);
            let made = make(to.dir, &temporary.name)?;
            tree::rename(to.dir, &temporary.name, to.name)?;
            Ok(made)
        }
        other => other,
    }
}

/// A file that is being written. Dropping it removes it, unless it was [placed](NewFile::place).
pub(super) struct NewFile<'a> {
    pub file: File,
    dir: BorrowedFd<'a>,
    /// Its name, where the filesystem has no files without one.
    temporary: Option<Temporary<'a>>,
}

impl<'a> NewFile<'a> {
    /// An empty one: without a name where that can be, so that nothing is left even if this process is killed.
    pub(super) fn create(dir: BorrowedFd<'a>) -> io::Result<NewFile<'a>> {
        if let Some(file) = tree::create_unnamed(dir)? {
            return Ok(NewFile { file, dir, temporary: None });
        }
        let temporary = Temporary::new(dir);
        let file = tree::create_file(dir, &temporary.name)?;
        Ok(NewFile { file, dir, temporary: Some(temporary) })
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// `EISDIR` where that is a directory's.
    pub(super) fn place(self, name: &[u8]) -> io::Result<()> {
        match self.temporary {
            Some(temporary) => tree::rename(self.dir, &temporary.name, name),
            None => place(At { dir: self.dir, name }, |dir, name| tree::name_file(&self.file, dir, name)),
        }
    }
}

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
