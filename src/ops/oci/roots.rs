//! Where containers of bundles may be: the root of this installation, and those that somebody named with `--root`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Runtime;
use crate::domain::place::RUN;
use crate::error::{Error, Result};
use crate::sys;

/// Where containers are if nothing else is said.
pub(super) fn default() -> PathBuf {
    Path::new(RUN).join("containers")
}

/// Which other roots there are: a file for each that holds its path.
fn index(run: &Path) -> PathBuf {
    run.join("roots")
}

impl Runtime {
    /// Makes the root, and remembers it for those who list all.
    pub(super) fn prepare(&self) -> Result<()> {
        if self.root == default() {
            make(Path::new(RUN), 0o711)?;
            return make(&self.root, 0o700);
        }
        make(&self.root, 0o700)?;
        make(&self.run, 0o711)?;
        let index = index(&self.run);
        make(&index, 0o700)?;
        let mut hasher = DefaultHasher::new();
        self.root.hash(&mut hasher);
        let path = index.join(format!("{:016x}", hasher.finish()));
        if path.exists() {
            return Ok(());
        }
        sys::file::replace_volatile(&path, self.root.as_os_str().as_bytes()).map_err(Error::io("write", path))
    }

    /// The containers of bundles in the default root, and in those that this installation has been told of.
    pub fn everywhere(run: &Path) -> Result<Vec<Runtime>> {
        let of = |root: PathBuf| Runtime { root, run: run.to_owned() };
        let mut found = vec![of(default())];
        let entries = match std::fs::read_dir(index(run)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries.map_err(Error::io("list", index(run)))?,
        };
        for entry in entries.flatten() {
            let Ok(content) = std::fs::read(entry.path()) else { continue };
            let root = PathBuf::from(std::ffi::OsStr::from_bytes(&content));
            if root.is_dir() {
                found.push(of(root));
            }
        }
        found[1..].sort_by(|a, b| a.root.cmp(&b.root));
        Ok(found)
    }
}

fn make(dir: &Path, mode: u32) -> Result<()> {
    sys::file::make_dirs(dir, mode).map_err(Error::io("create", dir))
}
