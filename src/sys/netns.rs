//! Network namespaces that are kept by a mount, and work that is done within one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// The network namespace of this thread.
pub fn own() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// That of a process.
pub fn of(pid: i32) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/ns/net"))?.into())
}

/// Makes a network namespace, and has the mount at `path`, which is a file, keep it.
pub fn make(path: &Path) -> io::Result<OwnedFd> {
    let ours = own()?;
    // SAFETY: a new network namespace changes no memory and no descriptor of this process.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
    let made = own().and_then(|made| {
        rustix::mount::mount_bind("/proc/thread-self/ns/net", path)?;
        Ok(made)
    });
    go_back(&ours);
    made
}

/// The network namespace that the mount at a path keeps.
///
/// # Errors
/// `InvalidInput` if there is none.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    let file: OwnedFd = File::open(path)?.into();
    if rustix::fs::fstatfs(&file)?.f_type as i64 != NSFS_MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no namespace"));
    }
    Ok(file)
}

/// Lets any user ping and serve low ports in the network namespace of this thread, for one in which they are nobody else's.
pub fn open_to_users() {
    for (key, value) in [("ping_group_range", "0 2147483647"), ("ip_unprivileged_port_start", "0")] {
        // Some kernel has none: then it is root's alone.
        let _ = std::fs::write(Path::new("/proc/sys/net/ipv4").join(key), value);
    }
}

/// Does something in a network namespace: sockets that are made stay in it, and this thread comes back.
pub fn within<T>(namespace: impl AsFd, work: impl FnOnce() -> T) -> io::Result<T> {
    let ours = own()?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let done = work();
    go_back(&ours);
    Ok(done)
}

/// Returns to the network namespace that this thread has left for a moment.
pub(super) fn go_back(ours: impl AsFd) {
    if move_into_link_name_space(ours.as_fd(), Some(LinkNameSpaceType::Network)).is_err() {
        // Whatever this process did next would happen in the wrong network.
        std::process::abort();
    }
}
