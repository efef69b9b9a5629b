//! Which containers there are, and what they are doing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use libcontainer::config::YoukiConfig;
use libcontainer::container::ContainerStatus;
use serde_json::Value;

use super::create::Creation;
use super::making::{Noted, PREFIX};
use crate::error::{Error, Result};
use crate::runtime::live;
use crate::runtime::youki::Handle;
use crate::sys;
use crate::sys::flock::Mode;
use crate::sys::process::ProcessId;

/// A container by its name, whether it is there or not.
#[derive(Debug, Clone)]
pub struct Container {
    pub id: String,
    /// The directory that `--root` names.
    pub root: PathBuf,
}

/// What a container is doing, in the specification's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Creating => "creating",
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "stopped",
        }
    }
}

/// The specification's `State`, and what runc adds to it.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub oci_version: String,
    pub id: String,
    pub status: State,
    /// As the host numbers it. None if it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The user who made it.
    pub owner: String,
}

/// `spark.json` beside libcontainer's own `state.json`, which has a bare pid only.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Own {
    init: ProcessId,
    /// Whether its session keyring is not its maker's.
    #[serde(default)]
    keyring: bool,
    /// What libcontainer's record is made anew of.
    #[serde(default)]
    bundle: Option<PathBuf>,
    #[serde(default)]
    created: Option<DateTime<Utc>>,
    /// Directories of its cgroup that were there before.
    #[serde(default)]
    before: Vec<PathBuf>,
}

/// What libcontainer calls a first process that waits for the start.
const WAITING: &str = "youki:[2:INIT]";
/// Larger than any real one.
const MAX: u64 = 16 << 20;

