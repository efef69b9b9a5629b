//! The files of `/etc` that belong to the running spark and not to its root: made anew at every start.

use crate::domain::options::Network;
use crate::domain::shared::PathOrder;
use crate::domain::spark::Id;

/// The files and where they are mounted.
pub const FILES: [&str; 3] = ["hostname", "resolv.conf", "machine-id"];

/// The file that puts `/spark/bin` into `PATH` in login shells, whose `/etc/profile` sets `PATH` anew.
pub const PROFILE: &str = "spark.sh";
/// The directory that it is mounted in, where a root has one.
pub const PROFILES: &str = "/etc/profile.d";

/// What [`PROFILE`] holds. None if `/spark/bin` is not to be in `PATH`.
pub fn profile(order: Option<PathOrder>) -> Option<String> {
    let path = match order.unwrap_or(PathOrder::Last) {
        PathOrder::First => "/spark/bin:$PATH",
        PathOrder::Last => "$PATH:/spark/bin",
        PathOrder::None => return None,
    };
    Some(format!("case \":$PATH:\" in *:/spark/bin:*) ;; *) export PATH=\"{path}\" ;; esac\n"))
}

/// What one of [`FILES`] holds.
pub fn content(file: &str, hostname: &str, id: &Id, network: Network, host_resolv: &str) -> String {
    match file {
        "hostname" => format!("{hostname}\n"),
        "resolv.conf" => match network {
            Network::Host | Network::Project => host_resolv.to_owned(),
            Network::None => "# this spark has no network\n".to_owned(),
        },
        // The id itself, so that it is the spark's own for life, and a fork's is another.
        _ => format!("{}\n", id.machine_id()),
    }
}
