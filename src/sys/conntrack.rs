//! The kernel's table of connections, through ctnetlink: flows of UDP, to have the kernel forget some of them.
//!
//! `linux/netfilter/nfnetlink_conntrack.h` has the numbers. Attributes are those of netlink(7).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use rustix::net::{RecvFlags, SendFlags};

use super::nft::netfilter;

/// A flow of datagrams: where its first one came from and went to, and where answers come from and go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub back_from: SocketAddr,
    pub back_to: SocketAddr,
}

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const ERROR: u16 = libc::NLMSG_ERROR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;
/// The head of a message, and with that of the packet filter behind it.
const HEAD: usize = 16;
const HEADS: usize = HEAD + 4;

/// Attributes of an entry: `CTA_TUPLE_ORIG` and so on.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// Attributes within a tuple, and within its two parts.
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
const NUMBER: u16 = 1;
const FROM_PORT: u16 = 2;
const TO_PORT: u16 = 3;
/// Of a filter, the flags of what it compares in the original direction, and that of the protocol.
const ORIGINAL_FLAGS: u16 = 1;
const COMPARES_PROTOCOL: u32 = 1 << 3;

const UDP: u8 = libc::IPPROTO_UDP as u8;

/// Has the kernel forget flows of this thread's network namespace: their next packet is treated as a first one. Returns how
/// many there were.
///
/// # Errors
/// Those of netlink(7).
pub fn forget_datagrams(which: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let socket = netfilter()?;
    let mut count = 0;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        for entry in list(&socket, family, &which)? {
            count += usize::from(delete(&socket, family, &entry)?);
        }
    }
    Ok(count)
}

/// What names each flow to the kernel.
fn list(socket: impl AsFd, family: u8, which: impl Fn(&Flow) -> bool) -> io::Result<Vec<Vec<u8>>> {
    // Kernels before 5.8 pass over the filter, and send the rest too.
    let protocol = nested(PROTOCOL, &attribute(NUMBER, &[UDP]));
    let flags = attribute(ORIGINAL_FLAGS, &COMPARES_PROTOCOL.to_ne_bytes());
    let filter = [nested(ORIGINAL, &protocol), nested(FILTER, &flags)].concat();
    send(&socket, GET, libc::NLM_F_DUMP as u16, family, &filter)?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (length, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        for (kind, message) in messages(&buffer[..length]) {
            match kind {
                DONE => return Ok(found),
                ERROR => return Err(error_of(message)),
                _ => {
                    let Some(attributes) = message.get(HEADS..) else { continue };
                    if flow_of(attributes).is_some_and(|flow| which(&flow)) {
                        found.push(name_of(attributes));
                    }
                }
            }
        }
    }
}

/// False if it is gone already.
fn delete(socket: impl AsFd, family: u8, entry: &[u8]) -> io::Result<bool> {
    send(&socket, DELETE, libc::NLM_F_ACK as u16, family, entry)?;
    let mut answer = [0; 4096];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    let error = messages(&answer[..length]).next().map(|(_, message)| error_of(message));
    match error.and_then(|e| e.raw_os_error()) {
        Some(0) => Ok(true),
        Some(libc::ENOENT) => Ok(false),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn send(socket: impl AsFd, kind: u16, flags: u16, family: u8, attributes: &[u8]) -> io::Result<()> {
    let length = (HEADS + attributes.len()) as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, 0, 0, 0]);
    message.extend(attributes);
    rustix::net::send(socket, &message, SendFlags::empty())?;
    Ok(())
}

/// What a message of netlink says went wrong; 0 if nothing.
fn error_of(message: &[u8]) -> io::Error {
    let errno =
        message.get(HEAD..HEAD + 4).map_or(libc::EBADMSG, |e| -i32::from_ne_bytes([e[0], e[1], e[2], e[3]]));
    io::Error::from_raw_os_error(errno)
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | libc::NLA_F_NESTED as u16, value)
}

