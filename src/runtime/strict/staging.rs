//! Mounts that libcontainer cannot make itself, made before it is called.
//!
//! - The source of a bind mount may lie where the root of the container's user namespace cannot go. runc opens it before.
//! - libcontainer does not know `tmpcopyup`, and gives a memory filesystem not the mode of the directory that it covers.
//!
//! So they are mounted in a mount namespace of this process, at places that everybody may search, and libcontainer binds
//! them from there: its container begins with a copy of that namespace. Nothing of it is on the host, whatever happens
//! to this process. Hooks that run beside the container find the host's namespace by a detour (`hooks`).

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use libcontainer::syscall::linux::{MountOption, MountRecursive};
use rustix::fs::{FileType, Mode, OFlags};
use serde_json::{Value, json};

use super::copyup;
use super::create::Creation;
use crate::error::{Error, Result};
use crate::runtime::place::no_mount_namespace;
use crate::sys;

const COPY_UP: &str = "tmpcopyup";

/// The way back to where this process came from.
#[derive(Debug)]
pub(super) struct Staging {
    namespace: OwnedFd,
    directory: OwnedFd,
}

/// One of `mounts`, as the configuration has it.
struct Mount<'a> {
    destination: &'a Path,
    source: PathBuf,
    kind: &'a str,
    options: Vec<&'a str>,
}

impl<'a> Mount<'a> {
    fn of(mount: &'a Value, bundle: &Path) -> Mount<'a> {
        let text = |key: &str| mount.get(key).and_then(Value::as_str).unwrap_or_default();
        let options = mount.get("options").and_then(Value::as_array);
        Mount {
            destination: Path::new(text("destination")),
            source: bundle.join(text("source")),
            kind: text("type"),
            options: options.into_iter().flatten().filter_map(Value::as_str).collect(),
        }
    }

    fn has(&self, option: &str) -> bool {
        self.options.contains(&option)
    }

    fn is_bind(&self) -> bool {
        self.kind == "bind" || self.has("bind") || self.has("rbind")
    }

    fn is_memory(&self) -> bool {
        !self.is_bind() && self.kind == "tmpfs"
    }

    fn copies_up(&self) -> bool {
        self.is_memory() && self.has(COPY_UP)
    }

    /// Whether it gets something from the directory that it covers: its content, or its mode.
    fn looks_below(&self) -> bool {
        self.is_memory() && (self.has(COPY_UP) || !self.options.iter().any(|o| o.starts_with("mode=")))
    }

    fn wrong(&self, why: &str) -> Error {
        Error::usage(format!("the mount at {}: {why}", self.destination.display()))
    }
}

impl Staging {
    /// Does it, if something needs it. `config` is what libcontainer gets.
    pub(super) fn new(creation: &Creation, config: &mut Value) -> Result<Option<Staging>> {
        let bundle = &creation.bundle;
        let Some(list) = config.get("mounts").and_then(Value::as_array).cloned() else { return Ok(None) };
        let mounts: Vec<Mount> = list.iter().map(|mount| Mount::of(mount, bundle)).collect();
        let has_users = namespace(config, "user").is_some();
        let needed = |mount: &Mount| mount.looks_below() || (has_users && mount.is_bind());
        let mut changed: Vec<Value> = list.iter().zip(&mounts).map(|(value, m)| plain(value, m)).collect();
        let own =
            namespace(config, "mount").is_some_and(|n| n["path"].as_str().unwrap_or_default().is_empty());
        if let (false, Some(mount)) = (own, mounts.iter().find(|mount| mount.copies_up())) {
            return Err(mount.wrong("tmpcopyup needs a new mount namespace in linux.namespaces"));
        }
        let mut staging = None;
        if own && mounts.iter().any(needed) {
            staging = Some(Staging::enter(&creation.stage)?);
            Stage { creation, config, has_users, scratch: None }.fill(&mounts, &mut changed)?;
        }
        if let Some(staging) = &staging {
            super::hooks::lead_back(config, &staging.namespace);
        }
        config["mounts"] = changed.into();
        Ok(staging)
    }

