//! Secrets in a running spark: files on a tmpfs of its own at `/run/secrets`, which no snapshot reaches. The only place
//! on the host where their values are; a list beside the bundle says which there are.
//!
//! The spark's root may change them, and deceives only itself with that: on the host nothing is followed from there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use secrecy::ExposeSecret;

use super::attach;
use super::live::{self, Live};
use crate::domain::secret::{DIR, Delivery, Key, MAX_ALL, MAX_VALUE, MOST};
use crate::error::{Error, Result};
use crate::sys::locked::{Locked, Secret};
use crate::{fault, sys};

/// Twice what all may have: while they are replaced, old and new ones are there. And what their pages leave empty.
const SIZE: usize = 2 * MAX_ALL + (2 << 20);
/// What is delivered as a variable only: for the spark's root alone.
const HIDDEN: &str = ".env";
const TEMPORARY: &str = ".new";

/// One secret to deliver.
#[derive(Debug, Clone)]
pub struct Delivered {
    pub key: Key,
    pub delivery: Delivery,
    pub value: Rc<Secret>,
}

/// Secrets to deliver, and the user and group inside who get to read the files.
#[derive(Debug)]
pub struct Filling {
    pub secrets: Vec<Delivered>,
    pub uid: u32,
    pub gid: u32,
}

/// `secrets.json` in the bundle: what is delivered, and where. No value.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Manifest {
    /// The device number of the tmpfs: a directory on another one is not ours.
    device: u64,
    keys: BTreeMap<Key, Delivery>,
}

fn path(bundle: &Path) -> PathBuf {
    bundle.join("secrets.json")
}

fn manifest(bundle: &Path) -> Option<Manifest> {
    live::read_json(&path(bundle), 1 << 20)
}

/// Whether anything is delivered to a running spark.
pub fn any(bundle: &Path) -> bool {
    manifest(bundle).is_some()
}

/// A filled tmpfs that is not mounted anywhere yet.
pub(super) struct Mounted {
    tree: OwnedFd,
    manifest: Manifest,
}

/// Makes a tmpfs of secrets. The values are gone from memory when this returns, unless others share them.
pub(super) fn mount(filling: Filling, first_id: u32) -> Result<Mounted> {
    let tree = sys::mount::tmpfs(SIZE, first_id).map_err(Error::sys("make a tmpfs for secrets"))?;
    write_all(&tree, &filling, first_id).map_err(cannot("put secrets into their tmpfs"))?;
    let device = rustix::fs::fstat(&tree).map_err(|e| cannot("inspect a tmpfs")(e.into()))?.st_dev;
    fault::point("secrets-start.filled")?;
    Ok(Mounted { tree, manifest: Manifest { device, keys: keys(&filling) } })
}

impl Mounted {
    /// Mounts it in a spark that runs or is about to, and says in its bundle what there is.
    pub(super) fn attach(self, live: &Live, root: &Path, bundle: &Path) -> Result<()> {
        let place = (&self.tree, Path::new(DIR), true);
        attach::attach_tree(live, root, place).map_err(|e| match e.raw_os_error() {
            Some(libc::ELOOP) => Error::secret(
                format!("cannot mount secrets at {DIR}: the path leads through a link in the spark"),
                "make `/run` a directory in it, or deliver no secrets to it",
            ),
            _ => cannot("mount secrets in the spark")(e),
        })?;
        fault::point("secrets-start.mounted")?;
        write_manifest(bundle, &self.manifest)
    }
}

fn write_manifest(bundle: &Path, manifest: &Manifest) -> Result<()> {
    live::write_json(&path(bundle), manifest)
}

fn keys(filling: &Filling) -> BTreeMap<Key, Delivery> {
    filling.secrets.iter().map(|s| (s.key.clone(), s.delivery)).collect()
}

fn cannot(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Secret {
        what: format!("cannot {action}"),
        hint: "see what this host lacks with `spark doctor`".into(),
        source: Some(source),
    }
}

/// Replaces what is delivered to a running spark: each file is the old one or the new one at any moment. The caller holds
/// the spark's exclusive lock.
pub fn replace(live: &Live, (root, bundle): (&Path, &Path), filling: Filling) -> Result<()> {
    let Some(old) = manifest(bundle) else {
        if filling.secrets.is_empty() {
            return Ok(());
        }
        return mount(filling, live.first_id)?.attach(live, root, bundle);
    };
    let dir = open(live, &old)?;
    write_all(&dir, &filling, live.first_id).map_err(|source| Error::Secret {
        what: format!("cannot write the spark's {DIR}"),
        hint: "see whether something in the spark has filled it".into(),
        source: Some(source),
    })?;
    fault::point("secrets-refresh.written")?;
    let keys = keys(&filling);
    write_manifest(bundle, &Manifest { device: old.device, keys: keys.clone() })?;
    fault::point("secrets-refresh.listed")?;
    // Where a file was and is none any more, or no longer for the user's eyes.
    for (key, was) in &old.keys {
        if keys.get(key).is_none_or(|is| is.is_file() != was.is_file()) {
            let stale = place_of(key, *was);
            match rustix::fs::unlinkat(&dir, &*stale, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(cannot("remove a secret from the spark")(e.into())),
            }
        }
    }
    Ok(())
}

