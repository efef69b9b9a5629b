//! What no two sparks may have in common: the keys of their ssh servers, and what tells a base's children apart.
//!
//! `/etc/machine-id` and `/etc/hostname` are mounted anew at every start, and so need no care in a fork.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};

use super::hosts;
use super::spark::SparkId;
use crate::error::{Error, Result};
use crate::sys::{beneath, file, tree};

const SSH: &str = "etc/ssh";
/// The key that every ssh server and client of this decade takes.
const HOST_KEY: &[u8] = b"ssh_host_ed25519_key";

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
        && tree::find_name(&dir, |name| name == b"machine-id")?
    {
        tree::remove(&dir, b"machine-id")?;
        tree::set_owner_and_mode(tree::create_file(&dir, b"machine-id")?, (0, 0), 0o444)?;
    }
    hosts::clean(&top)?;
    remove_keys(&top)
}

/// Removes the host keys of an ssh server. At its next start the spark makes keys of its own.
pub(super) fn remove_host_keys(root: &Path) -> Result<()> {
    let removed = file::open_dir(root).and_then(|top| remove_keys(&top));
    removed.map_err(Error::io("remove the ssh host keys in", root))
}

fn remove_keys(top: &OwnedFd) -> io::Result<()> {
    let Some(dir) = there(beneath::open_dir(top, Path::new(SSH)))? else { return Ok(()) };
    // Some at a time: a hostile root may have as many as its disk holds.
    const SOME: usize = 1000;
    loop {
        let mut keys = Vec::new();
        tree::find_name(&dir, |name| {
            if is_host_key(name) {
                keys.push(name.to_owned());
            }
            keys.len() == SOME
        })?;
        for name in &keys {
            tree::remove(&dir, name)?;
        }
        if keys.len() < SOME {
            return Ok(());
        }
    }
}

/// Gives the ssh server in a root a key, if it has lost its keys or never had any. The key is made here: no program of the
/// spark's has to be run, and waited for. The spark does not run yet. If it fails, the spark starts all the same.
pub(super) fn give_host_key(spark: &SparkId, root: &Path) {
    let given = || -> io::Result<()> {
        let top = file::open_dir(root)?;
        let Some(dir) = lacks_host_keys(&top)? else { return Ok(()) };
        let failed = |e: ssh_key::Error| io::Error::other(e);
        let mut key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(failed)?;
        key.set_comment(format!("root@{}", spark.name));
        put(&dir, HOST_KEY, 0o600, key.to_openssh(LineEnding::LF).map_err(failed)?.as_bytes())?;
        let public = key.public_key().to_openssh().map_err(failed)? + "\n";
        put(&dir, &[HOST_KEY, b".pub"].concat(), 0o644, public.as_bytes())
    };
    if let Err(e) = given() {
        tracing::warn!(%spark, "cannot make an ssh host key: {e}");
    }
}

/// Writes a new file of root's, which is whole as soon as it has its name.
fn put(dir: &File, name: &[u8], mode: u32, content: &[u8]) -> io::Result<()> {
    let mut file = tree::create_unnamed(dir)?.ok_or(io::ErrorKind::Unsupported)?;
    file.write_all(content)?;
    tree::set_owner_and_mode(&file, (0, 0), mode)?;
    file.sync_all()?;
    tree::name_file(&file, dir, name)
}

/// The directory of an ssh server's configuration, if there is a server and it has no keys.
fn lacks_host_keys(top: &OwnedFd) -> io::Result<Option<File>> {
    if there(beneath::open(top, Path::new("usr/sbin/sshd")))?.is_none() {
        return Ok(None);
    }
    let dir = there(beneath::open_dir(top, Path::new(SSH)))?;
    let is_bare = |dir: &File| Ok::<_, io::Error>(!tree::find_name(dir, is_host_key)?);
    Ok(match dir {
        Some(dir) if is_bare(&dir)? => Some(dir),
        _ => None,
    })
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
