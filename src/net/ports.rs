//! Which ports of the host a spark may publish: those that it has, and that nobody else has.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;

use rtnetlink::packet_route::route::RouteType;

use super::claims::Claims;
use super::link;
use super::listeners::Listeners;
use crate::domain::port::{MOST, Protocol, Published, overlap};
use crate::error::{Error, Result};
use crate::sys;

/// Ports that nobody else has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    pub ports: Vec<Published>,
    /// Those of them that were chosen because they were free.
    pub chosen: Vec<Published>,
}

/// A spark that has a port, by the file of its member, and the address that it has the port at.
type Holder<'a> = (Option<IpAddr>, &'a Path);

/// Who has ports, by protocol and number.
struct Taken<'a> {
    sparks: HashMap<(Protocol, u16), Vec<Holder<'a>>>,
    host: &'a Listeners,
}

impl<'a> Taken<'a> {
    fn spark_with(&self, port: &Published) -> Option<&'a Path> {
        let at = self.sparks.get(&(port.protocol, port.host))?;
        at.iter().find(|(ip, _)| overlap(*ip, port.ip)).map(|(_, member)| *member)
    }

    fn holder(&self, port: &Published) -> Option<String> {
        self.spark_with(port).map(spark_of).or_else(|| self.host.holder(port))
    }

    fn is_free(&self, port: &Published) -> bool {
        self.spark_with(port).is_none() && self.host.is_free(port)
    }

    fn add(&mut self, port: &Published, member: &'a Path) {
        self.sparks.entry((port.protocol, port.host)).or_default().push((port.ip, member));
    }
}

/// Chooses a port of the host for each that has none yet, and another for each of the `chosen` that somebody has. Refuses
/// those that cannot be published. What the member of the file `own` has counts as free.
///
/// # Errors
/// `network`, naming who has a port or what is wrong with it; `usage` for ports that exclude one another.
pub(super) fn settle(
    ports: &[Published],
    chosen: &[Published],
    claims: &Claims,
    host: &Listeners,
    own: &Path,
) -> Result<Settled> {
    refuse_many(ports)?;
    refuse_addresses(ports)?;
    let mut taken = Taken { sparks: HashMap::new(), host };
    for (port, member) in claims.held().filter(|(_, member)| *member != own) {
        taken.add(port, member);
    }
    let chosen: HashSet<&Published> = chosen.iter().collect();
    let is_named = |port: &&Published| !port.is_open() && !chosen.contains(port);
    for port in ports.iter().filter(is_named) {
        match taken.holder(port) {
            None => taken.add(port, own),
            Some(_) if taken.spark_with(port) == Some(own) => return Err(twice(port)),
            Some(who) => return Err(refused(port, &who)),
        }
    }
    let mut free = Free::new()?;
    let mut settled = Settled::default();
    for port in ports {
        if is_named(&port) {
            settled.ports.push(port.clone());
            continue;
        }
        let keeps = !port.is_open() && taken.holder(port).is_none();
        let port = if keeps { port.clone() } else { free.instead_of(port, &taken)? };
        taken.add(&port, own);
        settled.chosen.push(port.clone());
        settled.ports.push(port);
    }
    Ok(settled)
}

fn twice(port: &Published) -> Error {
    Error::Usage {
        message: format!("port {} of the host is named twice: a port leads to one place", port.host_side()),
        hint: Some("leave one of the two out".into()),
    }
}

fn refused(port: &Published, who: &str) -> Error {
    Error::Network {
        what: format!("port {} of the host is taken by {who}", port.host_side()),
        hint: Some(format!("publish another port, or `-p {}` for one that is free", port.spark)),
    }
}

fn refuse_many(ports: &[Published]) -> Result<()> {
    if ports.len() <= MOST {
        return Ok(());
    }
    Err(Error::Usage {
        message: format!("a spark publishes at most {MOST} ports, and these are {}", ports.len()),
        hint: Some("inside, a proxy can serve many names at one port".into()),
    })
}

/// Refuses addresses that packets to this host do not have.
fn refuse_addresses(ports: &[Published]) -> Result<()> {
    let is_some = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_loopback();
    let mut ips: Vec<IpAddr> = ports.iter().filter_map(|port| port.ip).filter(is_some).collect();
    ips.sort();
    ips.dedup();
    for ip in ips {
        let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        let why = match link::kind_of(ip)? {
            _ if ip.is_multicast() => "is a multicast address".to_owned(),
            _ if is_broadcast => "is a broadcast address".to_owned(),
            Some(RouteType::Local) => continue,
            Some(RouteType::Broadcast) => "is a broadcast address".to_owned(),
            _ => "is not an address of this host".to_owned(),
        };
        return Err(Error::Network {
            what: format!("nothing can be published on {ip}: it {why}"),
            hint: Some(
                "see the host's addresses with `ip address`; without an address, a port is published on all"
                    .into(),
            ),
        });
    }
    Ok(())
}

/// Looks for free ports where the kernel takes those of sockets that name none.
struct Free {
    first: u16,
    count: u32,
    next: u32,
}

impl Free {
    fn new() -> Result<Free> {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let mut words = text.split_ascii_whitespace().filter_map(|word| word.parse::<u16>().ok());
        let (first, last) = (words.next().unwrap_or(32768), words.next().unwrap_or(60999));
        let start = sys::sockets::random::<4>().map_err(Error::sys("choose a port of the host"))?;
        let count = u32::from(last.saturating_sub(first)) + 1;
        Ok(Free { first, count, next: u32::from_ne_bytes(start) % count })
    }

    fn instead_of(&mut self, port: &Published, taken: &Taken<'_>) -> Result<Published> {
        for _ in 0..self.count {
            let host = (u32::from(self.first) + self.next) as u16;
            self.next = (self.next + 1) % self.count;
            let candidate = Published { host, ..port.clone() };
            if taken.is_free(&candidate) {
                return Ok(candidate);
            }
        }
        Err(Error::Network {
            what: format!("no port of the host is free for {}/{}", port.spark, port.protocol),
            hint: Some("name one: `-p HOST:SPARK`".into()),
        })
    }
}

fn spark_of(file: &Path) -> String {
    match super::read_member(file) {
        Some(member) => format!("spark `{}` of project `{}`", member.name, member.project),
        None => "another spark".into(),
    }
}
