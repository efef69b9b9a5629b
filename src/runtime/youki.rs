//! The life cycle of a container, through libcontainer.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libcontainer::config::YoukiConfig;
use libcontainer::container::{Container, ContainerStatus, State};
use oci_spec::runtime::Spec;

use super::live::{self, Live};
use crate::error::{Error, Result};
use crate::sys;

/// What libcontainer is given, below the bundle's directory.
pub const INNER: &str = "libcontainer";

/// A container of ours: its id, libcontainer's directory, and its cgroup.
#[derive(Debug, Clone)]
pub struct Handle {
    pub id: String,
    /// libcontainer's root.
    pub oci: PathBuf,
    pub cgroup: PathBuf,
    /// Directories of its cgroup, and below it, that were there before the container, in all hierarchies. They stay, and
    /// what is in those below is not the container's.
    pub before: Vec<PathBuf>,
}

/// The ways into a container's cgroups that make no processor wait, as a write to `cgroup.procs` does.
#[derive(Debug, Default)]
pub(super) struct Entrances {
    /// In each hierarchy of version 1: a thread moves itself there by writing `0`.
    pub(super) tasks: Vec<File>,
    /// The cgroup of version 2: a process is born there.
    pub(super) unified: Option<OwnedFd>,
}

impl Handle {
    /// Its directory below libcontainer's root.
    pub fn dir(&self) -> PathBuf {
        self.oci.join(&self.id)
    }

    fn load(&self, action: &'static str) -> Result<Container> {
        Container::load(self.dir()).map_err(|e| self.failed(action, e))
    }

    pub(super) fn failed(&self, action: &'static str, e: impl std::error::Error) -> Error {
        Error::Runtime { action, id: self.id.clone(), detail: chain(&e) }
    }

    /// Whether libcontainer's own records can be read. It empties a file and then writes it, so that a command that is
    /// killed leaves half of one.
    pub fn is_whole(&self) -> bool {
        State::load(&self.dir()).is_ok() && YoukiConfig::load(self.dir()).is_ok()
    }

    /// Makes libcontainer's records of a container that runs anew where they cannot be read: of the bundle, of what is
    /// known to run, and of what the kernel's freezer says. The caller has the spark's lock.
    pub fn mend(&self, bundle: &Path, live: &Live) -> Result<()> {
        if self.is_whole() {
            return Ok(());
        }
        let inner = bundle.join(INNER);
        let spec = Spec::load(inner.join("config.json")).map_err(|e| self.failed("look at", e))?;
        if YoukiConfig::load(self.dir()).is_err() {
            let config = YoukiConfig::from_spec(&spec, &self.id).map_err(|e| self.failed("look at", e))?;
            live::write_json(&self.dir().join("youki_config.json"), &config)?;
        }
        let frozen = live::is_frozen(&self.cgroup);
        let status = if frozen { ContainerStatus::Paused } else { ContainerStatus::Running };
        let mut state = State::new(&self.id, status, Some(live.init.pid), inner);
        state.annotations = spec.annotations().clone();
        state.creator = Some(rustix::process::geteuid().as_raw());
        // The bundle was written for this run.
        let made = std::fs::metadata(bundle.join("config.json")).and_then(|meta| meta.modified());
        state.created = made.ok().map(Into::into);
        tracing::info!(id = %self.id, "making libcontainer's record anew");
        live::write_json(&self.dir().join("state.json"), &state)
    }

    /// Freezes every process.
    pub fn pause(&self) -> Result<()> {
        // With cgroup v1 libcgroups gives them half a second to come to a stand, and lets go of them then. What waits for
        // a disk, or for a busy processor, may need longer.
        let mut left = 60;
        loop {
            match self.load("pause")?.pause() {
                Err(e) if left > 0 => {
                    tracing::debug!(id = %self.id, "it does not stand still yet: {e}");
                    left -= 1;
                }
                other => return other.map_err(|e| self.failed("pause", e)),
            }
        }
    }

