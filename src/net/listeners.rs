//! Ports of the host that its processes have.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::domain::port::{Protocol, Published, overlap};

/// Sockets of the host's processes, as they were when they were read.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    /// Those that listen: addresses and inodes.
    listening: HashMap<(Protocol, u16), Vec<(IpAddr, String)>>,
    /// Ports of all.
    used: HashSet<(Protocol, u16)>,
}

impl Listeners {
    /// Those of the protocols of some ports: each file of the kernel's is read once.
    pub(super) fn of(ports: &[Published]) -> Listeners {
        let mut all = Listeners::default();
        for (protocol, files) in [(Protocol::Tcp, ["tcp", "tcp6"]), (Protocol::Udp, ["udp", "udp6"])] {
            if ports.iter().any(|port| port.protocol == protocol) {
                for file in files {
                    let text = std::fs::read_to_string(Path::new("/proc/net").join(file)).unwrap_or_default();
                    text.lines().skip(1).for_each(|line| all.add(line, protocol));
                }
            }
        }
        all
    }

    fn add(&mut self, line: &str, protocol: Protocol) {
        let Some(socket) = parsed(line, protocol) else { return };
        self.used.insert((protocol, socket.port));
        if socket.listens {
            let at = self.listening.entry((protocol, socket.port)).or_default();
            at.push((socket.ip, socket.inode));
        }
    }

    /// Whether no process has the port at any address.
    pub(super) fn is_free(&self, port: &Published) -> bool {
        !self.used.contains(&(port.protocol, port.host))
    }

    /// The process that listens on a port.
    pub(super) fn holder(&self, port: &Published) -> Option<String> {
        let sockets = self.listening.get(&(port.protocol, port.host))?;
        // One that listens on every address of IPv6 may do so for IPv4 too.
        let meets = |ip: IpAddr| ip == Ipv6Addr::UNSPECIFIED || overlap(port.ip, Some(ip));
        let (_, inode) = sockets.iter().find(|(ip, _)| meets(*ip))?;
        Some(process_with(inode).unwrap_or_else(|| "a process of the host".into()))
    }
}

/// A line of `/proc/net/tcp` or `udp`.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    ip: IpAddr,
    port: u16,
    listens: bool,
    inode: String,
}

fn parsed(line: &str, protocol: Protocol) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace();
    let (local, state, inode) = (fields.nth(1)?, fields.nth(1)?, fields.nth(5)?);
    // TCP_LISTEN, or a UDP socket without a peer.
    let listens = state
        == match protocol {
            Protocol::Tcp => "0A",
            Protocol::Udp => "07",
        };
    let (address, port) = local.split_once(':')?;
    let words: Vec<u32> = (0..address.len() / 8)
        .map(|n| u32::from_str_radix(address.get(n * 8..n * 8 + 8)?, 16).map(u32::from_be).ok())
        .collect::<Option<_>>()?;
    let ip = match words.as_slice() {
        [v4] => IpAddr::V4(Ipv4Addr::from(*v4)),
        [a, b, c, d] => {
            let v6 =
                (u128::from(*a) << 96) | (u128::from(*b) << 64) | (u128::from(*c) << 32) | u128::from(*d);
            Ipv6Addr::from(v6).to_canonical()
        }
        _ => return None,
    };
    Some(Socket { ip, port: u16::from_str_radix(port, 16).ok()?, listens, inode: inode.to_owned() })
}

fn process_with(inode: &str) -> Option<String> {
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    let pids = std::fs::read_dir("/proc").ok()?.flatten();
    for pid in pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        if fds.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == socket)) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Some(format!("process {pid}, `{}`", name.trim().escape_default()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_socket_is_read() {
        let tcp = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1";
        let socket = |ip: &str, port, listens, inode: &str| Socket {
            ip: ip.parse().unwrap(),
            port,
            listens,
            inode: inode.into(),
        };
        assert_eq!(parsed(tcp, Protocol::Tcp), Some(socket("127.0.0.1", 8080, true, "4242")));
        let established = tcp.replace(" 0A ", " 01 ");
        assert_eq!(parsed(&established, Protocol::Tcp), Some(socket("127.0.0.1", 8080, false, "4242")));
        let any6 = "0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 7 1";
        assert_eq!(parsed(any6, Protocol::Tcp), Some(socket("::", 80, true, "7")));
        assert_eq!(parsed("  sl  local_address rem_address", Protocol::Tcp), None);
    }
}