/// The variables of commands in a running spark, by what is in its files now. Nothing to read costs nothing.
pub fn variables(live: &Live, bundle: &Path) -> Result<Vec<(Key, Secret)>> {
    let Some(manifest) = manifest(bundle) else { return Ok(Vec::new()) };
    let mut wanted = manifest.keys.iter().filter(|(_, delivery)| delivery.is_env()).peekable();
    if wanted.peek().is_none() {
        return Ok(Vec::new());
    }
    let dir = open(live, &manifest)?;
    wanted.map(|(key, delivery)| Ok((key.clone(), read(&dir, key, *delivery)?))).collect()
}

/// The directory inside, if it still is the tmpfs that was mounted.
fn open(live: &Live, manifest: &Manifest) -> Result<OwnedFd> {
    let gone = || {
        Error::secret(
            format!("{DIR} in the spark is no longer what was mounted there"),
            "mount it anew: `spark stop`, then `spark resume`",
        )
    };
    let root = attach::root_of(live).map_err(cannot("open the spark's root"))?;
    let dir = sys::beneath::open_dir(&root, Path::new(DIR)).map_err(|_| gone())?;
    match rustix::fs::fstat(&dir) {
        Ok(stat) if stat.st_dev == manifest.device => Ok(dir.into()),
        _ => Err(gone()),
    }
}

fn read(dir: &OwnedFd, key: &Key, delivery: Delivery) -> Result<Secret> {
    // Nothing is followed, and nothing left: the spark's root can write here.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let read = || -> io::Result<Locked> {
        let file = rustix::fs::openat2(dir, &*place_of(key, delivery), flags, Mode::empty(), resolve)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Locked::read(File::from(file), MAX_VALUE)
    };
    read().map(Locked::into_secret).map_err(|source| Error::Secret {
        what: format!("the secret {key} cannot be read in the spark's {DIR}"),
        hint: "something in the spark has changed it: put it back with `spark secrets refresh`".into(),
        source: Some(source),
    })
}

/// Where a secret's file is, below the tmpfs.
fn place_of(key: &Key, delivery: Delivery) -> String {
    if delivery.is_file() { key.to_string() } else { format!("{HIDDEN}/{key}") }
}

/// Writes every secret beside its place first, and then puts each there by a rename.
fn write_all(dir: &OwnedFd, filling: &Filling, first_id: u32) -> io::Result<()> {
    let sub = |name: &str| subdirectory(dir, name, first_id);
    let fresh = sub(TEMPORARY)?;
    clear(&fresh)?;
    let hidden = match filling.secrets.iter().any(|s| !s.delivery.is_file()) {
        true => Some(sub(HIDDEN)?),
        false => None,
    };
    let written = filling.secrets.iter().try_for_each(|secret| {
        let (uid, gid) = if secret.delivery.is_file() { (filling.uid, filling.gid) } else { (0, 0) };
        write_one(&fresh, secret, (first_id + uid, first_id + gid))
    });
    let placed = written.and_then(|()| {
        fault::point("secrets-start.written").map_err(io::Error::other)?;
        filling.secrets.iter().try_for_each(|secret| {
            let to = if secret.delivery.is_file() { dir } else { hidden.as_ref().unwrap_or(dir) };
            Ok(rustix::fs::renameat(&fresh, secret.key.as_str(), to, secret.key.as_str())?)
        })
    });
    if placed.is_err() {
        for secret in &filling.secrets {
            let _ = rustix::fs::unlinkat(&fresh, secret.key.as_str(), AtFlags::empty());
        }
    }
    let _ = rustix::fs::unlinkat(dir, TEMPORARY, AtFlags::REMOVEDIR);
    placed
}

/// Removes the values that a command which was killed had not put into their places: nobody may want them any more.
fn clear(dir: &OwnedFd) -> io::Result<()> {
    // Not for as long as something inside makes new ones.
    for entry in rustix::fs::Dir::read_from(dir)?.take(2 * MOST + 2) {
        let _ = rustix::fs::unlinkat(dir, entry?.file_name(), AtFlags::empty());
    }
    Ok(())
}

/// A directory that only the spark's root enters, made if it is not there.
fn subdirectory(dir: &OwnedFd, name: &str, first_id: u32) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let sub = rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve)?;
    give(&sub, (first_id, first_id))?;
    Ok(sub)
}

fn write_one(dir: &OwnedFd, secret: &Delivered, owner: (u32, u32)) -> io::Result<()> {
    let name = secret.key.as_str();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o400))?;
    give(&file, owner)?;
    File::from(file).write_all(secret.value.expose_secret().bytes())
}

fn give(fd: impl AsFd, (uid, gid): (u32, u32)) -> io::Result<()> {
    use rustix::fs::{Gid, Uid};
    Ok(rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}