    /// Thaws every process.
    pub fn thaw(&self) -> Result<()> {
        let thawed = self.load("resume").and_then(|mut c| c.resume().map_err(|e| self.failed("resume", e)));
        match thawed {
            // Its own record may be damaged. The kernel's freezer is what counts, here as for `is_frozen`.
            Err(e) => live::thaw(&self.cgroup).map_err(|_| e),
            done => done,
        }
    }

    /// Removes what is left of a container, ending what runs in it still. Whatever state a crash left it in, nothing
    /// of it is there afterwards.
    pub fn remove(&self) -> Result<()> {
        if self.dir().exists()
            && let Err(e) =
                self.load("delete").and_then(|mut c| c.delete(true).map_err(|e| self.failed("delete", e)))
        {
            tracing::debug!("libcontainer could not delete {}: {e}", self.id);
        }
        if self.dir().exists() || self.has_cgroup() {
            self.purge()?;
        }
        Ok(())
    }

    /// Whether something is there still of the cgroups that were made for it.
    pub(super) fn has_cgroup(&self) -> bool {
        self.cgroups().iter().flat_map(|top| self.made_in(top)).next().is_some()
    }

    /// What was made for it, or by it, of its cgroup in one hierarchy: each directory before what is above it.
    fn made_in(&self, top: &Path) -> Vec<PathBuf> {
        let mut own = live::own_of(top, &self.before);
        own.retain(|dir| !self.before.contains(dir));
        own
    }

    /// Makes directories of its cgroup anew that were there before: libcontainer removes them when it fails to make a container.
    pub(super) fn put_back(&self) -> Result<()> {
        for dir in self.before.iter().rev().filter(|dir| !dir.exists()) {
            std::fs::create_dir(dir).map_err(Error::io("create", dir))?;
            // Version 1 has no processors in a new one.
            for name in ["cpuset.cpus", "cpuset.mems"] {
                let above = dir.parent().map(|above| std::fs::read(above.join(name)));
                if let Some(Ok(content)) = above {
                    std::fs::write(dir.join(name), content).map_err(Error::io("write", dir.join(name)))?;
                }
            }
        }
        Ok(())
    }

    /// Its processes.
    pub(super) fn members(&self) -> Vec<(i32, OwnedFd)> {
        live::members_beside(&self.cgroup, &self.before)
    }

