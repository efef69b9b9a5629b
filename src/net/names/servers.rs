//! The host's resolvers, as its `/etc/resolv.conf` names them, and the file that a spark gets in its place.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::answer::TOP;
use super::{ADDRESS, PORT};
use crate::domain::name::Name;
use crate::domain::subnet::Cidr;
use crate::error::{Error, Result};
use crate::sys;

/// The host's file.
const HOSTS_OWN: &str = "/etc/resolv.conf";
/// Where systemd-resolved says whom it asks itself.
const ASKED_BY_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// Most bytes of such a file that are read.
const MAX: u64 = 64 << 10;
/// Most bytes of the list of domains: musl passes over longer lines.
const MAX_SEARCH: usize = 250;

/// What a `resolv.conf` says: see resolv.conf(5).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Servers {
    addresses: Vec<SocketAddr>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Servers {
    /// Those of the host. If its file cannot be read, there is the one that resolv.conf(5) tells of, on the loopback device.
    #[must_use]
    pub fn of_host() -> Servers {
        Servers::parse(&read(HOSTS_OWN).unwrap_or_default())
    }

    fn parse(text: &str) -> Servers {
        let mut found = Servers::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => found.addresses.extend(words.next().and_then(server)),
                // The last of them counts.
                Some("search") => found.search = words.map(str::to_owned).collect(),
                Some("domain") => found.search = words.take(1).map(str::to_owned).collect(),
                Some("options") => found.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        if found.addresses.is_empty() {
            found.addresses.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        found
    }

    /// Whether a spark that may reach these networks and nothing else may ask one of the resolvers. A resolver on the loopback
    /// device is systemd-resolved's, whose own resolvers count then.
    #[must_use]
    pub fn may_be_asked_by(&self, egress: &[(Cidr, Option<u16>)]) -> bool {
        let is_reached = |address: &SocketAddr| {
            let host = Cidr::from(address.ip());
            egress.iter().any(|(net, port)| net.covers(&host) && port.is_none_or(|port| port == PORT))
        };
        if self.addresses.iter().any(is_reached) {
            return true;
        }
        let is_local = self.addresses.iter().all(|address| address.ip().is_loopback());
        is_local
            && read(ASKED_BY_RESOLVED)
                .is_ok_and(|text| Servers::parse(&text).addresses.iter().any(is_reached))
    }

    /// The addresses of all of them.
    pub(in crate::net) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(SocketAddr::ip)
    }

    fn list(&self) -> String {
        self.addresses.iter().map(|address| format!("{address}\n")).collect()
    }
}

/// The address of a `nameserver` line. One with a scope is reached on the device of that name alone.
fn server(word: &str) -> Option<SocketAddr> {
    let Some((address, device)) = word.split_once('%') else {
        return word.parse::<IpAddr>().ok().map(|ip| (ip, PORT).into());
    };
    let scope = device.parse().or_else(|_| sys::net::index_of(device));
    match (address.parse(), scope) {
        (Ok(ip), Ok(scope)) => Some(SocketAddrV6::new(ip, PORT, 0, scope).into()),
        _ => {
            tracing::warn!("the host's resolver {word} is not asked: there is no device `{device}`");
            None
        }
    }
}

fn read(path: &str) -> io::Result<String> {
    let text = sys::file::read_bounded(File::open(path)?, MAX)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What `/etc/resolv.conf` of a spark says.
///
/// The first domain in which a name without dots is looked for is the spark's project. So a neighbour is found at the first
/// question, and no resolver of the host learns which sparks there are.
#[must_use]
pub fn for_spark(host: &Servers, project: &Name) -> String {
    let mut search = format!("search {project}.{TOP}");
    for domain in &host.search {
        if search.len() + 1 + domain.len() > MAX_SEARCH {
            break;
        }
        search.push(' ');
        search.push_str(domain);
    }
    let mut text = format!("nameserver {ADDRESS}\n{search}\n");
    if !host.options.is_empty() {
        text.push_str(&format!("options {}\n", host.options.join(" ")));
    }
    text
}

/// The state of the host's file, as the first line of the list that was made of it. A file that is not there is one more state.
fn state() -> String {
    match std::fs::metadata(HOSTS_OWN) {
        Ok(m) => format!("# {} {} {} {}.{}\n", m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()),
        Err(_) => "# none\n".into(),
    }
}

/// Whether the list of the host's resolvers is that of the host's file as it is now.
pub(super) fn is_current(list: &Path) -> bool {
    std::fs::read_to_string(list).is_ok_and(|text| text.starts_with(&state()))
}

/// Writes the list of the host's resolvers for the process that asks them, if the host's file has changed since.
pub(super) fn update(list: &Path) -> Result<()> {
    if is_current(list) {
        return Ok(());
    }
    let text = state() + &Servers::of_host().list();
    sys::file::replace_readable(list, text.as_bytes()).map_err(Error::io("write", list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_is_read_as_programs_read_it() {
        let text = "# comment\ndomain old.example\nsearch corp.example lab.example\nnameserver 192.0.2.1\n\
                    nameserver 127.0.0.53\nnameserver\nnameserver bad\nnameserver 2001:db8::1 x\nnameserver fe80::1%lo\n\
                    nameserver fe80::1%nosuch\noptions edns0 trust-ad\noptions ndots:2\n";
        let found = Servers::parse(text);
        let expected = ["192.0.2.1:53", "127.0.0.53:53", "[2001:db8::1]:53", "[fe80::1%1]:53"];
        assert_eq!(found.addresses, expected.map(|text| text.parse().unwrap()));
        assert_eq!(found.list().lines().count(), 4);
        let project = "shop".parse().unwrap();
        assert_eq!(
            for_spark(&found, &project),
            "nameserver 169.254.1.1\nsearch shop.spark corp.example lab.example\noptions edns0 trust-ad ndots:2\n"
        );
        let bare = Servers::parse("");
        assert_eq!(bare.list(), "127.0.0.1:53\n");
        assert_eq!(for_spark(&bare, &project), "nameserver 169.254.1.1\nsearch shop.spark\n");
    }

    #[test]
    fn a_long_list_of_domains_is_cut_between_two() {
        let text = format!("search {}\n", vec!["a-long-domain.example"; 40].join(" "));
        let text = for_spark(&Servers::parse(&text), &"shop".parse().unwrap());
        let line = text.lines().nth(1).unwrap();
        assert!(line.len() <= MAX_SEARCH && line.ends_with("a-long-domain.example"), "{line}");
    }

    #[test]
    fn who_may_reach_little_asks_only_resolvers_that_are_in_it() {
        let servers = Servers::parse("nameserver 192.0.2.1\n");
        let may = |net: &str, port| servers.may_be_asked_by(&[(net.parse().unwrap(), port)]);
        assert!(!servers.may_be_asked_by(&[]));
        assert!(may("192.0.2.0/24", None) && may("192.0.2.1", Some(53)));
        assert!(!may("192.0.2.0/24", Some(443)) && !may("198.51.100.0/24", None));
    }
}