impl Container {
    /// # Errors
    /// `usage` for a name that is no file name of letters, digits and `_+-.`, or one that is kept for the making of others.
    pub fn new(root: &Path, id: &str) -> Result<Container> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        let taken = id.is_empty() || id == "." || id == ".." || id.starts_with(PREFIX);
        if taken || id.len() > 255 - PREFIX.len() || !id.chars().all(plain) {
            return Err(Error::usage(format!(
                "`{}` is no container id: letters, digits and `_+-.` make one",
                id.escape_default()
            )));
        }
        Ok(Container { id: id.into(), root: root.into() })
    }

    /// All that are in a directory, by name.
    pub fn all(root: &Path) -> Result<Vec<Container>> {
        let entries = match std::fs::read_dir(root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::io("list", root))?,
        };
        let mut found: Vec<Container> = entries
            .flatten()
            .filter(|e| e.path().join("state.json").exists())
            .filter_map(|e| Container::new(root, e.file_name().to_str()?).ok())
            .collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    /// Where what is known of it is kept.
    pub fn dir(&self) -> PathBuf {
        self.root.join(&self.id)
    }

    /// Locks it against other commands.
    ///
    /// # Errors
    /// `not_found` if there is no such container.
    pub fn lock(&self, mode: Mode) -> Result<OwnedFd> {
        sys::flock::lock_dir(&self.dir(), mode).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => self.missing(),
            _ => Error::io("lock", self.dir())(e),
        })
    }

    pub(super) fn missing(&self) -> Error {
        Error::NotFound { kind: "container", name: self.id.clone(), in_project: None, near: Vec::new() }
    }

    /// A state that does not allow something.
    pub fn refused(&self, action: &'static str, state: State) -> Error {
        let hint = match state {
            State::Running | State::Paused => format!("end it first: `spark-oci kill {} KILL`", self.id),
            _ => format!("see it with `spark-oci state {}`", self.id),
        };
        let state = match state {
            // containerd and podman look for runc's words.
            State::Stopped => "stopped (container not running)".into(),
            other => other.as_str().into(),
        };
        Error::WrongState { action, kind: "container", name: self.id.clone(), state, hint }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.dir().join(name);
        let file = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => self.missing(),
            _ => Error::io("open", &path)(e),
        })?;
        sys::file::read_bounded(file, MAX).map_err(Error::io("read", path))
    }

    fn own_path(&self) -> PathBuf {
        self.dir().join("spark.json")
    }

    /// Its first process, whether it lives or not. None if its making was not finished.
    pub fn init(&self) -> Option<ProcessId> {
        self.own().map(|own| own.init)
    }

    /// Whether its processes have no session keyring of their callers.
    pub fn has_keyring(&self) -> bool {
        self.own().is_some_and(|own| own.keyring)
    }

    fn own(&self) -> Option<Own> {
        serde_json::from_slice(&self.read("spark.json").ok()?).ok()
    }

    /// Records what was made of which configuration.
    pub(super) fn record(&self, init: ProcessId, creation: &Creation) -> Result<()> {
        live::write_json(&self.dir().join("config.json"), &creation.config)?;
        let (bundle, created) = (Some(creation.bundle.clone()), Some(Utc::now()));
        let before = Noted::of(self).map(|noted| noted.before).unwrap_or_default();
        let own = Own { init, keyring: creation.new_keyring, bundle, created, before };
        live::write_json(&self.own_path(), &own)
    }

    /// The configuration that it was made of, which may have changed in the bundle since.
    pub fn config(&self) -> Result<Value> {
        let path = self.dir().join("config.json");
        serde_json::from_slice(&self.read("config.json")?).map_err(|e| Error::corrupt(&path, e))
    }

    /// libcontainer's record. It is written in place, so that a reader may find half of it: that one looks again. If it
    /// stays so, a command was killed over it, and it is made of what else is known.
    pub(super) fn libcontainer(&self) -> Result<libcontainer::container::State> {
        let path = self.dir().join("state.json");
        let mut last = None;
        for _ in 0..50 {
            match serde_json::from_slice(&self.read("state.json")?) {
                Ok(state) => return Ok(state),
                Err(e) => last = Some(e),
            }
            sys::deadline::pause(Duration::from_millis(1)).map_err(Error::io("read", &path))?;
        }
        self.remade().ok_or_else(|| Error::corrupt(&path, last.map(|e| e.to_string()).unwrap_or_default()))
    }

    /// libcontainer's record as it would be. None for a container whose making was not finished.
    fn remade(&self) -> Option<libcontainer::container::State> {
        let Own { init, bundle, created, .. } = self.own()?;
        let config = self.config().ok()?;
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", init.pid)).unwrap_or_default();
        let status = match init.alive() {
            false => ContainerStatus::Stopped,
            true if comm.trim_end() == WAITING => ContainerStatus::Created,
            true => ContainerStatus::Running,
        };
        let mut state = libcontainer::container::State::new(&self.id, status, Some(init.pid), bundle?);
        state.created = created;
        state.creator = Some(rustix::process::geteuid().as_raw());
        state.annotations = serde_json::from_value(config["annotations"].clone()).ok().flatten();
        Some(state)
    }

    /// Writes libcontainer's record anew if a command was killed over it: libcontainer reads it by itself. The caller has
    /// the lock.
    pub(super) fn mend(&self) -> Result<()> {
        if libcontainer::container::State::load(&self.dir()).is_ok() {
            return Ok(());
        }
        let state = self.libcontainer()?;
        live::write_json(&self.dir().join("state.json"), &state)
    }

    /// Its cgroup, in every hierarchy.
    pub fn cgroup(&self) -> Result<PathBuf> {
        match YoukiConfig::load(self.dir()) {
            Ok(config) => Ok(config.cgroup_path),
            // It is noted before libcontainer is called.
            Err(e) => Noted::of(self).map(|noted| noted.cgroup).ok_or_else(|| self.failed("look at", &e)),
        }
    }

    /// The same container for those who deal with a spark's.
    pub fn handle(&self) -> Result<Handle> {
        let before = self.own().map(|own| own.before).or_else(|| Noted::of(self).map(|noted| noted.before));
        let (id, oci) = (self.id.clone(), self.root.clone());
        Ok(Handle { id, oci, cgroup: self.cgroup()?, before: before.unwrap_or_default() })
    }

    pub(super) fn failed(&self, action: &'static str, e: &dyn std::error::Error) -> Error {
        Error::Runtime { action, id: self.id.clone(), detail: crate::runtime::youki::chain(e) }
    }

    /// What it is doing.
    pub fn state(&self) -> Result<State> {
        let recorded = self.libcontainer()?;
        Ok(self.state_of(&recorded))
    }

    fn state_of(&self, recorded: &libcontainer::container::State) -> State {
        let Some(init) = self.init() else {
            // Its maker is at work, or was killed.
            return match recorded.status {
                ContainerStatus::Stopped => State::Stopped,
                _ => State::Creating,
            };
        };
        match recorded.status {
            _ if !init.alive() => State::Stopped,
            ContainerStatus::Creating | ContainerStatus::Created => State::Created,
            // The kernel's freezer is what counts.
            _ if self.cgroup().is_ok_and(|c| live::is_frozen(&c)) => State::Paused,
            _ => State::Running,
        }
    }

    /// All that is known of it.
    pub fn status(&self) -> Result<Status> {
        let recorded = self.libcontainer()?;
        let status = self.state_of(&recorded);
        let root = self.config().ok().and_then(|c| c.pointer("/root/path")?.as_str().map(PathBuf::from));
        let rootfs = root.map(|root| recorded.bundle.join(root)).unwrap_or_default();
        Ok(Status {
            oci_version: recorded.oci_version,
            id: recorded.id,
            status,
            pid: self.init().map(|i| i.pid).filter(|_| status != State::Stopped),
            rootfs,
            bundle: recorded.bundle,
            created: recorded.created,
            annotations: recorded.annotations.into_iter().flatten().collect(),
            owner: recorded.creator.map(owner).unwrap_or_default(),
        })
    }
}

/// A user of the host by name, or by number if none has it.
fn owner(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>());
    let name = name
        .filter(|f| f.get(2).and_then(|id| id.parse().ok()) == Some(uid))
        .find_map(|f| f.first().copied());
    name.map_or_else(|| uid.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_file_name() {
        let root = Path::new("/r");
        assert!(Container::new(root, "a.b_C+1-2").is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\0", ".new-a", &"a".repeat(251)] {
            assert!(Container::new(root, bad).is_err(), "{bad:?}");
        }
    }
}
