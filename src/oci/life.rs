//! `create` and `kill`.

use super::args::{BundleArgs, CreateArgs, KillArgs};
use crate::domain::signal;
use crate::error::{Error, Result};
use crate::ops::oci::{Create, Runtime};

impl BundleArgs {
    /// What to make of it. `systemd` is whether that makes the cgroup.
    pub(super) fn creation(self, systemd: bool) -> Create {
        Create {
            bundle: self.bundle,
            pid_file: self.pid_file,
            pidfd_socket: self.pidfd_socket,
            console_socket: self.console_socket,
            preserve_fds: self.preserve_fds,
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
            systemd,
        }
    }
}

pub(super) fn create(runtime: &Runtime, args: CreateArgs, systemd: bool) -> Result<u8> {
    runtime.create(&args.id, &args.of.creation(systemd)).map(|_| 0)
}

pub(super) fn kill(runtime: &Runtime, args: &KillArgs) -> Result<u8> {
    runtime.kill(&args.id, signal::number(&args.signal).map_err(Error::usage)?, args.all).map(|()| 0)
}
