//! A port of the host, and the port of a spark that it leads to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// `[[IP:]HOST:]INSIDE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Where the host listens: on the loopback device unless told otherwise.
    pub listen: SocketAddr,
    pub inside: u16,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("`{}` is not a port: write 80, 8080:80 or IP:8080:80", s.escape_default());
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(bad()),
        };
        let (before, inside) = s.rsplit_once(':').unwrap_or(("", s));
        let inside = port(inside)?;
        let loopback = |host| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), host);
        let listen = match before.rsplit_once(':') {
            _ if before.is_empty() && s.contains(':') => return Err(bad()),
            _ if before.is_empty() => loopback(inside),
            None => loopback(port(before)?),
            Some((ip, host)) => {
                let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
                SocketAddr::new(bare.parse::<IpAddr>().map_err(|_| bad())?, port(host)?)
            }
        };
        Ok(Forward { listen, inside })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.listen, self.inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_the_same_on_both_sides_and_what_it_says_can_be_read_again() {
        for (text, shown) in [
            ("80", "127.0.0.1:80:80"),
            ("8080:80", "127.0.0.1:8080:80"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080:80"),
            ("[::1]:8080:80", "[::1]:8080:80"),
        ] {
            let forward: Forward = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(forward.to_string(), shown);
            assert_eq!(shown.parse(), Ok(forward));
        }
        for bad in ["", "0", "x", "80:", ":80", "1:2:3", "65536", "+80", "a:1:2", "1.2.3.4:80"] {
            assert!(bad.parse::<Forward>().is_err(), "{bad}");
        }
    }
}
