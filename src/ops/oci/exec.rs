//! `exec`: one more process in a container.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capabilities, Capability, Process};
use serde_json::Value;

use super::{Runtime, config, send_pidfd, write_pid};
use crate::error::{Error, Result};
use crate::ops::exec::Running;
use crate::runtime::cgroup::Cgroup;
use crate::runtime::confine::Confinement;
use crate::runtime::enter::Failure;
use crate::runtime::strict::{Below, Container, Entry, State, process_of};
use crate::sys;
use crate::sys::flock::Mode;

/// What to run, and how.
#[derive(Debug, Clone)]
pub struct Exec {
    /// The specification's `process` object.
    pub process: Process,
    pub pid_file: Option<PathBuf>,
    /// A socket that gets a pidfd of it.
    pub pidfd_socket: Option<PathBuf>,
    /// A socket that gets the other side of the terminal.
    pub console_socket: Option<PathBuf>,
    /// How many descriptors after the standard ones it inherits.
    pub preserve_fds: u32,
    /// Also where every process is frozen: it is then as well.
    pub ignore_paused: bool,
    /// Cgroups below the container's.
    pub cgroup: Option<Below>,
}

impl Runtime {
    /// The `process` object that a container was made with: what a command is run with that is given as words.
    pub fn process(&self, id: &str) -> Result<Process> {
        let container = self.container(id)?;
        let config = container.config()?;
        process_of(config["process"].clone())
            .map_err(|e| Error::corrupt(&container.dir().join("config.json"), e))
    }

    /// Runs a process in a container. It is a child of this one.
    ///
    /// # Errors
    /// With the errno if the program could not be executed.
    pub fn exec(&self, id: &str, exec: &Exec) -> Result<Running> {
        let container = self.container(id)?;
        let preserve_fds = super::create::inherited(exec.preserve_fds);
        let exec = &Exec { preserve_fds, ..exec.clone() };
        let lock = container.lock(Mode::Shared)?;
        let mut lock = match container.state()? {
            State::Created | State::Running => Some(lock),
            // It freezes on its way in, and whoever thaws it needs the lock.
            State::Paused if exec.ignore_paused => {
                drop(lock);
                None
            }
            other => return Err(container.refused("exec in", other)),
        };
        let running = enter(&container, exec, &mut lock)?;
        let told = || -> Result<()> {
            if let (Some(socket), Some(master)) = (&exec.console_socket, &running.master) {
                send_terminal(socket, master).map_err(Error::io("send the terminal to", socket))?;
            }
            exec.pidfd_socket.as_deref().map_or(Ok(()), |path| send_pidfd(path, "setns", running.pid))?;
            exec.pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, running.pid))
        };
        told().inspect_err(|_| {
            let _ = running.end();
        })?;
        Ok(running)
    }
}

/// Parses the name of a capability, with or without capital letters.
pub fn parse_capability(name: &str) -> Result<Capability, String> {
    serde_json::from_value(Value::from(name.to_ascii_uppercase()))
        .map_err(|_| format!("`{}` is not a capability: write it like CAP_KILL", name.escape_default()))
}

/// Adds capabilities to all sets that a process has, but for those that outlive an execution.
pub fn add_capabilities(process: &mut Process, more: &[Capability]) {
    if more.is_empty() {
        return;
    }
    let mut lists = process.capabilities().clone().unwrap_or_default();
    let with = |list: &Option<Capabilities>| Some(list.iter().flatten().chain(more).copied().collect());
    let (bounding, effective, permitted) =
        (with(lists.bounding()), with(lists.effective()), with(lists.permitted()));
    lists.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(lists));
}

fn enter(container: &Container, exec: &Exec, lock: &mut Option<OwnedFd>) -> Result<Running> {
    let init = container.init().ok_or_else(|| container.refused("exec in", State::Creating))?;
    let config = container.config()?;
    let filter = config::filter(&config)?;
    if filter.as_ref().is_some_and(crate::runtime::confine::Filter::notifies) {
        let what = "a process cannot join a container whose filter has SCMP_ACT_NOTIFY".into();
        return Err(Error::NotSupported { what, hint: None });
    }
    let entry = Entry {
        init,
        confinement: Confinement::strict(&exec.process, filter)?,
        process: exec.process.clone(),
        cgroup: exec.cgroup.clone(),
        preserve_fds: exec.preserve_fds,
        personality: personality(&config),
        // Whoever gets the terminal over a socket has a window of its own.
        window: exec.console_socket.is_none().then(sys::tty::window).flatten(),
        container: container.clone(),
    };
    let group = Cgroup::new(&container.cgroup()?);
    let oom_kills = group.oom_kills().unwrap_or_default();
    match entry.start(lock) {
        Ok(entered) => Running::of(entered, group, oom_kills),
        Err(Failure::Other(e)) => Err(e),
        Err(Failure::Interrupted) => {
            Err(Error::sys("enter the container")(io::ErrorKind::Interrupted.into()))
        }
        Err(Failure::TimedOut) => Err(Error::Busy {
            what: format!("container `{}`", container.id),
            why: "the process did not get in within 10 seconds: something inside stops or traces it".into(),
        }),
        Err(Failure::Exec(source)) => {
            let command = exec.process.args().iter().flatten().next();
            Err(Error::Io { action: "execute", path: command.cloned().unwrap_or_default().into(), source })
        }
    }
}

/// The execution domain that a container asks for. libcontainer has checked it.
fn personality(config: &Value) -> Option<u32> {
    match config.pointer("/linux/personality/domain")?.as_str()? {
        "LINUX32" => Some(0x0008),
        _ => Some(0),
    }
}

/// Sends a terminal over a socket, as runc does: its name, and the descriptor.
fn send_terminal(path: &Path, master: impl AsFd) -> io::Result<()> {
    // Whoever gets it expects it as opened by openpty(3).
    let settings = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, settings - rustix::fs::OFlags::NONBLOCK)?;
    sys::net::send_descriptor_to(path, b"/dev/ptmx", master)
}
