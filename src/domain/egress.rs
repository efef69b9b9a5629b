//! What a spark may reach beyond its project: `all`, `deny`, or `allow=CIDR|NAME[:PORT],…`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::subnet::Cidr;

/// Rules for what a spark sends out of its project.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Egress {
    /// Everything, but the host itself.
    All,
    /// These, and nothing else.
    Only(Vec<Destination>),
}

/// Where something may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub host: Host,
    /// Of TCP, UDP and SCTP; everything if none.
    pub port: Option<u16>,
}

/// Whom a destination means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Net(Cidr),
    /// A name, resolved when the spark starts.
    Name(String),
}

impl Egress {
    /// These rules and those: what either allows.
    pub fn and(self, other: Egress) -> Egress {
        match (self, other) {
            (Egress::Only(mut all), Egress::Only(more)) => {
                all.extend(more);
                Egress::Only(all)
            }
            _ => Egress::All,
        }
    }
}

impl FromStr for Egress {
    type Err = String;

    fn from_str(text: &str) -> Result<Egress, String> {
        match text.split_once('=') {
            None if text == "all" => Ok(Egress::All),
            None if text == "deny" => Ok(Egress::Only(Vec::new())),
            Some(("allow", list)) => {
                list.split(',').map(str::parse).collect::<Result<_, _>>().map(Egress::Only)
            }
            _ => Err(format!(
                "`{}` is not understood: write all, deny or allow=CIDR|NAME[:PORT],…",
                text.escape_default()
            )),
        }
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Destination, String> {
        let wrong = || {
            format!(
                "`{}` is not a destination: write CIDR or NAME, with :PORT if wanted",
                text.escape_default()
            )
        };
        if let Ok(net) = text.parse() {
            return Ok(Destination { host: Host::Net(net), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            None => (text, None),
            Some((host, port)) => (host, Some(port.parse().ok().filter(|p| *p > 0).ok_or_else(wrong)?)),
        };
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bare.unwrap_or(host).parse::<Cidr>() {
            Ok(net) if bare.is_some() == net.address.is_ipv6() => Host::Net(net),
            Ok(_) => return Err(wrong()),
            // A name that is all digits and dots is an address with a slip in it.
            Err(_) if host.bytes().all(|b| b.is_ascii_digit() || b".:/".contains(&b)) => return Err(wrong()),
            Err(_) => Host::Name(dns_name(host).ok_or_else(wrong)?),
        };
        Ok(Destination { host, port })
    }
}

/// A name of the domain name system, RFC 1123.
pub(super) fn dns_name(text: &str) -> Option<String> {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    (text.len() <= 253 && text.split('.').all(label)).then(|| text.to_ascii_lowercase())
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Net(net), None) => net.fmt(f),
            (Host::Net(net), Some(port)) if matches!(net.address, IpAddr::V6(_)) => {
                write!(f, "[{net}]:{port}")
            }
            (Host::Net(net), Some(port)) => write!(f, "{net}:{port}"),
            (Host::Name(name), None) => f.write_str(name),
            (Host::Name(name), Some(port)) => write!(f, "{name}:{port}"),
        }
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Egress::All => f.write_str("all"),
            Egress::Only(list) if list.is_empty() => f.write_str("deny"),
            Egress::Only(list) => {
                f.write_str("allow=")?;
                list.iter()
                    .enumerate()
                    .try_for_each(|(n, to)| write!(f, "{}{to}", if n > 0 { "," } else { "" }))
            }
        }
    }
}

impl From<Egress> for String {
    fn from(egress: Egress) -> String {
        egress.to_string()
    }
}

impl TryFrom<String> for Egress {
    type Error = String;
    fn try_from(text: String) -> Result<Egress, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_they_are_written() {
        for text in
            ["all", "deny", "allow=10.0.0.0/8", "allow=example.com:443,1.2.3.4/32:53,[fd00::/8]:80,fd00::/64"]
        {
            assert_eq!(text.parse::<Egress>().unwrap().to_string(), text);
        }
        assert_eq!("allow=1.2.3.4".parse::<Egress>().unwrap().to_string(), "allow=1.2.3.4/32");
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for bad in [
            "",
            "allow",
            "allow=",
            "allow=a b",
            "allow=1.2.3",
            "allow=1.2.3.4/33",
            "allow=a:0",
            "allow=a:b",
            "deny=x",
            "allow=-a",
        ] {
            assert!(bad.parse::<Egress>().is_err(), "{bad}");
        }
    }
}
