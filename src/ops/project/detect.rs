//! Which git repository a directory is in.
//!
//! Only looks: nothing of the repository is executed, no `git` is run, its configuration is not read, and
//! `GIT_DIR` and its like do not count. Recognising a repository is gix-discover's; the way upwards is walked
//! here, because gix opens whatever it finds (a fifo named `commondir` hangs it) and passes over a `.git` file
//! that points to nothing, where `git` stops. As `git` does, the walk ends at a mount point, and a repository
//! of somebody else's is refused.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys;

/// Largest `.git`, `HEAD` or `commondir` file: a path and a line end are far smaller. gix has the same limit.
const MAX: u64 = 64 << 10;

/// A git repository, whichever of its worktrees or subfolders it was found from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repository {
    /// The identity. The canonical common git directory; or, if that does not know the work tree, the `.git` file.
    pub(crate) common: PathBuf,
    /// The git directory that a `.git` file names and that does not point back to it.
    pub(crate) claimed: Option<PathBuf>,
}

impl Repository {
    /// The git directory, to read from and write to.
    ///
    /// # Errors
    /// `denied` if only a `.git` file names it: git never checks such a file out, but an archive may hold one, and would
    /// have somebody else's repository read and written.
    pub(crate) fn git_dir(&self) -> Result<&Path> {
        match &self.claimed {
            None => Ok(&self.common),
            Some(claimed) => Err(Error::Denied {
                what: format!(
                    "{} names the repository {}, which does not point back to it",
                    self.common.display(),
                    claimed.display()
                ),
                hint: "if that is the repository you mean, name its git directory".into(),
            }),
        }
    }

    /// What people call it: the folder that holds `.git` (or another hidden one, such as `.bare`), or the git
    /// directory's own name without `.git`. Taken from the common directory, so that all worktrees agree.
    pub(crate) fn folder_name(&self) -> Option<String> {
        let own = self.common.file_name()?.as_bytes();
        let name = if own.starts_with(b".") {
            self.common.parent()?.file_name()?.as_bytes()
        } else {
            own.strip_suffix(b".git").unwrap_or(own)
        };
        Some(String::from_utf8_lossy(name).into_owned())
    }
}

/// Whose repositories are believed, as in git's `safe.directory`: the caller's, root's, and under `sudo` those
/// of the user behind it.
#[derive(Debug, Clone)]
pub(crate) struct Owners(Option<Vec<u32>>);

impl Owners {
    /// Everybody's: for whoever then does nothing but what the owner could.
    pub(crate) fn anybody() -> Owners {
        Owners(None)
    }

    /// Those of this process.
    pub(crate) fn of_caller() -> Owners {
        Owners::new(rustix::process::geteuid().as_raw(), sys::process::sudo_user())
    }

    /// Those of a user. `sudo` counts for root alone: anybody can set a variable.
    pub(crate) fn new(user: u32, sudo: Option<u32>) -> Owners {
        Owners(Some([0, user].into_iter().chain(sudo.filter(|_| user == 0)).collect()))
    }

    /// Checks a path, and what it leads to if it is a link.
    fn check(&self, path: &Path) -> Result<()> {
        let Some(owners) = &self.0 else { return Ok(()) };
        let metas = [fs::symlink_metadata(path), fs::metadata(path)];
        for meta in metas {
            let owner = meta.map_err(Error::io("inspect", path))?.uid();
            if !owners.contains(&owner) {
                return Err(Error::Denied {
                    what: format!(
                        "the git repository at {} belongs to somebody else (user {owner})",
                        path.display()
                    ),
                    hint: "if you trust it, name a project with `-P NAME`".into(),
                });
            }
        }
        Ok(())
    }
}

/// Finds the repository around a directory. `None` if there is none.
///
/// # Errors
/// `denied` if it is somebody else's, `corrupt` if a `.git` file leads nowhere.
pub(crate) fn around(dir: &Path, owners: &Owners) -> Result<Option<Repository>> {
    Ok(find(dir, owners)?.map(|(repository, _)| repository))
}

/// The top of the work tree around a directory. `None` if there is none, also inside of a git directory.
pub(crate) fn top_around(dir: &Path, owners: &Owners) -> Result<Option<PathBuf>> {
    Ok(find(dir, owners)?.and_then(|(_, top)| top))
}

fn find(dir: &Path, owners: &Owners) -> Result<Option<(Repository, Option<PathBuf>)>> {
    let find = |e| Error::io("find the git repository around", dir)(e);
    let start = dir.canonicalize().map_err(find)?;
    let device = fs::metadata(&start).map_err(find)?.dev();
    for dir in start.ancestors() {
        // What is above a mount point says nothing about what is mounted: `git` stops here too.
        if fs::metadata(dir).map_err(find)?.dev() != device {
            break;
        }
        if let Some(found) = work_tree(dir, owners)? {
            return Ok(Some((found, Some(dir.to_owned()))));
        }
        if looks_like_git_dir(dir)? {
            owners.check(dir)?;
            // In a directory that everybody can write, such as /tmp, anybody can make one out of its owner's.
            owners.check(&dir.join("HEAD"))?;
            if gix_discover::is_git(dir).is_ok() {
                return common_dir(dir, owners).map(|found| Some((found, None)));
            }
        }
    }
    Ok(None)
}

