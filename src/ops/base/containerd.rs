//! `base import containerd://NAMESPACE/CONTAINER`: the root of a container of containerd's as a base.
//!
//! A container that runs has its root mounted in its bundle; of one that does not, containerd says where it is. If that is a
//! subvolume, as containerd's btrfs snapshotter makes them, a snapshot of it is a base: at once if the pool is on the
//! same filesystem, else it is sent.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::super::{Observer, Sparks};
use super::{BaseInfo, make};
use crate::domain::name::Name;
use crate::error::{Error, Result};
use crate::image::containerd::{self, Snapshot};
use crate::pool::apply::{Target, apply};
use crate::pool::stream::Reader;
use crate::pool::{btrfs, stage};
use crate::sys::flock::Mode;
use crate::sys::{self, tree};

/// What the URL of a container begins with.
const SCHEME: &str = "containerd://";
/// Where containerd keeps bundles below its state directory.
const BUNDLES: &str = "io.containerd.runtime.v2.task";
/// Where containerd listens, unless `CONTAINERD_ADDRESS` says otherwise, which `ctr` obeys too.
const SOCKET: &str = "/run/containerd/containerd.sock";
/// The names of snapshots that are made to be sent. Whoever finds one that nobody holds removes it.
const TEMPORARY: &str = "spark-import-";

/// A container as containerd knows it: its namespaces are what projects are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerdRef {
    namespace: String,
    id: String,
}

impl std::fmt::Display for ContainerdRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.namespace, self.id)
    }
}

impl ContainerdRef {
    /// Parses `containerd://NAMESPACE/CONTAINER`. Nothing if it is no such URL.
    ///
    /// # Errors
    /// `usage` for one with names that containerd does not allow.
    pub fn parse(url: &str) -> Option<Result<ContainerdRef>> {
        let rest = url.strip_prefix(SCHEME)?;
        let is_name = |name: &str| {
            let inner = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && name.bytes().all(inner)
        };
        let parts = rest.split_once('/').filter(|(namespace, id)| is_name(namespace) && is_name(id));
        Some(match parts {
            Some((namespace, id)) => Ok(ContainerdRef { namespace: namespace.into(), id: id.into() }),
            None => Err(Error::Usage {
                message: format!("`{url}` does not name a container"),
                hint: Some("write it like `containerd://default/web` or `containerd://k8s.io/ID`".into()),
            }),
        })
    }
}

impl Sparks {
    /// Makes a base of the root of a container of containerd's, as it is now. If it runs, its processes go on: what they
    /// have written is in it, as after a power cut.
    ///
    /// # Errors
    /// `host` if there is no such container, `not_supported` if its root has no snapshots.
    pub(super) fn base_import_containerd(
        &self,
        container: &ContainerdRef,
        name: &Name,
        observer: &dyn Observer,
    ) -> Result<BaseInfo> {
        let making = self.begin_new_base(name, observer)?;
        let _room = self.room()?;
        let mounts = mounts()?;
        let root = match mounted(container, &mounts)? {
            Some(mount) => Root::Mounted(mount),
            None => Root::Kept(kept(container)?),
        };
        let stage = self.pool.stage()?;
        let copy = stage.path().join("root");
        let draft = stage.path().join("draft");
        match btrfs::snapshot(&root.path(), &draft) {
            // Not on the filesystem of the pool.
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EXDEV) => {
                self.send_to(&root, &mounts, &draft, observer)?;
            }
            made => {
                made?;
                remove_devices(&draft, observer)?;
            }
        }
        // A snapshot of it, and not itself made read-only: the one is durable when it is made, the other is not.
        btrfs::snapshot_read_only(&draft, &copy)?;
        stage::destroy(&draft)?;
        stage.write("base.json", &make::new_record(format!("import {container}"), None))?;
        self.publish_base(stage, name, &making)
    }

    /// Sends a snapshot of a subvolume from another filesystem.
    fn send_to(
        &self,
        root: &Root<'_>,
        mounts: &[Mount],
        draft: &Path,
        observer: &dyn Observer,
    ) -> Result<()> {
        let (beside, _held) = match root {
            Root::Mounted(mount) => (directory_of(mount, mounts)?, None),
            Root::Kept(kept) => kept.directory().map(|(path, held)| (path, Some(held)))?,
        };
        remove_leftovers(&beside);
        let temporary = Temporary::of(&root.path(), &beside, observer)?;
        let uuid = btrfs::info(&temporary.path)?.uuid;
        let limits = self.import_limits()?;
        let top = sys::file::open_dir(&temporary.path).map_err(Error::io("open", &temporary.path))?;
        observer.step("copying from containerd's filesystem", None);
        let sent = sys::btrfs::send(top, sys::btrfs::SendOptions::default());
        let sent = sent.map_err(Error::io("send", &temporary.path))?;
        let counted = Counted { from: sent.take(limits.bytes), observer };
        btrfs::create(draft)?;
        let target = Target { top: draft, uuid: &uuid, parent: None, entries: limits.entries };
        // The kernel has written it just now, so that it is read here.
        let mut reader = Reader::new(BufReader::with_capacity(128 << 10, counted))?;
        let summary = apply(|| reader.next(), &target)?;
        if summary.ids_mapped > 0 {
            let count = summary.ids_mapped;
            observer.notice(&format!("{count} files have owners beyond 65,535: they are 65534's now"));
        }
        Ok(())
    }
}

