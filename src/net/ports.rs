//! Who has a port of the host: a spark of any installation, or a process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::host;
use crate::domain::port::{Protocol, Published};
use crate::error::{Error, Result};
use crate::sys;

/// Refuses ports that somebody has, whoever that is, but the member of this file.
///
/// # Errors
/// `network`, naming who has it.
pub(super) fn refuse_taken(ports: &[Published], own: &Path) -> Result<()> {
    for (n, port) in ports.iter().enumerate() {
        if let Some(twice) = ports[..n].iter().find(|other| other.clashes(port)) {
            return Err(Error::usage(format!("`{port}` and `{twice}` want one port of the host")));
        }
    }
    let claims = claims();
    for port in ports {
        let holder = claims
            .iter()
            .find(|(claimed, file)| claimed.clashes(port) && file != own)
            .map(|(_, file)| spark_of(file));
        if let Some(who) = holder.or_else(|| listener(port)) {
            return Err(Error::Network {
                what: format!("port {} of the host is taken by {who}", port.host_side()),
                hint: Some("publish another one".into()),
            });
        }
    }
    Ok(())
}

/// Claims ports, and gives up those that the member had and has no longer. The caller holds the host's lock.
pub(super) fn claim(ports: &[Published], own: &Path) -> Result<()> {
    let dir = host::ports();
    std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    give_up(|had, file| !file.exists() || (file == own && !ports.contains(had)));
    for port in ports {
        let path = dir.join(name(port));
        // At once whole: whoever reads it takes one that names no file for left over.
        sys::file::replace_volatile(&path, own.as_os_str().as_encoded_bytes())
            .map_err(Error::io("claim", path))?;
    }
    Ok(())
}

/// Gives up claims whose spark is gone. The caller holds the host's lock.
pub(super) fn sweep() {
    give_up(|_, file| !file.exists());
}

fn give_up(which: impl Fn(&Published, &Path) -> bool) {
    for (had, _) in written().iter().filter(|(had, file)| which(had, file)) {
        let _ = std::fs::remove_file(host::ports().join(name(had)));
    }
}

/// A port as a file's name.
fn name(port: &Published) -> String {
    port.to_string().replace('/', ",")
}

/// All claims whose spark is there.
pub(super) fn claims() -> Vec<(Published, PathBuf)> {
    written().into_iter().filter(|(_, file)| file.exists()).collect()
}

/// All claims. One whose spark is gone is removed by who holds the host's lock, and by nobody else: another command may be
/// making both.
fn written() -> Vec<(Published, PathBuf)> {
    use std::os::unix::ffi::OsStringExt;
    let entries = std::fs::read_dir(host::ports()).into_iter().flatten().flatten();
    let parsed = entries.filter_map(|entry| {
        let text = entry.file_name().to_str()?.replace(',', "/");
        let port = Published::try_from(text).ok()?;
        Some((port, PathBuf::from(std::ffi::OsString::from_vec(std::fs::read(entry.path()).ok()?))))
    });
    parsed.collect()
}

fn spark_of(file: &Path) -> String {
    match super::read_member(file) {
        Some(member) => format!("spark `{}` of project `{}`", member.name, member.project),
        None => "another spark".into(),
    }
}

/// The process of the host that listens on a port.
fn listener(port: &Published) -> Option<String> {
    let files = match port.protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
    };
    for file in files {
        let text = std::fs::read_to_string(Path::new("/proc/net").join(file)).unwrap_or_default();
        for line in text.lines().skip(1) {
            let Some((ip, number, inode)) = listening(line, port.protocol) else { continue };
            let meets = port.ip.is_none_or(|own| own == ip || ip.is_unspecified() || own.is_unspecified());
            if number == port.host && meets {
                return Some(process_with(&inode).unwrap_or_else(|| "a process of the host".into()));
            }
        }
    }
    None
}

/// The address, port and inode of a line of `/proc/net/tcp` or `udp`, if it listens there.
fn listening(line: &str, protocol: Protocol) -> Option<(IpAddr, u16, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, *fields.get(3)?, *fields.get(9)?);
    // TCP_LISTEN, or a UDP socket without a peer.
    if state
        != (match protocol {
            Protocol::Tcp => "0A",
            Protocol::Udp => "07",
        })
    {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let words: Vec<u32> = (0..address.len() / 8)
        .map(|n| u32::from_str_radix(&address[n * 8..n * 8 + 8], 16).map(u32::from_be))
        .collect::<Result<_, _>>()
        .ok()?;
    let ip = match words.as_slice() {
        [v4] => IpAddr::V4(Ipv4Addr::from(*v4)),
        [a, b, c, d] => {
            let v6 =
                (u128::from(*a) << 96) | (u128::from(*b) << 64) | (u128::from(*c) << 32) | u128::from(*d);
            Ipv6Addr::from(v6).to_canonical()
        }
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?, inode.to_owned()))
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
    fn a_line_of_a_listening_socket_is_read() {
        let tcp = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1";
        assert_eq!(listening(tcp, Protocol::Tcp), Some(("127.0.0.1".parse().unwrap(), 8080, "4242".into())));
        assert_eq!(listening(&tcp.replace(" 0A ", " 01 "), Protocol::Tcp), None);
        let any6 = "0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 7 1";
        assert_eq!(listening(any6, Protocol::Tcp), Some(("::".parse().unwrap(), 80, "7".into())));
    }
}