/// A directory with `.git` in it.
fn work_tree(dir: &Path, owners: &Owners) -> Result<Option<Repository>> {
    let dot_git = dir.join(".git");
    let Ok(meta) = fs::metadata(&dot_git) else {
        return Ok(None);
    };
    if meta.is_dir() {
        if !looks_like_git_dir(&dot_git)? {
            return Ok(None);
        }
        owners.check(&dot_git)?;
        owners.check(dir)?;
        if gix_discover::is_git(&dot_git).is_err() {
            return Ok(None);
        }
        return common_dir(&dot_git, owners).map(Some);
    }
    if !meta.is_file() {
        return Ok(None);
    }
    // A file: a linked worktree, a submodule, or `git init --separate-git-dir`.
    owners.check(&dot_git)?;
    owners.check(dir)?;
    let content = read_small(&dot_git).map_err(|e| broken(&dot_git, e.to_string()))?;
    let target =
        gix_discover::parse::gitdir(&content).map_err(|_| broken(&dot_git, "it names no git directory"))?;
    let git_dir = dir.join(target);
    let nowhere =
        || broken(&dot_git, format!("it points to {}, which is not a git repository", git_dir.display()));
    if !looks_like_git_dir(&git_dir)? {
        return Err(nowhere());
    }
    owners.check(&git_dir)?;
    let found = common_dir(&git_dir, owners)?;
    if gix_discover::is_git(&dot_git).is_err() {
        return Err(nowhere());
    }
    if points_back(&git_dir, dir) {
        return Ok(Some(found));
    }
    Ok(Some(Repository { common: dot_git, claimed: Some(found.common) }))
}

/// Whether a git directory knows the work tree whose `.git` file names it. Git writes that down for a linked worktree
/// (`gitdir`, gitrepository-layout(5)) and for a submodule (`core.worktree`), and not for `--separate-git-dir`.
fn points_back(git_dir: &Path, work_tree: &Path) -> bool {
    let same = |path: &Path| git_dir.join(path).canonicalize().is_ok_and(|found| found == work_tree);
    if let Ok(content) = read_small(&git_dir.join("gitdir")) {
        let dot_git = Path::new(OsStr::from_bytes(content.trim_ascii_end()));
        return dot_git.file_name() == Some(OsStr::new(".git")) && dot_git.parent().is_some_and(same);
    }
    let Ok(text) = read_small(&git_dir.join("config")) else { return false };
    let metadata = gix_config::file::Metadata::from(gix_config::Source::Local);
    let config = gix_config::File::from_bytes_no_includes(&text, metadata, Default::default());
    let set = config.ok().and_then(|config| Some(config.raw_value("core.worktree").ok()?.to_vec()));
    set.is_some_and(|path| same(Path::new(OsStr::from_bytes(&path))))
}

/// Whether a directory may be a git directory, by looking at its names only. Whatever gix would read has to be
/// a small regular file, so that a fifo or an endless file cannot hold it up.
fn looks_like_git_dir(dir: &Path) -> Result<bool> {
    let readable = |name| fs::metadata(dir.join(name)).is_ok_and(|m| m.is_file() && m.len() <= MAX);
    if !readable("HEAD") {
        return Ok(false);
    }
    let commondir = dir.join("commondir");
    let linked = fs::symlink_metadata(&commondir).is_ok();
    if !linked {
        return Ok(dir.join("objects").is_dir() && dir.join("refs").is_dir());
    }
    for name in ["commondir", "gitdir"] {
        let path = dir.join(name);
        if fs::symlink_metadata(&path).is_ok() && !readable(name) {
            return Err(broken(&path, "it is not a small regular file"));
        }
    }
    Ok(true)
}

/// The repository of a git directory: the one that `commondir` leads to, or itself.
fn common_dir(git_dir: &Path, owners: &Owners) -> Result<Repository> {
    let pointer = git_dir.join("commondir");
    let common = match read_small(&pointer) {
        Ok(content) => git_dir.join(OsStr::from_bytes(content.trim_ascii_end())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => git_dir.to_owned(),
        Err(e) => return Err(broken(&pointer, e.to_string())),
    };
    let nowhere = || broken(&pointer, format!("it points to {}, which is not there", common.display()));
    let canonical = common.canonicalize().map_err(|_| nowhere())?;
    if !canonical.is_dir() {
        return Err(nowhere());
    }
    owners.check(&canonical)?;
    Ok(Repository { common: canonical, claimed: None })
}

/// Reads a file that names a path. Never waits for a fifo.
fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    sys::file::read_bounded(OpenOptions::new().read(true).custom_flags(flags).open(path)?, MAX)
}

fn broken(path: &Path, why: impl Into<String>) -> Error {
    Error::Corrupt {
        path: path.to_owned(),
        why: why.into(),
        hint: Some(
            "name a project with `-P NAME`, or repair it (`git worktree repair` mends moved worktrees)"
                .into(),
        ),
    }
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;