/// Removes the device nodes below a directory that only we write: a container of containerd's may make them, and in a
/// spark they would lead to the host's devices.
fn remove_devices(top: &Path, observer: &dyn Observer) -> Result<()> {
    let remove = || -> io::Result<u64> {
        let root = sys::file::open_dir(top)?;
        let (mut removed, mut todo) = (0, vec![Vec::new()]);
        while let Some(path) = todo.pop() {
            let dir = tree::open_dir(&root, &path)?;
            for name in tree::names(&dir)? {
                match FileType::from_raw_mode(tree::stat(&dir, &name)?.st_mode) {
                    FileType::Directory if path.is_empty() => todo.push(name),
                    FileType::Directory => todo.push([&path[..], &name].join(&b'/')),
                    FileType::BlockDevice | FileType::CharacterDevice => {
                        tree::unlink(&dir, &name)?;
                        removed += 1;
                    }
                    _ => {}
                }
            }
        }
        Ok(removed)
    };
    let removed = remove().map_err(Error::io("remove device nodes from", top))?;
    if removed > 0 {
        observer.notice(&format!("{removed} device nodes were left out: a spark has those of its own /dev"));
    }
    Ok(())
}

/// The root of a container.
enum Root<'a> {
    Mounted(&'a Mount),
    Kept(Kept),
}

impl Root<'_> {
    fn path(&self) -> PathBuf {
        match self {
            Root::Mounted(mount) => mount.target.clone(),
            Root::Kept(kept) => path_of(&kept.top),
        }
    }
}

/// A root that is mounted nowhere but by us, and where nobody sees it.
struct Kept {
    device: PathBuf,
    top: OwnedFd,
}

impl Kept {
    /// The directory that it stands in, and what holds that mounted.
    fn directory(&self) -> Result<(PathBuf, OwnedFd)> {
        let within = btrfs::info(&path_of(&self.top))?.within;
        let (subvolume, dir) = within.ok_or_else(|| Error::NotSupported {
            what: format!("cannot snapshot the top of {}", self.device.display()),
            hint: None,
        })?;
        let held = mounted_alone(&self.device, subvolume)?;
        let names = match dir {
            TOP => vec![Vec::new()],
            dir => sys::file::open_dir(&path_of(&held))
                .and_then(|top| sys::btrfs::paths_of(top, dir))
                .map_err(Error::io("look into", &self.device))?,
        };
        let name = names.into_iter().next().unwrap_or_default();
        Ok((path_of(&held).join(OsStr::from_bytes(&name)), held))
    }
}

/// The number of the directory at the top of every subvolume.
const TOP: u64 = 256;

/// What is open, by a path that leads to it whatever is mounted where. Not the link itself.
fn path_of(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}/.", fd.as_raw_fd()).into()
}

fn mounted_alone(device: &Path, subvolume: u64) -> Result<OwnedFd> {
    sys::mount::subvolume(device, subvolume).map_err(Error::io("mount", device))
}

/// The root of a container that does not run, from what containerd says.
fn kept(container: &ContainerdRef) -> Result<Kept> {
    let named = std::env::var_os("CONTAINERD_ADDRESS").filter(|socket| !socket.is_empty());
    let socket = named.map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    match containerd::snapshot_of(&socket, &container.namespace, &container.id)? {
        Some(Snapshot::Btrfs { device, subvolume }) => {
            let top = mounted_alone(&device, subvolume)?;
            Ok(Kept { device, top })
        }
        Some(Snapshot::Other(snapshotter)) => {
            let kind = if snapshotter.is_empty() { "no snapshotter" } else { &snapshotter };
            Err(not_supported(container, &format!("{kind}'s")))
        }
        None => Err(Error::Host {
            what: format!("there is no {container} on this host"),
            hint: "list them with `ctr --namespace NAMESPACE container list`; CONTAINERD_ADDRESS names containerd's \
                   socket if it is not the usual one"
                .into(),
            source: None,
        }),
    }
}

fn not_supported(container: &ContainerdRef, kind: &str) -> Error {
    Error::NotSupported {
        what: format!("cannot snapshot the root of {container}: it is {}, and not a btrfs subvolume", kind),
        hint: Some("use containerd's btrfs snapshotter: `ctr run --snapshotter btrfs …`".into()),
    }
}

