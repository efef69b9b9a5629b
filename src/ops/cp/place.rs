//! Putting what was made in its place, whole or not at all: readers of a name see what was there, or all of what is new.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use super::node::At;
use crate::domain::spark::Id;
use crate::sys::tree;
use crate::sys::unfinished::Unfinished;

/// A name that is only used until a rename. Whatever has it is removed in the end: after the rename that is nothing,
/// unless old and new were names of one file, which a rename leaves alone.
struct Temporary<'a> {
    dir: BorrowedFd<'a>,
    name: Vec<u8>,
    _guard: Unfinished,
}

impl<'a> Temporary<'a> {
    /// One that nobody guesses, so that nothing inside a spark can be in its way. A signal that ends this process removes it.
    fn new(dir: BorrowedFd<'a>) -> io::Result<Temporary<'a>> {
        let name = format!(".spark-cp-{}", Id::generate().as_str()).into_bytes();
        let guard = Unfinished::name(dir.as_raw_fd(), OsStr::from_bytes(&name))?;
        Ok(Temporary { dir, name, _guard: guard })
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
            let temporary = Temporary::new(to.dir)?;
            let made = make(to.dir, &temporary.name)?;
            tree::rename(to.dir, &temporary.name, to.dir, to.name)?;
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
        match tree::create_unnamed(dir)? {
            Some(file) => Ok(NewFile { file, dir, temporary: None }),
            None => NewFile::create_named(dir),
        }
    }

    fn create_named(dir: BorrowedFd<'a>) -> io::Result<NewFile<'a>> {
        let temporary = Temporary::new(dir)?;
        let file = tree::create_file(dir, &temporary.name)?;
        Ok(NewFile { file, dir, temporary: Some(temporary) })
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// `EISDIR` where that is a directory's.
    pub(super) fn place(self, name: &[u8]) -> io::Result<()> {
        match self.temporary {
            Some(temporary) => tree::rename(self.dir, &temporary.name, self.dir, name),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::Path;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The tests' own filesystem has files without a name; others have not.
    #[test]
    fn a_new_file_is_whole_or_not_there_whether_it_has_a_name_meanwhile_or_not() {
        for named in [false, true] {
            let top = tempfile::tempdir().unwrap();
            let fd = tree::open_dir(File::open(top.path()).unwrap(), b"").unwrap();
            let create = |dir| if named { NewFile::create_named(dir) } else { NewFile::create(dir) };
            let dir = fd.as_fd();
            std::fs::create_dir(top.path().join("dir")).unwrap();
            drop(create(dir).unwrap());
            assert_eq!(names(top.path()), ["dir"]);
            let refused = create(dir).unwrap().place(b"dir").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EISDIR));
            for content in ["one", "two"] {
                let mut new = create(dir).unwrap();
                new.file.write_all(content.as_bytes()).unwrap();
                new.place(b"file").unwrap();
                assert_eq!(std::fs::read_to_string(top.path().join("file")).unwrap(), content);
            }
            assert_eq!(names(top.path()), ["dir", "file"]);
        }
    }

    #[test]
    fn a_name_that_is_the_same_file_already_stays_alone() {
        let top = tempfile::tempdir().unwrap();
        let fd = tree::open_dir(File::open(top.path()).unwrap(), b"").unwrap();
        std::fs::write(top.path().join("a"), "").unwrap();
        std::fs::hard_link(top.path().join("a"), top.path().join("b")).unwrap();
        let to = At { dir: fd.as_fd(), name: b"b" };
        place(to, |dir, name| tree::link(&fd, b"a", dir, name)).unwrap();
        assert_eq!(names(top.path()), ["a", "b"]);
    }

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
