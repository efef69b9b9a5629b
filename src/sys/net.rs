//! Network devices, and sockets with a path.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use super::deadline::{self, Deadline};

/// Connects to a port of the loopback device of a process, in whatever network namespace that is. Does not wait for
/// longer than `patience`. The stream does not block.
///
/// # Errors
/// `ECONNREFUSED` if nothing listens there.
pub fn connect_loopback_of(pidfd: impl AsFd, port: u16, patience: Duration) -> io::Result<TcpStream> {
    let addresses =
        [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
    let mut first = None;
    for address in addresses {
        match socket_of(&pidfd, address).and_then(|socket| connect(socket, address, patience)) {
            Ok(stream) => return Ok(stream),
            Err(e) => first = first.or(Some(e)),
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

/// A socket stays in the network that it was made in.
fn socket_of(pidfd: impl AsFd, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let ours = File::open("/proc/thread-self/ns/net")?;
    move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::NETWORK)?;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None);
    super::netns::go_back(&ours);
    Ok(socket?)
}

fn connect(socket: OwnedFd, address: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    match rustix::net::connect(&socket, &address) {
        Err(rustix::io::Errno::INPROGRESS) => {}
        other => return Ok(other.map(|()| TcpStream::from(socket))?),
    }
    let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
    let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
    match rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&patience)))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => {
            rustix::net::sockopt::socket_error(&socket)??;
            Ok(TcpStream::from(socket))
        }
    }
}

/// The listening socket that a service manager has passed to this process, as sd_listen_fds(3) has it. To be called
/// once.
///
/// # Errors
/// `InvalidInput` if more than one was passed, or something else.
pub fn passed_listener() -> io::Result<Option<TcpListener>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    let refused = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what.to_owned()));
    match number("LISTEN_FDS") {
        None | Some(0) => return Ok(None),
        Some(1) => {}
        Some(_) => return refused("more than one was passed"),
    }
    // SAFETY: fcntl(2) takes plain numbers; it fails if nothing is open there.
    if unsafe { libc::fcntl(3, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and by the protocol it is ours alone: whoever started us has left it to us.
    let fd = unsafe { OwnedFd::from_raw_fd(3) };
    match rustix::net::sockopt::socket_acceptconn(&fd) {
        Ok(true) => Ok(Some(TcpListener::from(fd))),
        _ => refused("it does not listen"),
    }
}

/// Sets the loopback device up in the network namespace of a process. This thread is in it afterwards. False if that is ours:
/// then nothing is done.
pub fn raise_loopback_of(pid: i32) -> io::Result<bool> {
    let theirs = File::open(format!("/proc/{pid}/ns/net"))?;
    let ours = std::fs::metadata("/proc/thread-self/ns/net")?;
    let meta = theirs.metadata()?;
    if (meta.dev(), meta.ino()) == (ours.dev(), ours.ino()) {
        return Ok(false);
    }
    move_into_link_name_space(theirs.as_fd(), Some(LinkNameSpaceType::Network))?;
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: `ifreq` is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: netdevice(7): the descriptor is a socket, and the kernel reads one `ifreq`, which outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } {
        0 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Connects to a socket by its path, however long that is: an address holds 107 bytes.
pub fn connect_unix(socket: impl AsFd, path: &Path) -> io::Result<()> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let place = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    Ok(rustix::net::connect(socket, &address)?)
}

/// Listens on a new socket at a path.
pub fn listen_unix(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 1)?;
    Ok(socket)
}

/// Sends a descriptor with a message, which must not be empty.
pub fn send_descriptor(socket: impl AsFd, message: &[u8], fd: impl AsFd) -> io::Result<()> {
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(&socket, &[io::IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Sends a descriptor with a message to whoever listens on the socket at a path.
pub fn send_descriptor_to(path: &Path, message: &[u8], fd: impl AsFd) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect_unix(&socket, path)?;
    send_descriptor(socket, message, fd)
}

/// Takes a connection, and the descriptor that comes with its first bytes.
///
/// # Errors
/// `InvalidData` if none does.
pub fn receive_descriptor(listener: impl AsFd) -> io::Result<OwnedFd> {
    deadline::readable(&listener, Deadline::inside())?;
    receive_from(rustix::io::retry_on_intr(|| rustix::net::accept_with(&listener, SocketFlags::CLOEXEC))?)
}

/// Takes the descriptor that comes with the next bytes of a connection.
///
/// # Errors
/// `InvalidData` if none does.
pub fn receive_from(peer: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 4096];
    let mut place = [io::IoSliceMut::new(&mut bytes)];
    deadline::readable(&peer, Deadline::inside())?;
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&peer, &mut place, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    received.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The network devices of the namespace that this thread was in when this was made.
#[derive(Debug)]
pub struct Devices(OwnedFd);

impl Devices {
    /// Those of the namespace that this thread is in.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn here() -> io::Result<Devices> {
        let flags = SocketFlags::CLOEXEC;
        Ok(Devices(rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?))
    }

    /// Whether there is no device of this name.
    #[must_use]
    pub fn lacks(&self, name: &str) -> bool {
        self.ask(name, libc::SIOCGIFINDEX).is_err_and(|e| e.raw_os_error() == Some(libc::ENODEV))
    }

    /// Asks about a device: one of the requests of netdevice(7) that only read.
    fn ask(&self, name: &str, what: libc::Ioctl) -> io::Result<libc::ifreq> {
        // SAFETY: `ifreq` is plain data, for which zeros are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from as libc::c_char;
        }
        // SAFETY: netdevice(7): the descriptor is a socket, and the kernel writes into one `ifreq`, which outlives the call.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), what, &mut request) } {
            0 => Ok(request),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The largest packet that a network device of this thread's namespace sends, in bytes.
pub fn mtu_of(name: &str) -> io::Result<u32> {
    let answer = Devices::here()?.ask(name, libc::SIOCGIFMTU)?;
    // SAFETY: the kernel has written this field of the union.
    Ok(unsafe { answer.ifr_ifru.ifru_mtu }.unsigned_abs())
}

/// The number of a network device of this thread's namespace.
pub fn index_of(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: if_nametoindex(3) reads a string that ends with a NUL, and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Whether an authority, a host with a port or without, is this host by its loopback device. No name but `localhost` is.
pub fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_localhost_and_addresses_of_the_loopback_device_are_this_host() {
        for here in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:80"] {
            assert!(is_loopback(here), "{here}");
        }
        for there in ["h.x", "localhost.x:5000", "10.0.0.1:5000", "[::2]:80", "127.0.0.1.x"] {
            assert!(!is_loopback(there), "{there}");
        }
    }
}
