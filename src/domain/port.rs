//! Published ports: `[[IP:]HOST:]SPARK[/udp]`.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Most ports that one spark publishes.
pub const MOST: usize = 4096;

/// What runs over IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port of the host that leads to a port of a spark.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Published {
    pub protocol: Protocol,
    /// As with bind(2), 0 is any free port: one is chosen before it is published.
    pub host: u16,
    pub spark: u16,
    /// The address of the host; all if none.
    pub ip: Option<IpAddr>,
}

impl Published {
    /// Whether a free port of the host is to be chosen for it.
    pub fn is_open(&self) -> bool {
        self.host == 0
    }

    /// Whether the two want one port of the host.
    pub fn clashes(&self, other: &Published) -> bool {
        self.protocol == other.protocol && self.host == other.host && overlap(self.ip, other.ip)
    }

    /// The host's side: `127.0.0.1:8080/tcp`.
    pub fn host_side(&self) -> String {
        format!("{}/{}", self.host_place(), self.protocol)
    }
}

/// Whether an address is of both; none is every address.
pub fn overlap(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    match (one, other) {
        (Some(a), Some(b)) => {
            a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
        }
        _ => true,
    }
}

/// Those of some ports that are not among others.
pub fn without(ports: &[Published], others: &[Published]) -> Vec<Published> {
    let others: HashSet<&Published> = others.iter().collect();
    ports.iter().filter(|port| !others.contains(port)).cloned().collect()
}

/// Ports in the words of `-p`, with those that follow one another as ranges.
pub fn ranges(ports: &[Published]) -> Vec<String> {
    let mut sorted: Vec<&Published> = ports.iter().collect();
    sorted.sort_by_key(|p| (p.ip, p.protocol, p.host, p.spark));
    let follows = |a: &&Published, b: &&Published| {
        let next = (a.ip, a.protocol, u32::from(a.host) + 1, u32::from(a.spark) + 1);
        next == (b.ip, b.protocol, u32::from(b.host), u32::from(b.spark))
    };
    let one = |run: &[&Published]| match run {
        [] => String::new(),
        [only] => only.to_string(),
        [first, .., last] => {
            let host = format!("{}-{}", first.host_place(), last.host);
            format!("{host}:{}-{}{}", first.spark, last.spark, first.suffix())
        }
    };
    sorted.chunk_by(follows).map(one).collect()
}

/// For each address that ports are published on: which of its ports lead where.
pub fn by_address(ports: &[Published]) -> Vec<String> {
    let mut addresses: Vec<Option<IpAddr>> = ports.iter().map(|p| p.ip).collect();
    addresses.sort();
    addresses.dedup();
    let of = |ip: Option<IpAddr>| {
        let bare = ports.iter().filter(|p| p.ip == ip).map(|p| Published { ip: None, ..p.clone() });
        let place = match ip {
            None => "every address of the host".to_owned(),
            Some(ip) if ip.is_unspecified() && ip.is_ipv4() => "every IPv4 address of the host".to_owned(),
            Some(ip) if ip.is_unspecified() => "every IPv6 address of the host".to_owned(),
            Some(ip) => ip.to_string(),
        };
        format!("{place}: {}", ranges(&bare.collect::<Vec<_>>()).join(", "))
    };
    addresses.into_iter().map(of).collect()
}

impl Published {
    fn host_place(&self) -> String {
        match self.ip {
            None => self.host.to_string(),
            Some(ip) => SocketAddr::new(ip, self.host).to_string(),
        }
    }

    fn suffix(&self) -> &'static str {
        if self.protocol == Protocol::Udp { "/udp" } else { "" }
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.host_place(), self.spark, self.suffix())
    }
}

impl From<Published> for String {
    fn from(port: Published) -> String {
        port.to_string()
    }
}

impl TryFrom<String> for Published {
    type Error = String;
    fn try_from(text: String) -> Result<Published, String> {
        match text.parse::<Ports>()?.0.as_slice() {
            [one] => Ok(one.clone()),
            _ => Err(format!("`{}` is more than one port", text.escape_default())),
        }
    }
}

