//! `run`: a container whose maker stands by it.

use std::path::Path;

use super::create::wants_terminal;
use super::{Create, Runtime};
use crate::error::{Error, Result};
use crate::ops::exec::Running;
use crate::runtime::cgroup::Cgroup;
use crate::sys;

impl Runtime {
    /// Makes and starts a container whose first process is a child of this one. Its terminal, if it is to have one and
    /// nobody else gets that, comes along.
    ///
    /// # Errors
    /// As `create` and `start`; then nothing is left of it.
    pub fn run(&self, id: &str, create: &Create) -> Result<Running> {
        let own = match &create.console_socket {
            None if wants_terminal(&create.bundle)? => Some(Console::new()?),
            _ => None,
        };
        let mut create = create.clone();
        if let Some(own) = &own {
            create.console_socket = Some(own.path());
        }
        let pid = self.create(id, &create)?;
        let started = || -> Result<Running> {
            let pidfd = sys::process::pidfd_open(pid).map_err(Error::sys("watch the container"))?;
            let master = own.map(|own| own.receive()).transpose()?;
            let group = Cgroup::new(&self.container(id)?.cgroup()?);
            let pipes = Default::default();
            let running = Running { pid, pidfd, master, pipes, group, oom_kills: 0 };
            // Before the program's first instruction. A window that is gone has no size.
            let _ = running.copy_window_size();
            self.start(id)?;
            Ok(running)
        };
        started().map_err(|first| match self.delete(id, true) {
            Ok(()) => first,
            Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
        })
    }

    /// Has processes that lose their parent come to this one, as they would to a container's first process.
    pub fn adopt(&self) -> Result<()> {
        let own = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(own)).map_err(|e| Error::sys("adopt orphans")(e.into()))
    }
}

/// A socket that gets a terminal.
struct Console {
    dir: tempfile::TempDir,
    socket: std::os::fd::OwnedFd,
}

impl Console {
    fn new() -> Result<Console> {
        let failed = Error::sys("make a socket for the terminal");
        let made = || {
            let dir = tempfile::Builder::new().prefix("spark-oci-").tempdir()?;
            let socket = sys::net::listen_unix(&dir.path().join("console"))?;
            Ok(Console { dir, socket })
        };
        made().map_err(failed)
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join(Path::new("console"))
    }

    /// The terminal, which was sent before `create` was done.
    fn receive(&self) -> Result<std::os::fd::OwnedFd> {
        sys::net::receive_descriptor(&self.socket).map_err(Error::sys("receive the terminal"))
    }
}
