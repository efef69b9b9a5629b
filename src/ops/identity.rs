//! What no two sparks may have in common: the keys of their ssh servers, and what tells a base's children apart.
//!
//! `/etc/machine-id` and `/etc/hostname` are mounted anew at every start, and so need no care in a fork.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::Sparks;
use super::exec::Command;
use super::spark::SparkId;
use crate::domain::place::SparkPaths;
use crate::error::{Error, Result};
use crate::sys::{beneath, file, tree};

const SSH: &str = "etc/ssh";

/// Directories of what runs, which has no place in a template.
const TEMPORARY: [&str; 3] = ["tmp", "var/tmp", "run"];
/// Made anew at the first boot where they are missing.
const SEEDS: [(&str, &[u8]); 2] = [("var/lib/dbus", b"machine-id"), ("var/lib/systemd", b"random-seed")];

/// Removes what is one machine's own from a root that is to be copied to many.
pub(super) fn clean(root: &Path) -> io::Result<()> {
    let top = file::open_dir(root)?;
    for dir in TEMPORARY {
        if let Some(dir) = there(beneath::open_dir(&top, Path::new(dir)))? {
            tree::clear(&dir)?;
        }
    }
    for (dir, name) in SEEDS {
        if let Some(dir) = there(beneath::open_dir(&top, Path::new(dir)))? {
            tree::remove(&dir, name)?;
        }
    }
    // Empty, and not away: then systemd knows that it has to be made.
    if let Some(dir) = there(beneath::open_dir(&top, Path::new("etc")))?
        && tree::names(&dir)?.iter().any(|name| name == b"machine-id")
    {
        tree::remove(&dir, b"machine-id")?;
        tree::set_owner_and_mode(tree::create_file(&dir, b"machine-id")?, (0, 0), 0o444)?;
    }
    remove_keys(&top)
}

/// Removes the host keys of an ssh server. At its next start the spark makes keys of its own.
pub(super) fn remove_host_keys(root: &Path) -> Result<()> {
    let removed = file::open_dir(root).and_then(|top| remove_keys(&top));
    removed.map_err(Error::io("remove the ssh host keys in", root))
}

fn remove_keys(top: &OwnedFd) -> io::Result<()> {
    let Some(dir) = there(beneath::open_dir(top, Path::new(SSH)))? else { return Ok(()) };
    for name in tree::names(&dir)?.into_iter().filter(|name| is_host_key(name)) {
        tree::remove(&dir, &name)?;
    }
    Ok(())
}

impl Sparks {
    /// Lets a running spark whose ssh server has no keys make them, confined as everything in it. That this fails is no
    /// reason to fail what started it.
    pub(super) fn give_host_keys(&self, spark: &SparkId) {
        if !lacks_host_keys(&SparkPaths(&self.dir(spark)).root()) {
            return;
        }
        let argv = ["ssh-keygen", "-q", "-A"].map(Into::into).to_vec();
        let made = self.exec_logged(spark, &Command { argv, ..Command::default() });
        let made = made.and_then(|running| running.wait().map_err(Error::sys("wait for ssh-keygen")));
        if let Err(e) = made {
            tracing::warn!(%spark, "cannot make ssh host keys: {e}");
        }
    }
}

/// Whether a spark has an ssh server that has lost its keys, or never had any.
pub(super) fn lacks_host_keys(root: &Path) -> bool {
    let looked = || -> io::Result<bool> {
        let top = file::open_dir(root)?;
        beneath::open(&top, Path::new("usr/sbin/sshd"))?;
        beneath::open(&top, Path::new("usr/bin/ssh-keygen"))?;
        let dir = beneath::open_dir(&top, Path::new(SSH))?;
        Ok(!tree::names(&dir)?.iter().any(|name| is_host_key(name)))
    };
    looked().unwrap_or(false)
}

fn is_host_key(name: &[u8]) -> bool {
    let name = name.strip_suffix(b".pub").unwrap_or(name);
    name.starts_with(b"ssh_host_") && name.ends_with(b"_key")
}

/// What was opened; none if it is not there, or is nothing that anybody would read either.
fn there<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => Ok(None),
        Err(e) => Err(e),
    }
}