/// A line of mountinfo.
#[derive(Debug)]
struct Mount {
    device: String,
    /// What of the filesystem is mounted.
    root: PathBuf,
    target: PathBuf,
    kind: String,
}

fn mounts() -> Result<Vec<Mount>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(2);
    let device = before.next()?.to_owned();
    let (root, target) = (unescaped(before.next()?), unescaped(before.next()?));
    Some(Mount { device, root, target, kind: after.split(' ').next()?.to_owned() })
}

/// A path with the four characters that the kernel writes in octal.
fn unescaped(text: &str) -> PathBuf {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    pairs.iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain)).into()
}

/// Where the root of a container is mounted, if it is.
fn mounted<'a>(container: &ContainerdRef, mounts: &'a [Mount]) -> Result<Option<&'a Mount>> {
    let end = Path::new(BUNDLES).join(&container.namespace).join(&container.id).join("rootfs");
    // The one that is seen is mounted last.
    let Some(mount) = mounts.iter().rev().find(|mount| mount.target.ends_with(&end)) else { return Ok(None) };
    if mount.kind == "btrfs" && btrfs::is_subvolume(&mount.target) {
        return Ok(Some(mount));
    }
    Err(not_supported(container, &format!("on {}", mount.kind)))
}

/// The directory that a mounted subvolume stands in, as another mount of its filesystem shows it.
fn directory_of(subvolume: &Mount, mounts: &[Mount]) -> Result<PathBuf> {
    let parent = subvolume.root.parent().unwrap_or(Path::new("/"));
    let shows = |mount: &&Mount| mount.device == subvolume.device && parent.starts_with(&mount.root);
    let dirs = mounts.iter().filter(shows).filter_map(|mount| {
        let dir = mount.target.join(parent.strip_prefix(&mount.root).ok()?);
        dir.is_dir().then_some(dir)
    });
    dirs.into_iter().next().ok_or_else(|| Error::NotSupported {
        what: format!(
            "cannot snapshot {}: its filesystem is mounted nowhere else",
            subvolume.target.display()
        ),
        hint: Some("mount the btrfs of containerd's snapshotter where this host can see it".into()),
    })
}

/// A read-only snapshot that is only made to be sent. It is held for as long as it is needed.
struct Temporary {
    path: PathBuf,
    _lock: std::os::fd::OwnedFd,
}

impl Temporary {
    fn of(subvolume: &Path, beside: &Path, observer: &dyn Observer) -> Result<Temporary> {
        let path = beside.join(format!("{TEMPORARY}{}", ulid::Ulid::generate()));
        btrfs::snapshot(subvolume, &path)?;
        let temporary = match sys::flock::lock_dir(&path, Mode::Exclusive) {
            Ok(lock) => Temporary { path, _lock: lock },
            Err(e) => {
                let _ = btrfs::delete(&path);
                return Err(Error::io("lock", path)(e));
            }
        };
        remove_devices(&temporary.path, observer)?;
        btrfs::set_read_only(&temporary.path)?;
        Ok(temporary)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(e) = btrfs::delete(&self.path) {
            tracing::warn!("{e}: the next import removes it");
        }
    }
}

/// Removes what a killed import left.
fn remove_leftovers(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(TEMPORARY)) {
        if matches!(sys::flock::try_lock_dir(&entry.path()), Ok(Some(_))) {
            let _ = btrfs::delete(&entry.path());
        }
    }
}

/// A stream whose bytes are told as they come.
struct Counted<'a, R> {
    from: R,
    observer: &'a dyn Observer,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.observer.advance(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_containerd_allows_names_a_container() {
        let parsed = ContainerdRef::parse("containerd://k8s.io/0a1b").unwrap().unwrap();
        assert_eq!(parsed.to_string(), "containerd://k8s.io/0a1b");
        assert!(ContainerdRef::parse("./containerd").is_none());
        for url in [
            "containerd://web",
            "containerd:///web",
            "containerd://a/../b",
            "containerd://a/b/c",
            "containerd://a/",
        ] {
            assert!(ContainerdRef::parse(url).unwrap().is_err(), "{url}");
        }
    }

    #[test]
    fn a_subvolume_is_found_through_another_mount_of_its_filesystem() {
        let lines = "40 1 0:50 / /tmp rw - btrfs /dev/loop1 rw\n\
            41 1 0:50 /active/7 /run/c/io.containerd.runtime.v2.task/ns/a\\040b/rootfs rw shared:1 - btrfs /dev/loop1 rw\n";
        let mounts: Vec<Mount> = lines.lines().filter_map(parse).collect();
        assert_eq!(mounts[1].root, Path::new("/active/7"));
        assert!(mounts[1].target.ends_with("a b/rootfs"));
        let missing = ContainerdRef { namespace: "ns".into(), id: "a".into() };
        assert!(mounted(&missing, &mounts).unwrap().is_none());
    }
}
