//! Putting what was made in its place, whole or not at all: readers of a name see what was there, or all of what is new.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

use super::unfinished::Unfinished;
use super::{sockets, tree};

/// A name that is only used until a rename. Whatever has it is removed in the end: after the rename that is nothing,
/// unless old and new were names of one file, which a rename leaves alone.
#[derive(Debug)]
struct Temporary<D: AsFd> {
    dir: D,
    name: Vec<u8>,
    _guard: Unfinished,
}

impl<D: AsFd> Temporary<D> {
    /// One that nobody guesses, so that nothing inside a spark can be in its way. A signal that ends this process removes it.
    fn new(dir: D) -> io::Result<Temporary<D>> {
        let name = format!(".spark-new-{:032x}", u128::from_ne_bytes(sockets::random()?)).into_bytes();
        let guard = Unfinished::name(dir.as_fd().as_raw_fd(), OsStr::from_bytes(&name))?;
        Ok(Temporary { dir, name, _guard: guard })
    }
}

impl<D: AsFd> Drop for Temporary<D> {
    fn drop(&mut self) {
        let _ = tree::remove(&self.dir, &self.name);
    }
}

/// Makes something in the place of what has its name in a directory.
///
/// # Errors
/// `EISDIR` where that is a directory.
pub fn place<D: AsFd + Clone, T>(
    dir: D,
    name: &[u8],
    make: impl Fn(&D, &[u8]) -> io::Result<T>,
) -> io::Result<T> {
    match make(&dir, name) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            // A rename would refuse it too, but only after something was made beside it.
            if tree::stat(&dir, name).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR) {
                return Err(io::Error::from_raw_os_error(libc::EISDIR));
            }
            let temporary = Temporary::new(dir.clone())?;
            let made = make(&dir, &temporary.name)?;
            tree::rename(&dir, &temporary.name, &dir, name)?;
            Ok(made)
        }
        other => other,
    }
}

/// A file that is being written. Dropping it removes it, unless it was [placed](NewFile::place).
#[derive(Debug)]
pub struct NewFile<D: AsFd> {
    pub file: File,
    dir: D,
    /// Its name, where the filesystem has no files without one.
    temporary: Option<Box<Temporary<D>>>,
}

impl<D: AsFd + Clone> NewFile<D> {
    /// An empty one: without a name where that can be, so that nothing is left even if this process is killed.
    pub fn create(dir: D) -> io::Result<NewFile<D>> {
        match tree::create_unnamed(&dir)? {
            Some(file) => Ok(NewFile { file, dir, temporary: None }),
            None => NewFile::create_named(dir),
        }
    }

    pub(super) fn create_named(dir: D) -> io::Result<NewFile<D>> {
        let temporary = Temporary::new(dir.clone())?;
        let file = tree::create_file(&dir, &temporary.name)?;
        Ok(NewFile { file, dir, temporary: Some(Box::new(temporary)) })
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// `EISDIR` where that is a directory's.
    pub fn place(self, name: &[u8]) -> io::Result<()> {
        match self.temporary {
            Some(temporary) => tree::rename(&self.dir, &temporary.name, &self.dir, name),
            None => place(self.dir, name, |dir, name| tree::name_file(&self.file, dir, name)),
        }
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
        place(fd.as_fd(), b"b", |dir, name| tree::link(&fd, b"a", dir, name)).unwrap();
        assert_eq!(names(top.path()), ["a", "b"]);
    }
}
