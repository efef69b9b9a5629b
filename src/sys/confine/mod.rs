//! What a process that reads a stranger's bytes gives up: the network, files, system calls, capabilities.
//!
//! Each piece is made ready beforehand, and then put into force by system calls alone, so that this can be done between
//! fork(2) and execve(2). A [`Confinement`] puts several into force in the order in which each still may.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

pub use self::files::{Access, Files, landlock_version};
pub use self::filter::Filter;

mod calls;
mod files;
mod filter;

/// Limits of a process that reads what strangers have written: bytes of address space, and descriptors that are open. It makes no
/// process, no file and no core dump.
pub fn limits(memory: u64, files: u64) -> Vec<(Resource, u64)> {
    vec![
        (Resource::As, memory),
        (Resource::Core, 1),
        (Resource::Fsize, 0),
        (Resource::Nproc, 0),
        (Resource::Nofile, files),
    ]
}

/// Gives this process the id of nobody else, and takes it out of what it shares with others but its network and its files. What
/// it still may do, [`Confinement::enforce`] takes.
///
/// # Errors
/// The first step that the kernel refuses. The process must not go on then.
pub fn become_stranger(id: u32) -> io::Result<()> {
    use super::exec;
    exec::leave_namespaces(UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)?;
    exec::leave_keyring()?;
    exec::become_user(id, id, &[])?;
    exec::set_undumpable()
}

/// The confinement of a process, made ready.
#[derive(Debug)]
pub struct Confinement {
    /// A network namespace in which there is nothing; `None` for a process that stays where it is.
    pub network: Option<Arc<OwnedFd>>,
    /// The files that may be reached; `None` if this kernel has no Landlock.
    pub files: Option<OwnedFd>,
    /// The system calls that may be made.
    pub filter: Arc<Filter>,
    /// Capabilities that stay if the process runs as root. Another user has none.
    pub capabilities: CapabilitySet,
    /// Soft and hard limits of resources.
    pub limits: Vec<(Resource, u64)>,
}

impl Confinement {
    /// Leaves the network. To be called while this process is still root.
    ///
    /// # Errors
    /// Those of setns(2).
    pub fn leave_network(&self) -> io::Result<()> {
        match &self.network {
            Some(empty) => super::exec::join_some(empty, libc::CLONE_NEWNET),
            None => Ok(()),
        }
    }

    /// Gives up everything else, for good. To be called after the change of user, and last of all: what comes after it is
    /// confined. Makes system calls only.
    ///
    /// # Errors
    /// The first that the kernel refuses. The process must not go on then.
    pub fn enforce(&self) -> io::Result<()> {
        for (resource, most) in &self.limits {
            rustix::process::setrlimit(*resource, Rlimit { current: Some(*most), maximum: Some(*most) })?;
        }
        // Without new privileges, executing a program gives root no capability back that it does not have.
        super::exec::set_no_new_privs()?;
        keep_capabilities(self.capabilities)?;
        if let Some(files) = &self.files {
            files::restrict(files)?;
        }
        self.filter.load()
    }
}

/// Gives up all capabilities but some.
///
/// # Errors
/// Those of capset(2).
pub fn keep_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    let (effective, permitted) = (now.effective & kept, now.permitted & kept);
    let inheritable = CapabilitySet::empty();
    Ok(rustix::thread::set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?)
}

/// Makes a network namespace in which there is nothing but a loopback device that is down.
///
/// # Errors
/// Those of unshare(2) and setns(2).
pub fn empty_network() -> io::Result<OwnedFd> {
    const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";
    let open = || rustix::fs::open(OF_THIS_THREAD, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let own = open()?;
    super::exec::leave_namespaces(UnshareFlags::NEWNET)?;
    let empty = open();
    super::exec::join_some(&own, libc::CLONE_NEWNET)?;
    Ok(empty?)
}
