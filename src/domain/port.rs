//! Published ports: `[IP:]HOST:SPARK[/udp]`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Published {
    pub protocol: Protocol,
    pub host: u16,
    pub spark: u16,
    /// The address of the host; all if none.
    pub ip: Option<IpAddr>,
}

impl Published {
    /// Whether the two want one port of the host.
    pub fn clashes(&self, other: &Published) -> bool {
        let same_ip = match (self.ip, other.ip) {
            (Some(a), Some(b)) => {
                a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
            }
            _ => true,
        };
        self.protocol == other.protocol && self.host == other.host && same_ip
    }

    /// The host's side: `127.0.0.1:8080/tcp`.
    pub fn host_side(&self) -> String {
        match self.ip {
            None => format!("{}/{}", self.host, self.protocol),
            Some(ip) => format!("{}/{}", SocketAddr::new(ip, self.host), self.protocol),
        }
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            None => write!(f, "{}", self.host)?,
            Some(ip) => write!(f, "{}", SocketAddr::new(ip, self.host))?,
        }
        write!(f, ":{}", self.spark)?;
        if self.protocol == Protocol::Udp { f.write_str("/udp") } else { Ok(()) }
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
        let wrong = || format!("`{}` is not a port: write [IP:]HOST:SPARK[/udp]", text.escape_default());
        let (rest, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((rest, "tcp")) => (rest, Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some(_) => return Err(wrong()),
        };
        let (rest, spark) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let (ip, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((ip, host)) => {
                let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
                let parsed: IpAddr = bare.unwrap_or(ip).parse().map_err(|_| wrong())?;
                if bare.is_some() != parsed.is_ipv6() {
                    return Err(wrong());
                }
                (Some(parsed), host)
            }
        };
        if ip.is_some_and(|ip| ip.is_ipv6() && ip.is_loopback()) {
            return Err("the kernel forwards nothing from ::1: publish on 127.0.0.1".into());
        }
        let range = |text: &str| -> Option<(u16, u16)> {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first > 0 && first <= last).then_some((first, last))
        };
        let (from, to) = (range(host).ok_or_else(wrong)?, range(spark).ok_or_else(wrong)?);
        if from.1 - from.0 != to.1 - to.0 {
            return Err(format!("the two ranges of `{}` have not the same length", text.escape_default()));
        }
        Ok(Ports(
            (from.0..=from.1)
                .zip(to.0..=to.1)
                .map(|(host, spark)| Published { protocol, host, spark, ip })
                .collect(),
        ))
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
        let range: Ports = "8000-8002:80-82".parse().unwrap();
        assert_eq!(
            range.0.iter().map(|p| (p.host, p.spark)).collect::<Vec<_>>(),
            [(8000, 80), (8001, 81), (8002, 82)]
        );
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for bad in [
            "80",
            "0:80",
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
    fn ports_clash_where_an_address_is_both() {
        let port = |text: &str| Published::try_from(text.to_owned()).unwrap();
        assert!(port("80:1").clashes(&port("127.0.0.1:80:2")));
        assert!(!port("127.0.0.1:80:1").clashes(&port("127.0.0.2:80:1")));
        assert!(!port("80:1").clashes(&port("80:1/udp")));
        assert!(port("0.0.0.0:80:1").clashes(&port("127.0.0.1:80:2")));
    }
}
