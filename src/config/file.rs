//! Reading the files: whose they are, how large, and that nothing in their place holds anybody up.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::IN_REPOSITORY;
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::caller::Caller;

/// Far more than anybody writes by hand.
const MAX: u64 = 64 << 10;

/// The file at the top of a work tree, which anybody may have written: a link leads nowhere but into the tree.
pub(super) fn of_repository(top: &Path) -> Result<Option<String>> {
    let path = top.join(IN_REPOSITORY);
    let dir = sys::file::open_dir(top).map_err(Error::io("open", top))?;
    match sys::beneath::open(&dir, Path::new(IN_REPOSITORY)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_ok() => {
            Err(Error::Usage {
                message: format!("{} is a link that leads nowhere in the repository", path.display()),
                hint: Some("put a file there, or nothing".into()),
            })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => text(&path, opened.map_err(Error::io("open", &path))?).map(Some),
    }
}

/// The file of the user who called us: read as that user, who is not to learn what else is on the host, and theirs or
/// the host's root's alone.
pub(super) fn of_user(path: &Path, caller: &Caller) -> Result<Option<String>> {
    trusted(path, caller.act(|| open(path)), &[0, caller.ids.uid])
}

/// The host's own file.
pub(super) fn of_system(path: &Path) -> Result<Option<String>> {
    trusted(path, open(path), &[0])
}

/// Does not wait for a fifo.
fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

fn trusted(path: &Path, opened: io::Result<File>, owners: &[u32]) -> Result<Option<String>> {
    let file = match opened {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        opened => opened.map_err(Error::io("open", path))?,
    };
    let meta = file.metadata().map_err(Error::io("inspect", path))?;
    let denied =
        |what: &str, hint: String| Err(Error::Denied { what: format!("{} {what}", path.display()), hint });
    if !owners.contains(&meta.uid()) {
        return denied(
            &format!("belongs to somebody else (user {})", meta.uid()),
            "a configuration file has to belong to root or to who runs `spark`".into(),
        );
    }
    if meta.mode() & 0o002 != 0 {
        return denied("can be written by everybody", format!("close it: `chmod o-w {}`", path.display()));
    }
    text(path, file).map(Some)
}

fn text(path: &Path, file: File) -> Result<String> {
    let refused = |why: String| Error::usage(format!("cannot read {}: {why}", path.display()));
    let bytes = sys::file::read_bounded(file, MAX).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => refused(format!("it is {e}")),
        _ => Error::io("read", path)(e),
    })?;
    String::from_utf8(bytes).map_err(|_| refused("it is not UTF-8".into()))
}
