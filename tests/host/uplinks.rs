//! Hosts as they are: without IPv6, with small packets, with several ways out.

use crate::netns::{BEYOND4, HOST4, Host, inside};

/// Beyond every way out.
const FAR: &str = "192.0.2.80";

#[test]
fn a_host_whose_devices_have_no_ipv6_gives_sparks_ipv4() {
    let host = Host::new();
    let off = "for f in default all; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done";
    host.on_host(&["sh", "-c", off]);
    host.talker("one/a", &["-p", "8080:80"]);
    host.talker("one/b", &[]);
    assert_eq!(host.hears("one/a", &["b 80".to_owned(), format!("{BEYOND4} 80")]), ["one/b", "beyond"]);
    assert_eq!(host.heard_by("i", &format!("{HOST4} 8080")), "one/a");
    assert_eq!(host.hears("one/a", &[format!("{HOST4} 7000")]), ["-"]);
}

#[test]
fn sparks_send_no_larger_packets_than_the_way_out_takes() {
    let host = Host::new();
    for which in ["h", "i"] {
        host.ok("ip", &["-n", &host.netns(which), "link", "set", "up0", "mtu", "1400"]);
    }
    let mut serve = inside(&host.netns("i"));
    serve.args(["socat", "TCP-LISTEN:90,reuseaddr,fork", "SYSTEM:head -c 200000 /dev/zero"]);
    host.background(serve);
    host.spark(&["create", "a"]).ok();
    assert!(host.spark(&["exec", "a", "--", "ip", "link", "show", "eth0"]).ok().contains("mtu 1400"));
    let length = format!("until nc -w 10 {BEYOND4} 90 </dev/null >/got; do sleep 0.1; done; wc -c </got");
    assert_eq!(host.spark(&["exec", "a", "--", "sh", "-c", &length]).ok().trim(), "200000");
    // A packet that is larger, and must not be cut, does not go.
    let ping = ["exec", "a", "--", "ping", "-c1", "-w5", "-s", "1372", BEYOND4];
    host.spark(&ping).ok();
}

/// A second device with a way out.
fn with_second_way(host: &Host) {
    let (h, i) = (host.netns("h"), host.netns("i"));
    host.ok("ip", &["-n", &h, "link", "add", "up1", "type", "veth", "peer", "name", "up1", "netns", &i]);
    for (ns, address) in [(&h, "203.0.113.1/24"), (&i, "203.0.113.2/24")] {
        host.ok("ip", &["-n", ns, "addr", "add", address, "dev", "up1"]);
        host.ok("ip", &["-n", ns, "link", "set", "up1", "up"]);
    }
    host.ok("ip", &["-n", &i, "addr", "add", &format!("{FAR}/32"), "dev", "lo"]);
}

/// What comes by the first way to the far address is refused beyond.
fn close_first_way(host: &Host) {
    let rules = "add table ip t; add chain ip t c { type filter hook prerouting priority 0; }; \
                 add rule ip t c iifname up0 ip daddr 192.0.2.80 drop";
    host.ok("ip", &["netns", "exec", &host.netns("i"), "nft", rules]);
}

#[test]
fn sparks_leave_by_the_way_that_the_host_takes_of_several() {
    let host = Host::new();
    with_second_way(&host);
    host.on_host(&["ip", "route", "add", "default", "via", "203.0.113.2", "dev", "up1", "metric", "100"]);
    host.spark(&["create", "a"]).ok();
    let far = [format!("{FAR} 80"), format!("{BEYOND4} 80")];
    assert_eq!(host.hears("a", &far), ["beyond"; 2]);
    close_first_way(&host);
    host.on_host(&["ip", "route", "del", "default", "via", BEYOND4]);
    assert_eq!(host.hears("a", &far[..1]), ["beyond"], "by the other one");
}

/// By the sender's device, as a VPN for some does it, and by a mark.
#[test]
fn sparks_follow_the_host_s_rules_of_routing() {
    let host = Host::new();
    with_second_way(&host);
    close_first_way(&host);
    // The answers come by another device than what goes there unmarked: a host with such rules does without.
    let lax = "for d in all up1; do echo 0 > /proc/sys/net/ipv4/conf/$d/rp_filter; done";
    host.on_host(&["sh", "-c", lax]);
    host.on_host(&["ip", "route", "add", "default", "via", "203.0.113.2", "dev", "up1", "table", "77"]);
    host.spark(&["create", "a"]).ok();
    let far = [format!("{FAR} 80")];
    let uplink = host.on_host(&["sh", "-c", "ip -o link | grep -o 'spk-[0-9a-f]*'"]);
    let rule = ["iif", uplink.trim(), "table", "77", "priority", "5000"];
    host.on_host(&[&["ip", "rule", "add"], &rule[..]].concat());
    assert_eq!(host.hears("a", &far), ["beyond"]);
    host.on_host(&[&["ip", "rule", "del"], &rule[..]].concat());
    let mark = "add table ip m; add chain ip m c { type filter hook prerouting priority mangle; }; \
                add rule ip m c iifname \"spk-*\" ip daddr 192.0.2.80 meta mark set 7";
    host.on_host(&["nft", mark]);
    host.on_host(&["ip", "rule", "add", "fwmark", "7", "table", "77", "priority", "5000"]);
    assert_eq!(host.hears("a", &far), ["beyond"]);
}
