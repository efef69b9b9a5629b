//! What came and went over a spark's own network.

use std::fs::File;
use std::path::PathBuf;

use super::live::Live;
use crate::sys;

/// Bytes over the devices of a network namespace, but for loopback.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// More than the table of any spark's devices.
const MAX: u64 = 1 << 20;

/// The traffic of the namespace that PID 1 of a spark is in. None if it has ended.
pub fn of(live: &Live) -> Option<Traffic> {
    let file = File::open(PathBuf::from(format!("/proc/{}/net/dev", live.init.pid))).ok()?;
    let text = sys::file::read_bounded(file, MAX).ok()?;
    // Its number may have gone to another process meanwhile.
    live.init.alive().then(|| sum(&String::from_utf8_lossy(&text)))
}

/// Adds up the lines of `/proc/net/dev`: `DEVICE: RECEIVED and seven more SENT …`. Names are whatever somebody inside chose.
fn sum(text: &str) -> Traffic {
    let mut all = Traffic::default();
    for line in text.lines().skip(2) {
        let Some((device, numbers)) = line.rsplit_once(':') else { continue };
        if device.trim() == "lo" {
            continue;
        }
        let mut numbers = numbers.split_whitespace().map(|n| n.parse::<u64>().unwrap_or_default());
        all.received_bytes = all.received_bytes.saturating_add(numbers.next().unwrap_or_default());
        all.sent_bytes = all.sent_bytes.saturating_add(numbers.nth(7).unwrap_or_default());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_devices_but_loopback_count() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls\n    \
            lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0\n  \
            eth0:    2000      20    0    0    0     0          0         0      300       3    0    0    0     0\n \
            a:b:5 1 0 0 0 0 0 0 7 1 0 0 0 0\n";
        assert_eq!(sum(text), Traffic { received_bytes: 2005, sent_bytes: 307 });
        assert_eq!(sum(""), Traffic::default());
    }
}
