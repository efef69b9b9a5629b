//! The packet filter, through netlink: only what has to be asked often.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// The number of the state of all rules in this thread's network namespace: another one after every change.
///
/// # Errors
/// Those of netlink(7); `InvalidData` if the answer has no such number.
pub fn generation() -> io::Result<u32> {
    const SUBSYSTEM: u16 = 10;
    const GET_GENERATION: u16 = (SUBSYSTEM << 8) | 16;
    const REQUEST: u16 = 1;
    /// Of the answer: its own head, the packet filter's, and that of the first attribute, which is the number.
    const HEADS: usize = 16 + 4 + 4;
    let socket = netfilter()?;
    let mut message = [0_u8; 20];
    message[..4].copy_from_slice(&20_u32.to_ne_bytes());
    message[4..6].copy_from_slice(&GET_GENERATION.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0_u8; 512];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    let attribute = [answer[HEADS - 2], answer[HEADS - 1]];
    if length < HEADS + 4 || u16::from_ne_bytes(attribute) != 1 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let number = &answer[HEADS..HEADS + 4];
    Ok(u32::from_be_bytes([number[0], number[1], number[2], number[3]]))
}

/// A socket that speaks to the kernel's netfilter, in this thread's network namespace.
pub(super) fn netfilter() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(rustix::net::netlink::NETFILTER),
    )?)
}
