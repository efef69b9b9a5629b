//! The life cycle of a container, through libcontainer.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libcontainer::container::Container;

use super::live;
use crate::error::{Error, Result};

/// A container of ours: its id, libcontainer's directory, and its cgroup.
#[derive(Debug, Clone)]
pub struct Handle {
    pub id: String,
    /// libcontainer's root.
    pub oci: PathBuf,
    pub cgroup: PathBuf,
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

    /// Freezes every process.
    pub fn pause(&self) -> Result<()> {
        self.load("pause")?.pause().map_err(|e| self.failed("pause", e))
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
        if self.dir().exists() || !self.cgroups().is_empty() {
            self.purge()?;
        }
        Ok(())
    }

    /// What `remove` does where libcontainer cannot: its own record is damaged or half-written.
    fn purge(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.cgroups();
            for dir in &left {
                let _ = std::fs::write(dir.join("freezer.state"), "THAWED");
                let _ = std::fs::write(dir.join("cgroup.kill"), "1");
                for (_, fd) in live::members(&self.cgroup) {
                    let _ = crate::sys::process::signal(&fd, rustix::process::Signal::KILL);
                    let _ = crate::sys::process::wait_end(&fd, Some(Duration::from_secs(1)));
                }
                let _ = std::fs::remove_dir(dir);
            }
            if left.iter().all(|d| !d.exists()) {
                break;
            }
            if Instant::now() > deadline {
                return Err(Error::Busy {
                    what: format!("the cgroup of {}", self.id),
                    why: "processes in it do not end".into(),
                });
            }
            // The kernel takes processes out of a cgroup a moment after they end, and tells nobody.
            std::thread::sleep(Duration::from_millis(2));
        }
        match std::fs::remove_dir_all(self.dir()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", self.dir())(e)),
            _ => Ok(()),
        }
    }

    /// Where a process with one thread moves itself into the cgroups, by writing `0`.
    ///
    /// # Errors
    /// `Runtime` if there are none: nothing may run without its limits.
    pub(super) fn entrances(&self) -> Result<Vec<File>> {
        // A thread that moves itself by way of `tasks` (version 1) stops nobody. `cgroup.procs` has the kernel wait for
        // all processors first, some milliseconds.
        let open = |dir: PathBuf| {
            let files = ["tasks", "cgroup.procs"].map(|name| dir.join(name));
            let file = files.iter().find(|f| f.exists()).unwrap_or(&files[1]);
            File::options().write(true).open(file).map_err(Error::io("open", file))
        };
        let found = self.cgroups().into_iter().map(open).collect::<Result<Vec<_>>>()?;
        if found.is_empty() {
            let e = io::Error::new(io::ErrorKind::NotFound, "it has no cgroup");
            return Err(self.failed("exec in", e));
        }
        Ok(found)
    }

    /// Its directories in every cgroup hierarchy.
    fn cgroups(&self) -> Vec<PathBuf> {
        let below = self.cgroup.strip_prefix("/").unwrap_or(&self.cgroup);
        let fs = Path::new("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(fs).into_iter().flatten().flatten().map(|e| e.path());
        hierarchies.chain([fs.to_owned()]).map(|h| h.join(below)).filter(|d| d.exists()).collect()
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
