//! `create`: from a bundle to a process that waits for its start.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Runtime, config, send_pidfd, write_pid};
use crate::error::{Error, Result};
use crate::runtime::place;
use crate::runtime::strict::{Container, Creation, Group, Unit};
use crate::sys;

/// How a container is made.
#[derive(Debug, Clone, Default)]
pub struct Create {
    pub bundle: PathBuf,
    /// Where the pid of the first process is written.
    pub pid_file: Option<PathBuf>,
    /// A socket that gets a pidfd of the first process.
    pub pidfd_socket: Option<PathBuf>,
    /// A socket that gets the other side of the terminal.
    pub console_socket: Option<PathBuf>,
    /// How many descriptors after the standard ones it inherits.
    pub preserve_fds: u32,
    pub no_pivot: bool,
    /// Whether it keeps the caller's session keyring.
    pub no_new_keyring: bool,
    /// Whether systemd makes the cgroup.
    pub systemd: bool,
}

impl Runtime {
    /// Makes a container of a bundle. Returns the pid of its first process. This process is changed for good.
    pub fn create(&self, id: &str, create: &Create) -> Result<i32> {
        let container = self.container(id)?;
        if !sys::process::is_root() {
            return Err(Error::Denied {
                what: "spark-oci needs root: it makes containers".into(),
                hint: "run it as root".into(),
            });
        }
        let preserve_fds = inherited(create.preserve_fds);
        let bundle =
            std::fs::canonicalize(&create.bundle).map_err(Error::io("find the bundle", &create.bundle))?;
        let config = config::read(&bundle)?;
        let root = bundle.join(config.pointer("/root/path").and_then(Value::as_str).unwrap_or_default());
        std::fs::metadata(&root).map_err(Error::io("find the root filesystem", &root))?;
        if let Some(path) = place::linked(&root).map_err(Error::io("look into", &root))? {
            return Err(Error::NotSupported {
                what: format!("/{path} of {} is a symbolic link, and leads out of it", root.display()),
                hint: Some("put a directory there".into()),
            });
        }
        let [console_socket, pid_file, pidfd_socket] =
            [&create.console_socket, &create.pid_file, &create.pidfd_socket]
                .map(|path| path.as_deref().map(absolute).transpose());
        let (console_socket, pid_file, pidfd_socket) = (console_socket?, pid_file?, pidfd_socket?);
        self.prepare()?;
        let creation = Creation {
            cgroup: group(&config, &container, create.systemd)?,
            confinement: config::confinement(&bundle, &config)?,
            bundle,
            config,
            console_socket,
            stage: self.run.join("stage"),
            preserve_fds,
            no_pivot: create.no_pivot,
            new_keyring: !create.no_new_keyring,
            container: container.clone(),
        };
        let init = creation.run()?;
        let tell = || {
            pidfd_socket.as_deref().map_or(Ok(()), |path| send_pidfd(path, "standard", init.pid))?;
            pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, init.pid))
        };
        tell().map_err(|first| match container.delete(true) {
            Ok(()) => first,
            Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
        })?;
        Ok(init.pid)
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io("find", path))
}

/// How many descriptors after the standard ones are there to be passed on, of so many that were promised. Called before
/// anything of ours is open: nothing of that may be among them.
pub(super) fn inherited(promised: u32) -> u32 {
    let mut possible = 3..promised.min(1 << 16) + 3;
    let last = possible.rfind(|fd| sys::exec::is_inherited(*fd as i32));
    last.map_or(0, |fd| fd - 2)
}

/// The cgroup that the configuration names, or one by the container's name and root: no two containers may share one.
fn group(config: &Value, container: &Container, systemd: bool) -> Result<Group> {
    let named = config.pointer("/linux/cgroupsPath").and_then(Value::as_str).filter(|p| !p.is_empty());
    if systemd {
        return Unit::of(named, &container.id).map(Group::Unit);
    }
    let own = || {
        let mut hasher = DefaultHasher::new();
        container.root.hash(&mut hasher);
        format!("/spark-oci-{}-{:08x}", container.id, hasher.finish() as u32)
    };
    let path = named.map_or_else(own, str::to_owned);
    // One that is relative begins at the top: libcontainer would ask systemd for it where there is a user namespace.
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err(Error::usage(format!(
            "`{}` is no cgroup that a container can have",
            path.escape_default()
        )));
    }
    Ok(Group::Path(format!("/{}", parts.join("/"))))
}

/// Whether the first process of a bundle is to have a terminal.
pub fn wants_terminal(bundle: &Path) -> Result<bool> {
    Ok(config::read(bundle)?.pointer("/process/terminal") == Some(&Value::Bool(true)))
}
