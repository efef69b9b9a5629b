//! The strict operations: containers of bundles, as the OCI runtime specification has them.
//!
//! No pool is needed and none is looked at. What is volatile of a container is in the directory that `--root` names,
//! in libcontainer's own layout, so that `youki --root` of it works too.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::runtime::strict::Container;
use crate::sys;

mod all;
mod config;
mod create;
mod exec;
mod roots;
mod run;
mod spec;
mod stats;

pub use crate::runtime::strict::{Below, HOOK, Heard, State, Status, Watch, become_hook};
pub use crate::sys::process::signal_child;
pub use crate::sys::program::words;
pub use all::Row;
pub use config::read_process;
pub use create::{Create, wants_terminal};
pub use exec::{Exec, add_capabilities, parse_capability};
pub use oci_spec::runtime::{Capability, Process};
pub use spec::write_spec;

/// The containers of one root.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Where they are.
    pub root: PathBuf,
    /// `SPARK_RUN`.
    pub run: PathBuf,
}

impl Runtime {
    /// The containers of `root`, or of the place where they are if nothing else is said. That is the same whatever the
    /// environment is: podman and conmon give each call of a runtime another one.
    pub fn new(root: Option<PathBuf>, run: PathBuf) -> Result<Runtime> {
        let root = match root {
            Some(root) => std::path::absolute(&root).map_err(Error::io("find", root))?,
            None => roots::default(),
        };
        Ok(Runtime { root, run })
    }

    fn container(&self, id: &str) -> Result<Container> {
        Container::new(&self.root, id)
    }

    /// What a container is doing.
    pub fn state(&self, id: &str) -> Result<Status> {
        self.container(id)?.status()
    }

    /// All containers, by name. One that is damaged is passed over, and one that ends meanwhile. What is left of one whose
    /// making was killed is removed.
    pub fn list(&self) -> Result<Vec<Status>> {
        Container::sweep(&self.root);
        let mut found = Vec::new();
        for container in Container::all(&self.root)? {
            match container.status() {
                Ok(status) => found.push(status),
                Err(e) => tracing::warn!("cannot list {}: {e}", container.id),
            }
        }
        Ok(found)
    }

    /// Starts a container that is made.
    pub fn start(&self, id: &str) -> Result<()> {
        self.container(id)?.start()
    }

    /// Signals a container's first process, or all of them.
    pub fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        self.container(id)?.kill(signal, all)
    }

    /// Removes a container; one that runs if that is forced.
    pub fn delete(&self, id: &str, force: bool) -> Result<()> {
        self.container(id)?.delete(force)
    }

    /// Freezes a container.
    pub fn pause(&self, id: &str) -> Result<()> {
        self.container(id)?.pause()
    }

    /// Thaws a container.
    pub fn resume(&self, id: &str) -> Result<()> {
        self.container(id)?.resume()
    }
}

/// What bundles may ask for: the specification's `Features`.
pub fn features() -> serde_json::Value {
    crate::runtime::strict::features::features(crate::bundle::seccomp::version())
}

/// Writes the pid of a process to a file that others wait for: whole or not at all.
fn write_pid(path: &Path, pid: i32) -> Result<()> {
    sys::file::replace_readable(path, pid.to_string().as_bytes()).map_err(Error::io("write", path))
}

/// Sends a pidfd over a socket, with runc's word for what the process is.
fn send_pidfd(path: &Path, word: &str, pid: i32) -> Result<()> {
    let pidfd = sys::process::pidfd_open(pid).map_err(Error::sys("watch the process"))?;
    sys::net::send_descriptor_to(path, word.as_bytes(), pidfd).map_err(Error::io("send a pidfd to", path))
}

/// Which of the standard streams are terminals, by their names.
pub fn standard_terminals() -> Vec<&'static str> {
    let named = ["standard input", "standard output", "standard error"].into_iter().enumerate();
    let is_terminal = |fd: usize| sys::tty::is_terminal(sys::exec::standard_stream(fd as i32));
    named.filter(|(fd, _)| is_terminal(*fd)).map(|(_, name)| name).collect()
}

/// Executes this program again in a way in which no container can write to it.
pub fn protect_program() -> Result<()> {
    sys::program::protect().map_err(Error::sys("protect this program from containers"))
}