/// What `-p` takes: one port, or a range of them, `8000-8010:80-90`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(pub Vec<Published>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Ports, String> {
        let wrong = || format!("`{}` is not a port: write [[IP:]HOST:]SPARK[/udp]", text.escape_default());
        let (rest, protocol) = protocol_of(text).ok_or_else(wrong)?;
        let (host, spark) = rest.rsplit_once(':').unwrap_or(("0", rest));
        let (ip, host) = place_of(host).ok_or_else(wrong)?;
        if ip.is_some_and(|ip| ip.is_ipv6() && ip.is_loopback()) {
            return Err(
                "the kernel sends no packet of ::1 to another device: publish on 127.0.0.1 instead".into()
            );
        }
        let protocol = protocol.unwrap_or(Protocol::Tcp);
        let to = range(spark).filter(|to| to.0 > 0).ok_or_else(wrong)?;
        // Docker writes the second.
        if host == "0" || (ip.is_some() && host.is_empty()) {
            let open = (to.0..=to.1).map(|spark| Published { protocol, host: 0, spark, ip });
            return Ok(Ports(open.collect()));
        }
        let from = range(host).filter(|from| from.0 > 0).ok_or_else(wrong)?;
        if from.1 - from.0 != to.1 - to.0 {
            return Err(format!("the two ranges of `{}` have not the same length", text.escape_default()));
        }
        let both = (from.0..=from.1).zip(to.0..=to.1);
        Ok(Ports(both.map(|(host, spark)| Published { protocol, host, spark, ip }).collect()))
    }
}

/// The part before the protocol, and that if it is named.
fn protocol_of(text: &str) -> Option<(&str, Option<Protocol>)> {
    match text.rsplit_once('/') {
        None => Some((text, None)),
        Some((rest, "tcp")) => Some((rest, Some(Protocol::Tcp))),
        Some((rest, "udp")) => Some((rest, Some(Protocol::Udp))),
        Some(_) => None,
    }
}

/// An address of the host, if one is named, and what stands behind it.
fn place_of(text: &str) -> Option<(Option<IpAddr>, &str)> {
    let Some((ip, host)) = text.rsplit_once(':') else { return Some((None, text)) };
    let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    let parsed: IpAddr = bare.unwrap_or(ip).parse().ok()?;
    (bare.is_some() == parsed.is_ipv6()).then_some((Some(parsed.to_canonical()), host))
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

/// Which published ports `port close` means: by their ports of the host, `[IP:]HOST[/udp]`, or as they were published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closing {
    /// Whatever of these ports of the host is published.
    Host { ip: Option<IpAddr>, first: u16, last: u16, protocol: Option<Protocol> },
    /// Exactly these.
    Exact(Vec<Published>),
}

impl FromStr for Closing {
    type Err = String;

    fn from_str(text: &str) -> Result<Closing, String> {
        let by_host = || {
            let (rest, protocol) = protocol_of(text)?;
            let (ip, host) = place_of(rest)?;
            let (first, last) = range(host).filter(|(first, _)| *first > 0)?;
            Some(Closing::Host { ip, first, last, protocol })
        };
        if let Some(closing) = by_host() {
            return Ok(closing);
        }
        let Ok(Ports(ports)) = text.parse() else {
            return Err(format!("`{}` is not a port: write [IP:]HOST[:SPARK][/udp]", text.escape_default()));
        };
        match ports.iter().any(Published::is_open) {
            true => Err(format!("`{}` names no port of the host", text.escape_default())),
            false => Ok(Closing::Exact(ports)),
        }
    }
}

impl Closing {
    /// The ports that it means, of those that are published.
    ///
    /// # Errors
    /// What is wrong: nothing is published there, or more than one port is meant.
    pub fn among(&self, published: &[Published]) -> Result<Vec<Published>, String> {
        match self {
            Closing::Exact(ports) => match ports.iter().find(|port| !published.contains(port)) {
                Some(missing) => Err(format!("{missing} is not published")),
                None => Ok(ports.clone()),
            },
            Closing::Host { ip, first, last, protocol } => {
                let one = |host| one_at(host, *ip, *protocol, published);
                (*first..=*last).map(one).collect()
            }
        }
    }
}