    /// Goes into a mount namespace of this process's own, with a place in it that everybody may search.
    fn enter(stage: &Path) -> Result<Staging> {
        DirBuilder::new().recursive(true).mode(0o711).create(stage).map_err(Error::io("create", stage))?;
        let failed = |e: io::Error| Error::io("mount something at", stage)(e);
        let open = |path: &str, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        let directory = open(".", OFlags::PATH).map_err(|e| failed(e.into()))?;
        let namespace = open("/proc/self/ns/mnt", OFlags::RDONLY).map_err(|e| failed(e.into()))?;
        sys::mount::unshare_beside(stage).map_err(no_mount_namespace)?;
        let staging = Staging { namespace, directory };
        let top = sys::mount::tmpfs_with(["source=spark", "mode=0711"]).map_err(failed)?;
        sys::mount::attach(top, stage).map_err(failed)?;
        Ok(staging)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let back =
            sys::mount::join(&self.namespace).and_then(|()| Ok(rustix::process::fchdir(&self.directory)?));
        if let Err(e) = back {
            tracing::warn!("cannot go back to the caller's mount namespace: {e}");
        }
    }
}

/// Makes the mounts.
struct Stage<'a> {
    creation: &'a Creation,
    config: &'a Value,
    /// Whether the container has a user namespace.
    has_users: bool,
    /// The root filesystem with what is mounted upon it so far, as far as that matters to `tmpcopyup`.
    scratch: Option<OwnedFd>,
}

impl Stage<'_> {
    fn fill(mut self, mounts: &[Mount<'_>], changed: &mut [Value]) -> Result<()> {
        let last = mounts.iter().rposition(Mount::looks_below);
        if last.is_some() {
            self.scratch = Some(self.copy_of_root()?);
        }
        for (number, mount) in mounts.iter().enumerate() {
            let matters = last.is_some_and(|last| number < last);
            let change = &mut changed[number];
            let tree = if mount.is_bind() && (self.has_users || matters) {
                self.bound(mount)?
            } else if mount.copies_up() {
                self.copied_up(mount)?
            } else if mount.looks_below() || matters {
                if let (true, Some((_, mode))) = (mount.looks_below(), self.covered(mount)?) {
                    let options = mount.options.iter().map(|o| (*o).to_owned()).chain([mode]);
                    change["options"] = options.collect();
                }
                sys::mount::tmpfs_with([]).map_err(Error::sys("make a memory filesystem"))?
            } else {
                continue;
            };
            if matters {
                self.lay(mount, &tree)?;
            }
            if mount.copies_up() {
                let flags = mount.options.iter().filter(|option| is_flag(option));
                change["type"] = json!("bind");
                change["options"] = ["bind"].iter().chain(flags).copied().collect();
            }
            if mount.copies_up() || (mount.is_bind() && self.has_users) {
                let place = self.creation.stage.join(number.to_string());
                attach(tree, &place)?;
                change["source"] = json!(place);
            }
        }
        Ok(())
    }

    /// The directory that a mount is going to cover, and the option that gives its mode. None if there is none yet.
    fn covered(&self, mount: &Mount<'_>) -> Result<Option<(std::fs::File, String)>> {
        let Some(scratch) = &self.scratch else { return Ok(None) };
        let look = || match sys::beneath::open_dir(scratch, mount.destination) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            dir => {
                let dir = dir?;
                let mode = format!("mode={:04o}", rustix::fs::fstat(&dir)?.st_mode & 0o7777);
                Ok(Some((dir, mode)))
            }
        };
        look().map_err(Error::io("look at what is covered at", mount.destination))
    }

    /// What a bind mount shows.
    fn bound(&self, mount: &Mount<'_>) -> Result<OwnedFd> {
        let failed = |e: io::Error| Error::io("open the source of a mount", &mount.source)(e);
        let source = rustix::fs::open(&mount.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        source
            .map_err(io::Error::from)
            .and_then(|s| sys::mount::clone_tree_of(s, mount.has("rbind")))
            .map_err(failed)
    }

    /// A memory filesystem with what is at its place so far.
    fn copied_up(&self, mount: &Mount<'_>) -> Result<OwnedFd> {
        let failed = |e: io::Error| Error::io("copy up what is at", mount.destination)(e);
        let covered = self.covered(mount)?;
        let mode = covered.as_ref().map(|(_, mode)| mode.as_str());
        let data = mount.options.iter().filter(|o| !is_flag(o) && **o != COPY_UP);
        let (owner, rest): (Vec<&str>, Vec<&str>) =
            data.partition(|o| o.starts_with("uid=") || o.starts_with("gid="));
        let options = ["source=tmpfs"].into_iter().chain(mode).chain(rest);
        let tree = sys::mount::tmpfs_with(options).map_err(failed)?;
        let id = |key: &str, map: &str| -> Result<u32> {
            let given = owner.iter().rev().find_map(|o| o.strip_prefix(key));
            let id = given.map_or(Ok(0), str::parse).map_err(|_| mount.wrong("uid and gid are numbers"))?;
            self.outside(id, map)
                .ok_or_else(|| mount.wrong("its owner has no number outside of the container"))
        };
        let (uid, gid) = (id("uid=", "uid")?, id("gid=", "gid")?);
        sys::tree::set_node_owner(&tree, uid, gid).map_err(failed)?;
        if let Some((covered, _)) = covered {
            copyup::copy(covered, &tree, !self.has_users).map_err(failed)?;
        }
        Ok(tree)
    }

    /// The host's number of a user or group of the container.
    fn outside(&self, id: u32, which: &str) -> Option<u32> {
        if !self.has_users {
            return Some(id);
        }
        let path = namespace(self.config, "user").and_then(|n| n["path"].as_str()).unwrap_or_default();
        if !path.is_empty() {
            // `/proc/PID/ns/user`, as podman has it for the containers of a pod.
            let process = Path::new(path).ancestors().nth(2).filter(|p| p.starts_with("/proc"))?;
            let map = std::fs::read_to_string(process.join(format!("{which}_map"))).ok()?;
            return super::enter::outside(&map, id);
        }
        let maps = self.config.pointer(&format!("/linux/{which}Mappings")).and_then(Value::as_array)?;
        super::create::mapped(maps, id.into())
    }

    fn copy_of_root(&self) -> Result<OwnedFd> {
        let root = self.config.pointer("/root/path").and_then(Value::as_str).unwrap_or_default();
        let root = self.creation.bundle.join(root);
        let failed = |e: io::Error| Error::io("mount", &root)(e);
        let open = || -> io::Result<OwnedFd> {
            let dir =
                rustix::fs::open(&root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let place = self.creation.stage.join("root");
            std::fs::create_dir(&place)?;
            sys::mount::attach(sys::mount::clone_tree_of(dir, true)?, &place)?;
            sys::file::open_dir(&place)
        };
        open().map_err(failed)
    }

    /// Mounts something upon the copy of the root. What has no place there yet covers nothing.
    fn lay(&self, mount: &Mount<'_>, tree: &OwnedFd) -> Result<()> {
        let Some(scratch) = &self.scratch else { return Ok(()) };
        let lay = || -> io::Result<()> {
            if !self.has_users {
                // As libcontainer is about to do.
                sys::beneath::make_mount_point(scratch, mount.destination, is_dir(tree)?)?;
            }
            match sys::beneath::open_place(scratch.as_fd(), mount.destination) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                place => sys::mount::attach_upon(sys::mount::clone_tree_of(tree, true)?, place?),
            }
        };
        lay().map_err(Error::io("mount something at", mount.destination))
    }
}

