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

/// The host's end of the uplink forwards, whatever the host does, and learns nothing from sparks.
pub(super) fn of_uplink(name: &str) -> Result<()> {
    set("ipv4", name, "forwarding", "1")?;
    let _ = set("ipv4", name, "accept_redirects", "0");
    // Answers to what the host's own addresses have sent come back here, by whatever route.
    let _ = set("ipv4", name, "rp_filter", "0");
    if has_ipv6() {
        set("ipv6", name, "disable_ipv6", "0")?;
        set("ipv6", name, "accept_ra", "0")?;
        set("ipv6", name, "accept_redirects", "0")?;
        set("ipv6", name, "accept_dad", "0")?;
        // The barrier asks for routes as the device's own, which needs the first; kernels from 6.17 on need the second.
        set("ipv6", name, "forwarding", "1")?;
        let _ = set("ipv6", name, "force_forwarding", "1");
    }
    Ok(())
}

/// Whether it forwards still.
pub(super) fn is_uplink(name: &str) -> bool {
    ["ipv4", "ipv6"].iter().all(|family| get(family, name, "forwarding").is_none_or(|value| value == "1"))
}

/// In the router's namespace: it forwards, refuses without counting how often, and gives its devices no addresses.
pub(super) fn of_router() -> Result<()> {
    let four = [
        ("all", "forwarding", "1"),
        ("all", "rp_filter", "0"),
        ("default", "rp_filter", "0"),
        ("all", "send_redirects", "0"),
        ("default", "send_redirects", "0"),
    ];
    let six = [
        ("default", "disable_ipv6", "0"),
        ("default", "accept_ra", "0"),
        ("default", "accept_dad", "0"),
        ("default", "addr_gen_mode", "1"),
        ("all", "forwarding", "1"),
    ];
    four.iter().try_for_each(|(device, key, value)| set("ipv4", device, key, value))?;
    let _ = std::fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0");
    if has_ipv6() {
        six.iter().try_for_each(|(device, key, value)| set("ipv6", device, key, value))?;
        let _ = std::fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0");
    }
    Ok(())
}

/// Whether packets with an address of 127.0.0.0/8 may go by a device, as those from the host to a published port do.
pub(super) fn take_loopback(name: &str, take: bool) -> Result<()> {
    let value = if take { "1" } else { "0" };
    if get("ipv4", name, "route_localnet").as_deref() == Some(value) {
        return Ok(());
    }
    set("ipv4", name, "route_localnet", value)
}

/// In the namespace of a spark: no address but the one that it is given, no router but the host.
pub(super) fn inside(name: &str) {
    // The host may have it off for new devices.
    let settings =
        [("disable_ipv6", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_redirects", "0")];
    for (key, value) in settings {
        let _ = set("ipv6", name, key, value);
    }
}
