//! The addresses of a project: one network of IPv4 and one of IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Bits of a project's network of IPv4: room for 4,093 sparks.
pub const PREFIX4: u8 = 20;
/// The first number that a spark can have.
pub const FIRST: u16 = 2;
/// The last.
pub const LAST: u16 = 4094;

/// A network: an address and how many of its bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    /// Whether all of the other is in this one.
    pub fn covers(&self, other: &Cidr) -> bool {
        match (self.address, other.address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                self.prefix <= other.prefix
                    && (u32::from(a) ^ u32::from(b)).checked_shr(32 - u32::from(self.prefix)).unwrap_or(0)
                        == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                self.prefix <= other.prefix
                    && (u128::from(a) ^ u128::from(b)).checked_shr(128 - u32::from(self.prefix)).unwrap_or(0)
                        == 0
            }
            _ => false,
        }
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.covers(other) || other.covers(self)
    }
}

impl From<IpAddr> for Cidr {
    fn from(address: IpAddr) -> Cidr {
        Cidr { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;
    fn from_str(text: &str) -> Result<Cidr, String> {
        let wrong = || format!("`{}` is not a network: write ADDRESS/BITS", text.escape_default());
        let (address, prefix) = match text.split_once('/') {
            None => return text.parse::<IpAddr>().map(Cidr::from).map_err(|_| wrong()),
            Some((address, prefix)) => {
                (address.parse().map_err(|_| wrong())?, prefix.parse().map_err(|_| wrong())?)
            }
        };
        // Bits that do not count are cleared, so that one network is written in one way.
        let address = match address {
            IpAddr::V4(a) if prefix <= 32 => IpAddr::V4(Ipv4Addr::from(
                u32::from(a) & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0),
            )),
            IpAddr::V6(a) if prefix <= 128 => IpAddr::V6(Ipv6Addr::from(
                u128::from(a) & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0),
            )),
            _ => return Err(wrong()),
        };
        Ok(Cidr { address, prefix })
    }
}

impl From<Cidr> for String {
    fn from(net: Cidr) -> String {
        net.to_string()
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;
    fn try_from(text: String) -> Result<Cidr, String> {
        text.parse()
    }
}

/// What a project's sparks have addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Subnet {
    /// The first address of the network, of [`PREFIX4`] bits.
    pub v4: Ipv4Addr,
    /// The first address of a network of 64 bits, for this place alone (RFC 4193).
    pub v6: Ipv6Addr,
}

impl Subnet {
    /// The address with a number.
    pub fn v4(&self, number: u16) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.v4) + u32::from(number))
    }

    /// The same of IPv6.
    pub fn v6(&self, number: u16) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.v6) + u128::from(number))
    }

    /// What tells it from those of other projects of the installation.
    pub fn key(&self) -> u32 {
        u32::from(self.v4)
    }

    pub fn net4(&self) -> Cidr {
        Cidr { address: self.v4.into(), prefix: PREFIX4 }
    }

    pub fn net6(&self) -> Cidr {
        Cidr { address: self.v6.into(), prefix: 64 }
    }
}

/// `projects/P/network.json`: what a project's network is like, so that it is the same after a reboot.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct NetworkRecord {
    /// [`super::FORMAT`].
    pub version: u32,
    #[serde(flatten)]
    pub subnet: Subnet,
    /// Rules for sparks that have none of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<super::egress::Egress>,
    /// Fields of a later version of this program, kept as they are.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_covers_what_is_in_it() {
        let net = |t: &str| t.parse::<Cidr>().unwrap();
        assert_eq!(net("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert!(net("0.0.0.0/0").covers(&net("10.0.0.0/8")) && net("10.0.0.0/8").covers(&net("10.1.0.0/20")));
        assert!(
            !net("10.1.0.0/20").covers(&net("10.0.0.0/8")) && net("10.1.0.0/20").overlaps(&net("10.0.0.0/8"))
        );
        assert!(
            !net("10.1.0.0/20").overlaps(&net("10.1.16.0/20")) && !net("::/0").overlaps(&net("0.0.0.0/0"))
        );
        assert!(net("::/0").covers(&net("fd00::1")));
    }
}