/// The one port that is published at a port of the host.
fn one_at(
    host: u16,
    ip: Option<IpAddr>,
    protocol: Option<Protocol>,
    published: &[Published],
) -> Result<Published, String> {
    let at = |port: &&Published| {
        port.host == host
            && (ip.is_none() || port.ip == ip)
            && protocol.is_none_or(|protocol| port.protocol == protocol)
    };
    let found: Vec<&Published> = published.iter().filter(at).collect();
    match found.as_slice() {
        [] => Err(format!("port {host} of the host is not published")),
        [one] => Ok((*one).clone()),
        all => {
            let names: Vec<String> = all.iter().map(|port| format!("`{port}`")).collect();
            Err(format!("port {host} of the host is published as {}: name one", names.join(" and ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_reads_as_it_is_written() {
        for text in ["8080:80", "53:53/udp", "127.0.0.1:8080:80", "[fd00::1]:8080:80/udp"] {
            assert_eq!(Published::try_from(text.to_owned()).unwrap().to_string(), text);
        }
        for (text, same) in [
            ("80", "0:80"),
            ("53/udp", "0:53/udp"),
            ("127.0.0.1::80", "127.0.0.1:0:80"),
            ("[::ffff:10.0.0.1]:1:2", "10.0.0.1:1:2"),
        ] {
            assert_eq!(Published::try_from(text.to_owned()).unwrap().to_string(), same);
        }
        let open: Ports = "127.0.0.1:0:80-82".parse().unwrap();
        assert_eq!(open.0.iter().map(|p| (p.host, p.spark)).collect::<Vec<_>>(), [(0, 80), (0, 81), (0, 82)]);
        let range: Ports = "8000-8002:80-82".parse().unwrap();
        assert_eq!(
            range.0.iter().map(|p| (p.host, p.spark)).collect::<Vec<_>>(),
            [(8000, 80), (8001, 81), (8002, 82)]
        );
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for bad in [
            "0",
            "0-3:1-4",
            "80:0",
            "80:90000",
            "1-3:1-2",
            "3-1:3-1",
            "a:1",
            "::1:1:1",
            "1.2.3:1:1",
            "1:1/sctp",
            "[::1]:1:1",
            "[1.2.3.4]:1:1",
            ":1",
            "1:",
        ] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_that_follow_one_another_are_told_as_a_range() {
        let of = |texts: &[&str]| -> Vec<Published> {
            texts.iter().flat_map(|text| text.parse::<Ports>().unwrap().0).collect()
        };
        let ports = of(&["8000-8010:80-90", "9000:80", "53-54:53-54/udp", "127.0.0.1:8011:91"]);
        let all = ["8000-8010:80-90", "9000:80", "53-54:53-54/udp", "127.0.0.1:8011:91"];
        assert_eq!(ranges(&ports), all);
        assert_eq!(ranges(&of(&["1:2", "2:2", "4:3"])), ["1:2", "2:2", "4:3"]);
        assert_eq!(
            by_address(&ports),
            ["every address of the host: 8000-8010:80-90, 9000:80, 53-54:53-54/udp", "127.0.0.1: 8011:91"]
        );
    }

    #[test]
    fn a_port_is_closed_by_that_of_the_host_unless_there_are_two() {
        let of = |text: &str| text.parse::<Ports>().unwrap().0;
        let published = [of("8080:80"), of("8080:80/udp"), of("9000-9002:1-3")].concat();
        let among = |text: &str| text.parse::<Closing>().unwrap().among(&published);
        assert_eq!(among("9001").unwrap(), of("9001:2"));
        assert_eq!(among("9000-9002").unwrap(), of("9000-9002:1-3"));
        assert_eq!(among("8080/udp").unwrap(), of("8080:80/udp"));
        assert_eq!(among("8080:80").unwrap(), of("8080:80"));
        assert!(among("8080").unwrap_err().contains("`8080:80` and `8080:80/udp`"));
        assert!(among("9003").unwrap_err().contains("port 9003"));
        assert!(among("9000:80").unwrap_err().contains("9000:80"));
        for bad in ["0", "0:80", "x", "1.2.3:1", "9-1"] {
            assert!(bad.parse::<Closing>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_clash_where_an_address_is_both() {
        let port = |text: &str| Published::try_from(text.to_owned()).unwrap();
        assert!(port("80:1").clashes(&port("127.0.0.1:80:2")));
        assert!(!port("127.0.0.1:80:1").clashes(&port("127.0.0.2:80:1")));
        assert!(!port("80:1").clashes(&port("80:1/udp")));
        assert!(port("0.0.0.0:80:1").clashes(&port("127.0.0.1:80:2")));
    }
}