/// Messages of netlink, by kind, each with its head.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let message = bytes.get(..length).filter(|message| message.len() >= HEAD)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, message))
    })
}

/// Attributes: kind, value, and all of it.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & libc::NLA_TYPE_MASK as u16;
        let value = bytes.get(4..length)?;
        let (whole, rest) = bytes.split_at(length.next_multiple_of(4).min(bytes.len()));
        bytes = rest;
        Some((kind, value, whole))
    })
}

fn value_of(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, ..)| *k == kind).map(|(_, value, _)| value)
}

/// Of an entry, what names it in a request.
fn name_of(entry: &[u8]) -> Vec<u8> {
    let parts = attributes(entry).filter(|(kind, ..)| [ORIGINAL, ID, ZONE].contains(kind));
    parts.flat_map(|(_, _, whole)| whole.iter().copied()).collect()
}

/// None for what is not UDP.
fn flow_of(entry: &[u8]) -> Option<Flow> {
    let (from, to) = ends_of(value_of(entry, ORIGINAL)?)?;
    let (back_from, back_to) = ends_of(value_of(entry, REPLY)?)?;
    Some(Flow { from, to, back_from, back_to })
}

fn ends_of(tuple: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (addresses, protocol) = (value_of(tuple, ADDRESSES)?, value_of(tuple, PROTOCOL)?);
    let v4 = |kind| Some(IpAddr::from(<[u8; 4]>::try_from(value_of(addresses, kind)?).ok()?));
    let v6 = |kind| Some(IpAddr::from(<[u8; 16]>::try_from(value_of(addresses, kind)?).ok()?));
    let (from, to) = (v4(1).or_else(|| v6(3))?, v4(2).or_else(|| v6(4))?);
    let port = |kind| Some(u16::from_be_bytes(value_of(protocol, kind)?.try_into().ok()?));
    let is_udp = value_of(protocol, NUMBER)? == [UDP];
    is_udp.then_some(((from, port(FROM_PORT)?).into(), (to, port(TO_PORT)?).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(kind: u16, protocol: u8, from: &str, to: &str) -> Vec<u8> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let ip = |ip: IpAddr, v4, v6| match ip {
            IpAddr::V4(ip) => attribute(v4, &ip.octets()),
            IpAddr::V6(ip) => attribute(v6, &ip.octets()),
        };
        let addresses = [ip(from.ip(), 1, 3), ip(to.ip(), 2, 4)].concat();
        let ports = [
            attribute(NUMBER, &[protocol]),
            attribute(FROM_PORT, &from.port().to_be_bytes()),
            attribute(TO_PORT, &to.port().to_be_bytes()),
        ];
        nested(kind, &[nested(ADDRESSES, &addresses), nested(PROTOCOL, &ports.concat())].concat())
    }

    #[test]
    fn an_entry_is_read_and_named() {
        for [a, b, c] in [
            ["198.51.100.2:5000", "198.51.100.1:53", "10.128.0.2:5353"],
            ["[2001:db8::2]:5000", "[2001:db8::1]:53", "[fd00::2]:5353"],
        ] {
            let (original, id) = (tuple(ORIGINAL, UDP, a, b), attribute(ID, &[1, 2, 3, 4]));
            let entry =
                [original.clone(), tuple(REPLY, UDP, c, a), attribute(3, &[0; 4]), id.clone()].concat();
            let [from, to, back_from] = [a, b, c].map(|text| text.parse().unwrap());
            assert_eq!(flow_of(&entry), Some(Flow { from, to, back_from, back_to: from }));
            assert_eq!(name_of(&entry), [original, id].concat());
            let tcp = [tuple(ORIGINAL, 6, a, b), tuple(REPLY, 6, c, a)].concat();
            assert_eq!(flow_of(&tcp), None);
            // Nothing that is cut short is read beyond its end.
            for length in 0..entry.len() {
                flow_of(&entry[..length]);
                name_of(&entry[..length]);
            }
        }
    }
}
