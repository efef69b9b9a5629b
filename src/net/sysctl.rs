//! Settings of the kernel, per device.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

fn path(family: &str, of: &str, key: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(family).join(of).join(key)
}

/// Whether the kernel speaks IPv6.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf/all").exists()
}

/// `conf/DEVICE/KEY` of a family; none where the kernel has no such setting.
pub(super) fn get(family: &str, device: &str, key: &str) -> Option<String> {
    std::fs::read_to_string(path(family, &format!("conf/{device}"), key)).ok().map(|t| t.trim().to_owned())
}

pub(super) fn set(family: &str, device: &str, key: &str, value: &str) -> Result<()> {
    let path = path(family, &format!("conf/{device}"), key);
    std::fs::write(&path, value).map_err(Error::io("change", path))
}

/// How long the host takes to notice that nobody has an address, in milliseconds: that of a spark that is gone too, where
/// its bridge's sink cannot refuse. A kernel that is busy has three times 50 of them to answer for a spark.
const NEIGHBOUR: [(&str, &str); 6] = [
    ("base_reachable_time_ms", "500"),
    ("delay_first_probe_time", "0"),
    ("retrans_time_ms", "50"),
    ("mcast_solicit", "3"),
    ("ucast_solicit", "3"),
    ("gc_stale_time", "1"),
];

/// A bridge forwards, whatever the host does; takes packets of 127.0.0.1 for published ports; learns nothing from sparks.
pub(super) fn of_bridge(name: &str) -> Result<()> {
    set("ipv4", name, "forwarding", "1")?;
    set("ipv4", name, "route_localnet", "1")?;
    let _ = set("ipv4", name, "accept_redirects", "0");
    for family in ["ipv4", "ipv6"].iter().take(if has_ipv6() { 2 } else { 1 }) {
        for (key, value) in NEIGHBOUR {
            // Some kernel lacks some: then it takes longer.
            let _ = std::fs::write(path(family, &format!("neigh/{name}"), key), value);
        }
    }
    if has_ipv6() {
        set("ipv6", name, "disable_ipv6", "0")?;
        set("ipv6", name, "accept_ra", "0")?;
        set("ipv6", name, "accept_redirects", "0")?;
        set("ipv6", name, "accept_dad", "0")?;
        let _ = set("ipv6", name, "force_forwarding", "1");
    }
    Ok(())
}

/// A port of a bridge has no address of its own.
pub(super) fn of_port(name: &str) {
    let _ = set("ipv6", name, "disable_ipv6", "1");
}

/// In the namespace of a spark: no address but the one that it is given, no router but the host.
pub(super) fn inside(name: &str) {
    for (key, value) in [("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_redirects", "0")] {
        let _ = set("ipv6", name, key, value);
    }
}
