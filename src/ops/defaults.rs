//! The limits of sparks that nobody chose: sized to this host.

use crate::domain::limits::{Defaults, HostSize, default_files};
use crate::runtime::cgroup;
use crate::sys::host;

/// What counts on this host where neither a spark nor its bundle template says anything.
pub(crate) fn of_host() -> Defaults {
    let defaults = Defaults::of(HostSize { memory: host::memory(), tasks: host::tasks() });
    // A host that cannot limit memory runs sparks all the same, and `doctor` tells of it.
    Defaults { memory: defaults.memory.filter(|_| cgroup::can_limit_memory()), ..defaults }
}

/// Files that one process of a spark may have open where the bundle template does not say.
pub(crate) fn open_files() -> u64 {
    default_files(host::files())
}