/// A mount as libcontainer gets it: with a source that does not depend on a working directory, one even where nothing is
/// mounted from anywhere, and without `tmpcopyup`.
fn plain(value: &Value, mount: &Mount<'_>) -> Value {
    let mut value = value.clone();
    if mount.is_bind() && value.get("source").is_some() {
        value["source"] = json!(mount.source);
    } else if value.get("source").is_none() {
        value["source"] = json!("none");
    }
    if mount.has(COPY_UP) {
        value["options"] = json!(mount.options.iter().filter(|o| **o != COPY_UP).collect::<Vec<_>>());
    }
    value
}

/// Whether an option is one of the mount, and not of its filesystem.
fn is_flag(option: &str) -> bool {
    MountOption::from_str(option).is_ok() || MountRecursive::from_str(option).is_ok()
}

/// A namespace of the configuration.
fn namespace<'a>(config: &'a Value, kind: &str) -> Option<&'a Value> {
    let all = config.pointer("/linux/namespaces").and_then(Value::as_array);
    all.into_iter().flatten().find(|n| n["type"] == kind)
}

fn is_dir(tree: impl AsFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode).is_dir())
}

fn attach(tree: OwnedFd, place: &Path) -> Result<()> {
    let attach = || -> io::Result<()> {
        if is_dir(&tree)? {
            std::fs::create_dir(place)?;
        } else {
            std::fs::File::create_new(place)?;
        }
        sys::mount::attach(&tree, place)
    };
    attach().map_err(Error::io("mount something at", place))
}

/// The path by which a child of this process opens one of its descriptors.
pub(super) fn path_of(fd: impl AsFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_fd().as_raw_fd()).into()
}
