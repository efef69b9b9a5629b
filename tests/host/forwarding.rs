//! What becomes of a host's own forwarding, once sparks have had networks.

use crate::netns::Host;

/// It needs no rules of routing, which would make a route in the table of sparks.
#[test]
fn a_host_that_forwards_already_is_left_as_it_was() {
    let host = Host::new();
    for family in ["ipv4", "ipv6"] {
        let files = format!("/proc/sys/net/{family}/conf/*/*forwarding");
        host.on_host(&[
            "sh",
            "-c",
            &format!("for file in {files}; do case $file in *mc_*) ;; *) echo 1 > $file; esac; done"),
        ]);
    }
    let before = host.state();
    host.spark(&["create", "web"]).ok();
    assert!(!host.on_host(&["ip", "-6", "rule"]).contains("535"));
    host.spark(&["stop", "web"]).ok();
    host.is_again(&before);
}
