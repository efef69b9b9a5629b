//! Sockets that are made before a process gives up its rights: they stay in the network namespace that they were made in.

use std::io;
use std::mem::size_of_val;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Bytes that a listener's queue of datagrams may take, as the kernel counts them.
const QUEUE: usize = 1 << 20;
/// Connections that a listener keeps until somebody takes them.
const BACKLOG: i32 = 32;

/// Listens for datagrams on `count` sockets of one address. The kernel chooses among them by the sender's address, so a
/// sender that fills one socket's queue leaves those of others empty.
///
/// # Errors
/// Those of socket(2), setsockopt(2) and bind(2).
pub fn listen_for_datagrams(address: SocketAddr, count: u32) -> io::Result<Vec<OwnedFd>> {
    let mut sockets = Vec::new();
    for _ in 0..count {
        let socket = new(address.is_ipv4(), SocketType::DGRAM)?;
        rustix::net::sockopt::set_socket_reuseport(&socket, true)?;
        // Root may set it beyond the host's limit.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, QUEUE)?;
        rustix::net::bind(&socket, &address)?;
        sockets.push(socket);
    }
    let by_sender = [
        load_word(SENDER_OF_IPV4),
        libc::sock_filter {
            code: (libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: count,
        },
        libc::sock_filter { code: (libc::BPF_RET | BPF_A) as u16, jt: 0, jf: 0, k: 0 },
    ];
    if let Some(first) = sockets.first().filter(|_| count > 1) {
        attach(first, libc::SO_ATTACH_REUSEPORT_CBPF, &by_sender)?;
    }
    Ok(sockets)
}

/// Listens for connections.
///
/// # Errors
/// Those of socket(2), setsockopt(2), bind(2) and listen(2).
pub fn listen_for_connections(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = new(address.is_ipv4(), SocketType::STREAM)?;
    // Connections of an earlier listener may be on their way out.
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Makes a socket that hears nothing but what comes from one port, whatever its owner does later: a connection to another
/// port is never made, and a datagram from another port never arrives.
///
/// # Errors
/// Those of socket(2) and setsockopt(2).
pub fn hearing_one_port(is_ipv4: bool, is_stream: bool, port: u16) -> io::Result<OwnedFd> {
    let socket = new(is_ipv4, if is_stream { SocketType::STREAM } else { SocketType::DGRAM })?;
    // What a filter of a socket sees begins with the header of UDP or TCP, whose first two bytes are the sender's port.
    let filter = [
        libc::sock_filter { code: (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: 0 },
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: port.into(),
        },
        libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: u32::MAX },
        libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 },
    ];
    attach(&socket, libc::SO_ATTACH_FILTER, &filter)?;
    set_option(&socket, libc::SO_LOCK_FILTER, &1_i32)?;
    Ok(socket)
}

/// The value of the accumulator, as what an instruction returns (`linux/bpf_common.h`).
const BPF_A: u32 = 0x10;
/// Where the network header begins, as an offset of an instruction that loads (`SKF_NET_OFF` of `linux/filter.h`), and the
/// sender's address in a header of IPv4.
const SENDER_OF_IPV4: u32 = (-0x10_0000_i32) as u32 + 12;

fn load_word(offset: u32) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

fn new(is_ipv4: bool, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if is_ipv4 { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

fn attach(socket: &OwnedFd, option: i32, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    set_option(socket, option, &program)
}

fn set_option<T>(socket: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as `value` has. What a program points to outlives the call, and the kernel copies
    // it.
    let r = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const *value).cast(),
            size_of_val(value) as libc::socklen_t,
        )
    };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Random bytes of the kernel's.
///
/// # Errors
/// Those of getrandom(2).
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the kernel writes at most `N` bytes, which `bytes` has.
    let r = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    // Up to 256 bytes come whole.
    if usize::try_from(r) == Ok(N) { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    use rustix::event::{PollFd, PollFlags, Timespec};
    use rustix::net::RecvFlags;

    use super::*;

    fn loopback(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// Whether something comes for a socket, within a moment.
    fn hears(socket: &OwnedFd, flags: PollFlags) -> bool {
        let moment = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        rustix::event::poll(&mut [PollFd::new(socket, flags)], Some(&moment)).unwrap() > 0
    }

    #[test]
    fn a_socket_hears_nothing_but_its_port() {
        let [known, other] = [(); 2].map(|()| UdpSocket::bind(loopback(0)).unwrap());
        let port = known.local_addr().unwrap().port();
        let socket = hearing_one_port(true, false, port).unwrap();
        rustix::net::bind(&socket, &loopback(0)).unwrap();
        let own = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
        other.send_to(b"other", own).unwrap();
        assert!(!hears(&socket, PollFlags::IN));
        known.send_to(b"known", own).unwrap();
        let mut buffer = [0; 10];
        assert!(hears(&socket, PollFlags::IN));
        assert_eq!(rustix::net::recv(&socket, &mut buffer, RecvFlags::DONTWAIT).unwrap().1, 5);
        // The filter stays.
        let none =
            libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: u32::MAX };
        assert!(attach(&socket, libc::SO_ATTACH_FILTER, &[none]).is_err());
    }

    #[test]
    fn a_socket_connects_to_no_other_port() {
        let [known, other] = [(); 2].map(|()| TcpListener::bind(loopback(0)).unwrap());
        let port = |listener: &TcpListener| listener.local_addr().unwrap();
        let connects = |to: &TcpListener| {
            let socket = hearing_one_port(true, true, port(&known).port()).unwrap();
            let _ = rustix::net::connect(&socket, &port(to));
            hears(&socket, PollFlags::OUT)
        };
        assert!(connects(&known) && !connects(&other));
    }
}
