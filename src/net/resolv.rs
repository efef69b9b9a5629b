//! `/etc/resolv.conf` for a spark: the host's, without what only the host reaches.

use std::net::IpAddr;

/// Where systemd-resolved says whom it asks itself.
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

/// The resolvers that a file names.
pub(super) fn nameservers(text: &str) -> Vec<IpAddr> {
    text.lines().filter_map(nameserver).collect()
}

fn nameserver(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    if words.next()? != "nameserver" {
        return None;
    }
    let address = words.next()?;
    address.split('%').next()?.parse().ok()
}

/// What a spark with a project network gets, and whether a resolver is in it.
pub fn for_project() -> (String, bool) {
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let reachable = |text: &str| nameservers(text).iter().any(|ip| !ip.is_loopback());
    let text = match std::fs::read_to_string(UPSTREAM) {
        Ok(upstream) if !reachable(&host) && reachable(&upstream) => upstream,
        _ => host,
    };
    let found = reachable(&text);
    (without_loopback(&text), found)
}

/// A resolver on 127.0.0.1 is the host's: inside, that is the spark itself.
fn without_loopback(text: &str) -> String {
    let kept = text.lines().filter(|line| !nameserver(line).is_some_and(|ip| ip.is_loopback()));
    let mut out: String = kept.flat_map(|line| [line, "\n"]).collect();
    if nameservers(&out).is_empty() {
        out.push_str("# the host's resolver is on its loopback device, which a spark does not reach\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_on_loopback_is_left_out() {
        let text = "search lan\nnameserver 127.0.0.53\nnameserver 192.0.2.1\noptions edns0\n";
        assert_eq!(without_loopback(text), "search lan\nnameserver 192.0.2.1\noptions edns0\n");
        assert!(without_loopback("nameserver ::1\n").starts_with("# the host's resolver"));
        assert_eq!(nameservers("nameserver fe80::1%eth0\n#nameserver 1.1.1.1\n").len(), 1);
    }
}
