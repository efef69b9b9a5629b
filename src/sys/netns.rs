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

/// How many sockets there are in a network namespace, of all families that the kernel counts.
///
/// # Errors
/// Those of setns(2), and of reading `/proc/net/protocols`.
pub fn sockets(namespace: impl AsFd) -> io::Result<u64> {
    let text = within(namespace, || std::fs::read_to_string("/proc/thread-self/net/protocols"))??;
    Ok(counted(&text))
}

/// The sum of the third column: name, size of each, sockets.
fn counted(protocols: &str) -> u64 {
    let of_line =
        |line: &str| line.split_ascii_whitespace().nth(2).and_then(|count| count.parse::<u64>().ok());
    protocols.lines().skip(1).filter_map(of_line).sum()
}

/// Returns to the network namespace that this thread has left for a moment.
pub(super) fn go_back(ours: impl AsFd) {
    if move_into_link_name_space(ours.as_fd(), Some(LinkNameSpaceType::Network)).is_err() {
        // Whatever this process did next would happen in the wrong network.
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_all_protocols_are_counted() {
        let text = "protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re bi br ha uh gp em\n\
                    PACKET    1536      3      -1   NI       0   no   kernel      n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n\n\
                    UNIX      1024      4      -1   NI       0   yes  kernel      n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n\n";
        assert_eq!(counted(text), 7);
    }
}
