//! Who makes a container at this moment: nobody else may have its name, and what a maker that was killed has left goes.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::state::Container;
use crate::error::{Error, Result};
use crate::runtime::live;
use crate::sys;
use crate::sys::flock::Mode;

/// What its directory beside the containers begins with. No container's name does.
pub(super) const PREFIX: &str = ".new-";

/// The file in it that says which cgroup the container gets.
const NOTED: &str = "cgroup.json";

/// The name of a container, held for whoever makes or ends it.
///
/// It is a lock on a directory of its own, since the container's is libcontainer's to make. The directory is there from
/// before anything of the container is until after its record is: if it is there and nobody holds it, the maker was killed.
#[derive(Debug)]
pub(super) struct Making {
    dir: PathBuf,
    lock: OwnedFd,
}

impl Making {
    /// Waits for whoever makes a container of this name. What one that was killed has left of it is removed.
    ///
    /// # Errors
    /// `not_found` if not even the root is there.
    pub(super) fn of(container: &Container) -> Result<Making> {
        let dir = dir(container);
        let lock = loop {
            match fs::create_dir(&dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(container.missing()),
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::io("create", dir)(e));
                }
                _ => {}
            }
            match sys::flock::lock_dir(&dir, Mode::Exclusive) {
                // Whoever had it is done.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                lock => break lock.map_err(Error::io("lock", &dir))?,
            }
        };
        let making = Making { dir, lock };
        making.sweep(container)?;
        Ok(making)
    }

    /// The same where that was killed, and none otherwise: without waiting for one that is at work.
    fn abandoned(container: &Container) -> Result<Option<Making>> {
        let dir = dir(container);
        let failed = Error::io("lock", &dir);
        match sys::flock::lock_abandoned(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            free => free.map_err(failed).map(|lock| lock.map(|lock| Making { dir, lock })),
        }
    }

    /// Has another process watch over this one until the result is dropped: if this one is killed, what libcontainer has
    /// forked ends with it. What that is cannot depend on its maker by itself, since a container outlives that.
    pub(super) fn watch(&self) -> Result<Watcher> {
        let failed = |e| Error::sys("watch over this process")(e);
        let maker = sys::process::pidfd_open(std::process::id() as i32).map_err(failed)?;
        let end = || {
            let ended = sys::deadline::ended(&maker, std::time::Duration::MAX);
            i32::from(ended.and_then(|_| sys::flock::lock_abandoned(&self.dir)).is_err())
        };
        sys::process::fork_apart(maker.as_fd(), end).map(Watcher).map_err(failed)
    }

    /// Notes the container's cgroup before anything of it is made, and what was there before.
    pub(super) fn note(&self, cgroup: &Path, before: &[PathBuf]) -> Result<()> {
        let noted = Noted { cgroup: cgroup.to_owned(), before: before.to_vec() };
        live::write_json(&self.dir.join(NOTED), &noted)
    }

    /// Where it may put what it needs: gone when it is done.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes the container if it is half-made.
    fn sweep(&self, container: &Container) -> Result<()> {
        let mut before = fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))?;
        let begun = before.next().is_some();
        if begun && container.init().is_none() {
            tracing::info!("removing {}, whose maker was killed", container.id);
            match container.dir().exists() {
                true => container.remove()?,
                false => container.handle().map_or(Ok(()), |handle| handle.purge())?,
            }
        }
        Ok(())
    }
}

/// The process that watches over a maker.
#[derive(Debug)]
#[must_use]
pub(super) struct Watcher(i32);

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = sys::deadline::end_child(self.0);
    }
}

/// What is known of a container's cgroup while the container is made.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Noted {
    pub(super) cgroup: PathBuf,
    /// Its directories, and those below, that were there before.
    pub(super) before: Vec<PathBuf>,
}

impl Noted {
    pub(super) fn of(container: &Container) -> Option<Noted> {
        live::read_json(&dir(container).join(NOTED), 1 << 20)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // While it is held, so that nobody takes it for abandoned.
        let _ = fs::remove_dir_all(&self.dir);
        // The first process has the descriptor too until it executes its program.
        let _ = rustix::fs::flock(&self.lock, rustix::fs::FlockOperation::Unlock);
    }
}

fn dir(container: &Container) -> PathBuf {
    container.root.join(format!("{PREFIX}{}", container.id))
}

impl Container {
    /// Removes what makers that were killed have left in a directory of containers.
    pub fn sweep(root: &Path) {
        let names = fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.file_name());
        for name in names {
            let id = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            let Some(container) = id.and_then(|id| Container::new(root, id).ok()) else { continue };
            if let Err(e) = container.forsaken() {
                tracing::warn!("cannot remove what is left of {}: {e}", container.id);
            }
        }
    }

    /// Removes what is left if its maker was killed.
    pub(super) fn forsaken(&self) -> Result<()> {
        Making::abandoned(self)?.map_or(Ok(()), |making| making.sweep(self))
    }
}
