//! User namespaces: of sparks, and to describe a mapping of ids for a mount.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitiesSecureBits, UnshareFlags};

/// A run of ids: `inside` as on disk, `host` as the mount shows them to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub inside: u32,
    pub host: u32,
    pub count: u32,
}

impl Extent {
    fn line(self) -> String {
        format!("{} {} {}", self.inside, self.host, self.count)
    }
}

/// How users and groups on disk look to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    pub users: Extent,
    pub groups: Extent,
}

impl IdMap {
    /// Users and groups alike: the ids from 0 on are the host's from `host` on.
    pub fn range(host: u32, count: u32) -> IdMap {
        let extent = Extent { inside: 0, host, count };
        IdMap { users: extent, groups: extent }
    }
}

/// Makes a user namespace with this mapping and returns it open. Nothing runs in it.
///
/// It belongs to the host's ids that its lowest ids are mapped to. What the kernel counts for each user (inotify instances,
/// pending signals, bytes of message queues, ...) it counts for the user inside and for the owner of the namespace, and
/// compares both with the host's limits. If the namespace belonged to the host's root, what is used inside would be missing
/// to the host's services.
///
/// # Errors
/// `ENOSPC` where user namespaces are limited to none, `EPERM` where they are forbidden.
pub fn namespace(map: IdMap) -> io::Result<OwnedFd> {
    let (ready, ready_tx) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (hold, hold_tx) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut hold_tx = Some(hold_tx);
    let child = super::process::fork(|| {
        drop(hold_tx.take());
        // SAFETY: the child has one thread and shares nothing that another one relies upon.
        let done =
            own_as(map).and_then(|()| unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) });
        let errno = done.err().map_or(0, |e| e.raw_os_error() as u8);
        let _ = rustix::io::write(&ready_tx, &[errno]);
        // Stays until the parent has opened the namespace or is gone.
        let _ = File::from(hold).read(&mut [0]);
        0
    })?;
    drop(ready_tx);
    let opened = (|| {
        let mut errno = [0];
        File::from(ready).read_exact(&mut errno)?;
        if errno[0] != 0 {
            return Err(io::Error::from_raw_os_error(errno[0].into()));
        }
        fs::write(format!("/proc/{child}/uid_map"), map.users.line())?;
        fs::write(format!("/proc/{child}/gid_map"), map.groups.line())?;
        Ok(File::open(format!("/proc/{child}/ns/user"))?.into())
    })();
    drop(hold_tx);
    super::deadline::end_child(child)?;
    opened
}

/// Has what this process makes belong to the first ids of a mapping. Its real and saved ids stay, so that nobody with the
/// new ids may signal or trace it. RLIMIT_NPROC of the host's root, which is none, goes on to count for the namespace.
fn own_as(map: IdMap) -> rustix::io::Result<()> {
    // Capabilities stay effective over the change of user: some hosts let only CAP_SYS_ADMIN make user namespaces. Without
    // CAP_SETPCAP this fails, and other hosts let everybody make them.
    let _ = rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP);
    let (user, group) = (Uid::from_raw(map.users.host), Gid::from_raw(map.groups.host));
    rustix::thread::set_thread_res_gid(None, group, None)?;
    rustix::thread::set_thread_res_uid(None, user, None)
}