    /// What `remove` does where libcontainer cannot: its own record is damaged or half-written.
    pub(super) fn purge(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.cgroups();
            for top in &left {
                let all = live::own_of(top, &self.before);
                for dir in &all {
                    let _ = std::fs::write(dir.join("freezer.state"), "THAWED");
                }
                if !self.before.contains(top) {
                    let _ = std::fs::write(top.join("cgroup.kill"), "1");
                }
                for (_, fd) in self.members() {
                    let _ = sys::process::signal(&fd, rustix::process::Signal::KILL);
                    let _ = sys::deadline::ended(&fd, Duration::from_secs(1));
                }
                // One that a process made meanwhile keeps its parent, and is found in the next round.
                for dir in all.iter().filter(|dir| !self.before.contains(dir)) {
                    let _ = std::fs::remove_dir(dir);
                }
            }
            if !self.has_cgroup() {
                break;
            }
            if Instant::now() > deadline {
                return Err(Error::Busy {
                    what: format!("the cgroup of {}", self.id),
                    why: "processes in it do not end".into(),
                });
            }
            // The kernel takes processes out of a cgroup a moment after they end, and tells nobody.
            sys::deadline::pause(Duration::from_millis(2)).map_err(Error::sys("wait for the cgroup"))?;
        }
        sys::file::remove_all(&self.dir()).map_err(Error::io("remove", self.dir()))
    }

    /// Removes the cgroups that were made below its own, as far as no process is in them any more.
    pub(super) fn remove_inner_groups(&self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let tops = self.cgroups();
            let all: Vec<PathBuf> = tops.iter().flat_map(|top| self.made_in(top)).collect();
            let inner = || all.iter().filter(|dir| !tops.contains(dir));
            for dir in inner() {
                let _ = std::fs::remove_dir(dir);
            }
            if inner().all(|dir| !dir.exists()) || Instant::now() > deadline {
                return;
            }
            // The kernel takes processes out of a cgroup a moment after they end, and tells nobody.
            if sys::deadline::pause(Duration::from_millis(2)).is_err() {
                return;
            }
        }
    }

    /// The ways into its cgroups.
    ///
    /// # Errors
    /// `Runtime` if there are none: nothing may run without its limits.
    pub(super) fn entrances(&self) -> Result<Entrances> {
        self.entrances_of(self.possible().map(|(_, dir)| dir))
    }

    /// The ways into some cgroups, one in each hierarchy. A cgroup that does not exist has none.
    pub(super) fn entrances_of(&self, dirs: impl Iterator<Item = PathBuf>) -> Result<Entrances> {
        let mut entrances = Entrances::default();
        for dir in dirs {
            let tasks = dir.join("tasks");
            match File::options().write(true).open(&tasks) {
                Ok(file) => entrances.tasks.push(file),
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("open", tasks)(e)),
                Err(_) => match sys::file::open_dir(&dir) {
                    Ok(dir) => entrances.unified = Some(dir),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(Error::io("open", dir)(e)),
                },
            }
        }
        if entrances.tasks.is_empty() && entrances.unified.is_none() {
            let e = io::Error::new(io::ErrorKind::NotFound, "it has no cgroup");
            return Err(self.failed("exec in", e));
        }
        Ok(entrances)
    }

    /// Its directories in every cgroup hierarchy.
    pub(super) fn cgroups(&self) -> Vec<PathBuf> {
        self.hierarchies().into_iter().map(|(_, dir)| dir).collect()
    }

    /// Its directories in every cgroup hierarchy, with the names of the controllers there. Version 2 has none if it is alone.
    pub(super) fn hierarchies(&self) -> Vec<(String, PathBuf)> {
        self.possible().filter(|(_, dir)| dir.exists()).collect()
    }

    /// Where its directories would be in every cgroup hierarchy.
    fn possible(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let below = self.cgroup.strip_prefix("/").unwrap_or(&self.cgroup);
        let fs = Path::new("/sys/fs/cgroup");
        let entries = std::fs::read_dir(fs).into_iter().flatten().flatten();
        // Links are other names of a hierarchy that has several controllers.
        let own = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
        let own = own.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()));
        let all = own.chain([(String::new(), fs.to_owned())]);
        all.map(move |(names, top)| (names, top.join(below)))
    }
}

impl Entrances {
    /// The ways in of version 2 where the container's own cgroup holds no process any more, since it gave its controllers to
    /// those below: the one that its first process is in.
    ///
    /// # Errors
    /// `EBUSY` if that is not below.
    pub(super) fn where_init_is(handle: &Handle, init: i32) -> io::Result<OwnedFd> {
        let text = std::fs::read_to_string(format!("/proc/{init}/cgroup"))?;
        let busy = || io::Error::from_raw_os_error(libc::EBUSY);
        let path = text.lines().find_map(|line| line.strip_prefix("0::")).ok_or_else(busy)?;
        let (path, own) =
            (path.trim_start_matches('/'), handle.cgroup.strip_prefix("/").unwrap_or(&handle.cgroup));
        if !Path::new(path).starts_with(own) {
            return Err(busy());
        }
        sys::file::open_dir(&Path::new("/sys/fs/cgroup").join(path))
    }
}

/// Goes to `/` if the working directory was deleted: libcontainer notes where it is, to come back to it, and would fail.
pub(super) fn leave_deleted_directory() -> Result<()> {
    match rustix::process::getcwd(Vec::new()) {
        Err(rustix::io::Errno::NOENT) => std::env::set_current_dir("/").map_err(Error::sys("change to /")),
        _ => Ok(()),
    }
}

/// An error with its sources, in one line: libcontainer says the cause only there.
pub(super) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(e) = source {
        let more = e.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = e.source();
    }
    text
}
