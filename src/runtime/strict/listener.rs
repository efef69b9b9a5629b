//! A filter that leaves system calls to another process (`SCMP_ACT_NOTIFY`): how that one gets to hear them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde_json::{Value, json};

use super::create::Creation;
use crate::error::{Error, Result};
use crate::sys;

/// The way from the process that loads the filter to who listens.
#[derive(Debug)]
pub(super) struct Listener {
    path: PathBuf,
    metadata: String,
    from: OwnedFd,
}

impl Listener {
    /// The listener of a configuration, and the descriptor for the process that loads the filter.
    ///
    /// # Errors
    /// `usage` if nobody is named.
    pub(super) fn of(config: &Value) -> Result<(Listener, OwnedFd)> {
        let text = |key| config.pointer(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let path = text("/linux/seccomp/listenerPath");
        if path.is_empty() {
            return Err(Error::usage("SCMP_ACT_NOTIFY needs linux.seccomp.listenerPath"));
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (from, to) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|e| Error::sys("make a channel")(e.into()))?;
        Ok((Listener { path: path.into(), metadata: text("/linux/seccomp/listenerMetadata"), from }, to))
    }

    /// Passes the descriptor on, with the specification's `ContainerProcessState`.
    pub(super) fn introduce(self, creation: &Creation, pid: i32) -> Result<()> {
        let config = &creation.config;
        let version = config["ociVersion"].as_str().unwrap_or_default();
        let annotations = config.get("annotations").cloned().unwrap_or_else(|| json!({}));
        let state = json!({
            "ociVersion": version,
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": self.metadata,
            "state": {
                "ociVersion": version,
                "id": creation.container.id,
                "status": "creating",
                "pid": pid,
                "bundle": creation.bundle,
                "annotations": annotations,
            },
        });
        let send = || -> io::Result<()> {
            let fd = sys::net::receive_from(&self.from)?;
            sys::net::send_descriptor_to(&self.path, state.to_string().as_bytes(), fd)
        };
        send().map_err(Error::io("pass the system call filter on to", &self.path))
    }
}
