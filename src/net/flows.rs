//! Flows of UDP that run while ports are published or taken back. The kernel remembers where each of them goes for as long as
//! somebody sends, whatever rules there are now.

use std::collections::HashMap;
use std::net::IpAddr;

use super::link;
use crate::domain::port::{Protocol, Published, overlap};
use crate::error::Error;
use crate::sys::conntrack::{self, Flow};

/// Has the rules of now decide about flows to these ports of the host, and about those that lead there from one of `sparks`. For
/// who calls, ports are what they are: a kernel that does not let flows be forgotten is no reason to fail.
///
/// In the router's namespace nothing has to be forgotten: a packet comes there with the address of its spark, and goes to no other.
pub(super) fn forget(ports: &[Published], sparks: &[IpAddr]) {
    let mut datagrams: HashMap<u16, Vec<Option<IpAddr>>> = HashMap::new();
    for port in ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        datagrams.entry(port.host).or_default().push(port.ip);
    }
    if datagrams.is_empty() {
        return;
    }
    let forgotten = link::addresses().and_then(|own| {
        conntrack::forget_datagrams(|flow| is_about(flow, &datagrams, &own, sparks))
            .map_err(Error::sys("have the kernel forget flows of UDP"))
    });
    if let Err(e) = forgotten {
        tracing::warn!("packets of flows that run may go on to where they went: {e}");
    }
}

/// Whether a flow is to one of the ports, or has one of them by translation.
fn is_about(
    flow: &Flow,
    ports: &HashMap<u16, Vec<Option<IpAddr>>>,
    own: &[IpAddr],
    sparks: &[IpAddr],
) -> bool {
    let is_own = |ip: IpAddr| ip.is_loopback() || own.contains(&ip);
    let at = |port: u16, ip: IpAddr| {
        ports.get(&port).is_some_and(|ips| ips.iter().any(|at| overlap(*at, Some(ip))))
    };
    let leads = is_own(flow.to.ip()) || sparks.contains(&flow.back_from.ip());
    let is_translated = flow.from != flow.back_to && is_own(flow.back_to.ip());
    (leads && at(flow.to.port(), flow.to.ip()))
        || (is_translated && at(flow.back_to.port(), flow.back_to.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_to_published_ports_are_told_from_others() {
        let (own, spark) = ("198.51.100.1".parse().unwrap(), "10.128.0.2".parse().unwrap());
        let about = |ip: Option<IpAddr>, [from, to, back_from, back_to]: [&str; 4]| {
            let [from, to, back_from, back_to] =
                [from, to, back_from, back_to].map(|text| text.parse().unwrap());
            let ports = HashMap::from([(53, vec![ip])]);
            is_about(&Flow { from, to, back_from, back_to }, &ports, &[own], &[spark])
        };
        let (peer, host) = ("203.0.113.9:4000", "198.51.100.1:53");
        assert!(about(None, [peer, host, host, peer]), "it began before the port was published");
        assert!(about(Some(own), [peer, host, "10.128.0.2:5353", peer]), "it went to a spark");
        assert!(about(None, ["127.0.0.1:4000", "127.0.0.1:53", "10.128.0.2:5353", "100.64.0.1:4000"]));
        assert!(about(None, [peer, "198.51.100.7:53", "10.128.0.2:5353", peer]), "an address that is gone");
        assert!(about(None, ["100.64.0.2:53", peer, peer, host]), "a spark's, which would come back to it");
        assert!(!about(None, [host, peer, peer, host]), "the host's own");
        assert!(!about(None, ["100.64.0.2:4000", "203.0.113.9:53", "203.0.113.9:53", "198.51.100.1:4000"]));
        assert!(!about(Some(spark), [peer, host, host, peer]), "it is at another address");
        assert!(!about(None, [peer, "198.51.100.1:54", "198.51.100.1:54", peer]));
    }
}
