//! The addresses of a project: blocks of IPv4 and one network of IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::spark::Id;

/// Bits of the network that a block is.
pub const BLOCK: u8 = 22;
/// How many numbers have their addresses in one block.
pub const OF_BLOCK: u16 = 1 << (32 - BLOCK);
/// Most blocks of a project.
pub const BLOCKS: usize = (1 << 16) >> (32 - BLOCK);
/// The first number that a spark can have. The last is that of the type.
pub const FIRST: u16 = 2;

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

/// The networks that a project's sparks have addresses of. A spark has a number, which says its block and its place there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(from = "Recorded")]
pub struct Subnet {
    /// The first addresses of its blocks of IPv4, of [`BLOCK`] bits.
    pub blocks: Vec<Ipv4Addr>,
    /// The first address of a network of 64 bits, for this project alone (RFC 4193). Unspecified before one is chosen.
    pub v6: Ipv6Addr,
}

/// Of a subnet, what records say.
#[derive(serde::Deserialize)]
struct Recorded {
    #[serde(default)]
    blocks: Vec<Ipv4Addr>,
    /// Earlier versions had one network of 20 bits.
    v4: Option<Ipv4Addr>,
    v6: Ipv6Addr,
}

impl From<Recorded> for Subnet {
    fn from(recorded: Recorded) -> Subnet {
        let mut blocks = recorded.blocks;
        if let (true, Some(first)) = (blocks.is_empty(), recorded.v4) {
            let first = u32::from(first) & (u32::MAX << (32 - 20));
            blocks.extend((0..4).map(|n| Ipv4Addr::from(first + n * u32::from(OF_BLOCK))));
        }
        blocks.truncate(BLOCKS);
        Subnet { blocks, v6: recorded.v6 }
    }
}

impl Default for Subnet {
    fn default() -> Subnet {
        Subnet { blocks: Vec::new(), v6: Ipv6Addr::UNSPECIFIED }
    }
}

impl Subnet {
    /// The block that a number is in.
    pub fn block_of(number: u16) -> usize {
        usize::from(number / OF_BLOCK)
    }

    /// The address of IPv4 with a number. None before its block is chosen.
    pub fn v4(&self, number: u16) -> Option<Ipv4Addr> {
        let block = self.blocks.get(Subnet::block_of(number))?;
        Some(Ipv4Addr::from(u32::from(*block) + u32::from(number % OF_BLOCK)))
    }

    /// The address of IPv6 with a number.
    pub fn v6(&self, number: u16) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.v6) + u128::from(number))
    }

    /// Its networks but those of the first blocks. That of IPv6 is with the first of all.
    pub fn nets_from(&self, first: usize) -> Vec<Cidr> {
        let v6 = (first == 0).then(|| net6(self.v6));
        self.blocks.iter().skip(first).map(|block| block_at(*block)).chain(v6).collect()
    }
}

/// The network that a block is.
pub fn block_at(first: Ipv4Addr) -> Cidr {
    Cidr { address: first.into(), prefix: BLOCK }
}

/// The network of IPv6 of a project.
pub fn net6(first: Ipv6Addr) -> Cidr {
    Cidr { address: first.into(), prefix: 64 }
}

/// The networks between the two ends of an uplink, of which four addresses are used: the host is 1, sparks are 2, and 3 with
/// `--allow-host`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Transit {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Transit {
    pub const PREFIX4: u8 = 29;
    pub const PREFIX6: u8 = 126;

    /// One of its addresses of IPv4.
    pub fn v4(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.v4) + u32::from(number))
    }

    /// One of its addresses of IPv6.
    pub fn v6(&self, number: u8) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.v6) + u128::from(number))
    }

    /// The networks of both families.
    pub fn nets(&self) -> [Cidr; 2] {
        [
            Cidr { address: self.v4.into(), prefix: Self::PREFIX4 },
            Cidr { address: self.v6.into(), prefix: Self::PREFIX6 },
        ]
    }
}

/// `projects/P/network.json`: what a project's network is like, so that it is the same after a reboot.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct NetworkRecord {
    /// [`super::FORMAT`].
    pub version: u32,
    /// What tells the network from all others of the installation: the project's id, unless the project's record was damaged
    /// when this one was made. Earlier versions wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    #[serde(flatten)]
    pub subnet: Subnet,
    /// Rules for sparks that have none of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<super::egress::Egress>,
    /// Fields of a later version of this program, kept as they are.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

impl Default for NetworkRecord {
    /// That of a network of which nothing is chosen.
    fn default() -> NetworkRecord {
        let (version, subnet) = (super::FORMAT, Subnet::default());
        NetworkRecord { version, id: None, subnet, egress: None, rest: serde_json::Map::default() }
    }
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

    #[test]
    fn numbers_of_a_project_s_blocks_have_an_address_each() {
        let subnet = Subnet {
            blocks: vec![[10, 128, 4, 0].into(), [172, 16, 8, 0].into()],
            v6: "fd00::".parse().unwrap(),
        };
        assert_eq!(subnet.v4(FIRST), Some([10, 128, 4, 2].into()));
        assert_eq!(subnet.v4(1023), Some([10, 128, 7, 255].into()));
        assert_eq!(subnet.v4(1024), Some([172, 16, 8, 0].into()));
        assert_eq!((subnet.v4(2048), subnet.v6(65535)), (None, "fd00::ffff".parse().unwrap()));
        assert_eq!(Subnet::block_of(u16::MAX), BLOCKS - 1);
        let nets = |first| subnet.nets_from(first).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(nets(0), ["10.128.4.0/22", "172.16.8.0/22", "fd00::/64"]);
        assert_eq!(nets(1), ["172.16.8.0/22"]);
        let text = serde_json::to_string(&subnet).unwrap();
        assert_eq!(serde_json::from_str::<Subnet>(&text).unwrap(), subnet);
    }

    #[test]
    fn sparks_of_a_network_of_an_earlier_version_keep_their_addresses() {
        let text = r#"{"version":1,"v4":"10.180.16.0","v6":"fd12::","egress":"deny","more":7}"#;
        let record: NetworkRecord = serde_json::from_str(text).unwrap();
        let at =
            |number: u16| Some(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 180, 16, 0)) + u32::from(number)));
        for number in [2, 1023, 1024, 4094] {
            assert_eq!(record.subnet.v4(number), at(number));
        }
        let again = serde_json::to_value(&record).unwrap();
        assert_eq!(again["blocks"].as_array().map(Vec::len), Some(4));
        assert_eq!((&again["v4"], &again["more"]), (&serde_json::Value::Null, &7.into()));
        assert_eq!(serde_json::from_value::<NetworkRecord>(again).unwrap().subnet, record.subnet);
    }
}
