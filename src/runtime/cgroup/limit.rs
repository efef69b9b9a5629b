//! What a control group may use, changed while it runs.

use std::io;
use std::path::{Path, PathBuf};

use super::{Cgroup, TOP, field, number, read};
use crate::domain::limits::{EffectiveLimits, Limits, Memory, size};
use crate::error::Error;
use crate::sys::block::Device;

/// Why a limit could not be set.
#[derive(Debug)]
pub enum Refused {
    /// More memory is in use than it would allow, and nothing more of it could be freed.
    InUse { bytes: u64 },
    /// The host has no such controller.
    Missing { controller: &'static str },
    /// The kernel said no.
    Io { file: PathBuf, source: io::Error },
}

impl Refused {
    /// The same as an error about a spark.
    pub fn about(self, spark: &str) -> Error {
        match self {
            Refused::InUse { bytes } => Error::WrongState {
                action: "lower the memory limit of",
                kind: "spark",
                name: spark.to_owned(),
                state: format!("using {}, and the kernel can free no more of it", size(bytes)),
                hint: "end some of what runs in it first, or set the limit while it is stopped".into(),
            },
            Refused::Missing { controller } => Error::NotSupported {
                what: format!("this host has no control group for the limit of {controller}"),
                hint: Some("see what it lacks with `spark doctor`".into()),
            },
            Refused::Io { file, source } => Error::io("write", file)(source),
        }
    }
}

type Result<T, E = Refused> = std::result::Result<T, E>;

/// Processor time is given out anew this often, in microseconds. As in the bundle.
const PERIOD: u64 = 100_000;

/// Gives a group these limits, and lifts the others. `disks` are those that `io` is about.
///
/// Memory comes first: of all, it alone can be refused for what the group is doing. After a failure some may be set.
pub fn set(group: &Cgroup, limits: &EffectiveLimits, disks: &[Device]) -> Result<()> {
    set_memory(group, limits)?;
    Place::of(group, "pids").write("pids.max", "pids.max", &limits.pids.to_string())?;
    set_processors(group, limits.cpus_milli)?;
    set_io(group, limits.io, disks)
}

/// What libcontainer leaves out of a limit of memory, on version 2: no swap on top, where a limit of none at all is nothing
/// to it, and the bytes from which on processes are slowed down. On version 1 the limit of both together has kept the
/// group from swap, and there is no soft bound that the kernel keeps before the host is out of memory.
pub fn complete_memory(group: &Cgroup, soft: Option<u64>) -> Result<()> {
    let file = group.v2().join("memory.swap.max");
    if group.v1("memory").is_dir() {
        return Ok(());
    }
    if let Some(soft) = soft {
        put(&group.v2().join("memory.high"), &soft.to_string())?;
    }
    if file.exists() { put(&file, "0") } else { Ok(()) }
}

/// Whether the host can limit the memory of a group.
pub fn can_limit_memory() -> bool {
    let top = Path::new(TOP);
    let v2 = read(&top.join("cgroup.controllers")).unwrap_or_default();
    top.join("memory/memory.limit_in_bytes").exists() || v2.split_whitespace().any(|word| word == "memory")
}

/// Whether the host counts memory and swap together. Only on version 1 there is a file for it that has to be left alone
/// where it does not.
pub fn counts_swap() -> bool {
    let memory = Path::new(TOP).join("memory");
    !memory.join("memory.limit_in_bytes").exists() || memory.join("memory.memsw.limit_in_bytes").exists()
}

/// A controller's directory, in whichever version the host has it.
struct Place {
    controller: &'static str,
    old: bool,
    dir: PathBuf,
}

impl Place {
    fn of(group: &Cgroup, controller: &'static str) -> Place {
        let v1 = group.v1(controller);
        match v1.is_dir() {
            true => Place { controller, old: true, dir: v1 },
            false => Place { controller, old: false, dir: group.v2() },
        }
    }

    fn write(&self, v1: &str, v2: &str, value: &str) -> Result<()> {
        let file = self.dir.join(if self.old { v1 } else { v2 });
        match file.exists() {
            true => put(&file, value),
            false => Err(Refused::Missing { controller: self.controller }),
        }
    }
}

fn put(file: &Path, value: &str) -> Result<()> {
    std::fs::write(file, value).map_err(|source| Refused::Io { file: file.to_owned(), source })
}

fn set_processors(group: &Cgroup, milli: Option<u64>) -> Result<()> {
    let place = Place::of(group, "cpu");
    let Some(milli) = milli else {
        return lifted(place.write("cpu.cfs_quota_us", "cpu.max", if place.old { "-1" } else { "max" }));
    };
    let quota = milli * PERIOD / 1000;
    if place.old {
        place.write("cpu.cfs_period_us", "", &PERIOD.to_string())?;
        return place.write("cpu.cfs_quota_us", "", &quota.to_string());
    }
    place.write("", "cpu.max", &format!("{quota} {PERIOD}"))
}

/// What is not there limits nothing.
fn lifted(result: Result<()>) -> Result<()> {
    match result {
        Err(Refused::Missing { .. }) => Ok(()),
        other => other,
    }
}

fn set_io(group: &Cgroup, rate: Option<u64>, disks: &[Device]) -> Result<()> {
    let mut place = Place::of(group, "blkio");
    place.controller = "io";
    for disk in disks {
        let set = if place.old {
            let value = format!("{disk} {}", rate.unwrap_or(0));
            place
                .write("blkio.throttle.read_bps_device", "", &value)
                .and_then(|()| place.write("blkio.throttle.write_bps_device", "", &value))
        } else {
            let rate = rate.map_or("max".to_owned(), |rate| rate.to_string());
            place.write("", "io.max", &format!("{disk} rbps={rate} wbps={rate}"))
        };
        if rate.is_some() { set } else { lifted(set) }?;
    }
    Ok(())
}

fn set_memory(group: &Cgroup, limits: &EffectiveLimits) -> Result<()> {
    let place = Place::of(group, "memory");
    match limits.memory {
        None => lifted(lift_memory(&place)),
        Some(limit) if place.old => set_memory_v1(&place, limit),
        Some(limit) => set_memory_v2(&place, limit, limits.soft_memory()),
    }
}

fn lift_memory(place: &Place) -> Result<()> {
    if place.old {
        lifted(place.write("memory.memsw.limit_in_bytes", "", "-1"))?;
        return place.write("memory.limit_in_bytes", "", "-1");
    }
    lifted(place.write("", "memory.swap.max", "max"))?;
    lifted(place.write("", "memory.high", "max"))?;
    place.write("", "memory.max", "max")
}

/// The kernel holds the limit of memory and swap together to be no lower than that of memory: which one goes first
/// depends on the direction.
fn set_memory_v1(place: &Place, limit: u64) -> Result<()> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const BOTH: &str = "memory.memsw.limit_in_bytes";
    let both = place.dir.join(BOTH);
    let raises = number(&both).is_some_and(|now| now < limit);
    let order = if raises { [BOTH, MEMORY] } else { [MEMORY, BOTH] };
    // Where the host does not count swap, that file is not there.
    for file in order.iter().filter(|file| **file == MEMORY || both.exists()) {
        place.write(file, "", &limit.to_string()).map_err(|e| in_use(place, e))?;
    }
    Ok(())
}

/// A limit below what is in use would have the kernel kill for it. So it is asked to free what it can first.
fn set_memory_v2(place: &Place, limit: u64, soft: Option<u64>) -> Result<()> {
    let (current, high) = (place.dir.join("memory.current"), place.dir.join("memory.high"));
    if number(&current).is_some_and(|used| used > limit) {
        put(&high, &limit.to_string())?;
        let used = number(&current).unwrap_or_default();
        if used > limit {
            put(&high, "max")?;
            return Err(Refused::InUse { bytes: used });
        }
    }
    let set = place
        .write("", "memory.max", &limit.to_string())
        .and_then(|()| lifted(place.write("", "memory.swap.max", "0")));
    put(&high, &soft.map_or("max".to_owned(), |bytes| bytes.to_string()))?;
    set
}

/// Version 1 frees what it can by itself, and refuses if that is not enough.
fn in_use(place: &Place, refused: Refused) -> Refused {
    match refused {
        Refused::Io { source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
            Refused::InUse { bytes: number(&place.dir.join("memory.usage_in_bytes")).unwrap_or_default() }
        }
        other => other,
    }
}

impl Cgroup {
    /// The limits that are in force, of those that are the kernel's. `disks` are those that `io` is about.
    pub fn limits(&self, disks: &[Device]) -> Limits {
        Limits {
            memory: self.memory_limit().map(Memory::Bytes),
            cpus_milli: self.processors(),
            pids: number(&Place::of(self, "pids").dir.join("pids.max")).and_then(|n| i64::try_from(n).ok()),
            io: self.rate(disks),
            disk: None,
        }
    }

    /// Bytes of memory that may be used.
    pub fn memory_limit(&self) -> Option<u64> {
        let memory = Place::of(self, "memory");
        let bytes = number(&memory.dir.join(if memory.old { "memory.limit_in_bytes" } else { "memory.max" }));
        // What version 1 has for none is the largest number of whole pages.
        bytes.filter(|bytes| *bytes < i64::MAX as u64 & !0xffff)
    }

    fn processors(&self) -> Option<u64> {
        let place = Place::of(self, "cpu");
        let text = if place.old {
            let of = |file| read(&place.dir.join(file)).unwrap_or_default();
            format!("{} {}", of("cpu.cfs_quota_us").trim(), of("cpu.cfs_period_us"))
        } else {
            read(&place.dir.join("cpu.max")).ok()?
        };
        let mut words = text.split_whitespace();
        let quota: u64 = words.next()?.parse().ok()?;
        let period: u64 = words.next()?.parse().ok()?;
        (quota * 1000).checked_div(period)
    }

    fn rate(&self, disks: &[Device]) -> Option<u64> {
        let place = Place::of(self, "blkio");
        let first = disks.first()?.to_string();
        if place.old {
            return field(&read(&place.dir.join("blkio.throttle.read_bps_device")).ok()?, &first);
        }
        let text = read(&place.dir.join("io.max")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix(&first)?.strip_prefix(' '))?;
        line.split_whitespace().find_map(|word| word.strip_prefix("rbps=")?.parse().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limits::LimitSource;

    const DISKS: [Device; 1] = [Device { major: 7, minor: 3 }];

    fn files(dir: &Path, names: &[&str]) {
        std::fs::create_dir_all(dir).unwrap();
        for name in names {
            std::fs::write(dir.join(name), "max\n").unwrap();
        }
    }

    fn all() -> EffectiveLimits {
        EffectiveLimits {
            memory: Some(64 << 20),
            memory_from: LimitSource::Options,
            cpus_milli: Some(1500),
            pids: 50,
            pids_from: LimitSource::Options,
            io: Some(1 << 20),
        }
    }

    fn none() -> EffectiveLimits {
        EffectiveLimits { memory: None, cpus_milli: None, io: None, ..all() }
    }

    /// What the kernel's files say of limits.
    fn said(effective: &EffectiveLimits) -> Limits {
        Limits {
            memory: effective.memory.map(Memory::Bytes),
            cpus_milli: effective.cpus_milli,
            pids: Some(effective.pids),
            io: effective.io,
            disk: None,
        }
    }

    #[test]
    fn version_2_gets_the_limits_and_says_them() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup::below(dir.path(), Path::new("/spark/x"));
        let names = ["memory.max", "memory.high", "memory.swap.max", "cpu.max", "pids.max", "io.max"];
        files(&group.v2(), &names);
        set(&group, &all(), &DISKS).unwrap();
        assert_eq!(group.limits(&DISKS), said(&all()));
        assert_eq!(read(&group.v2().join("memory.swap.max")).unwrap(), "0");
        assert_eq!(read(&group.v2().join("memory.high")).unwrap(), "max");
        // Nobody chose a default: what comes near it is slowed down first.
        set(&group, &EffectiveLimits { memory_from: LimitSource::Default, ..all() }, &DISKS).unwrap();
        assert_eq!(read(&group.v2().join("memory.high")).unwrap(), (60 << 20).to_string());
        set(&group, &none(), &DISKS).unwrap();
        assert_eq!(group.limits(&DISKS), said(&none()));
        assert_eq!(read(&group.v2().join("memory.high")).unwrap(), "max");
        assert_eq!(read(&group.v2().join("io.max")).unwrap(), "7:3 rbps=max wbps=max");
        assert_eq!(read(&group.v2().join("memory.swap.max")).unwrap(), "max");
    }

    #[test]
    fn a_limit_that_the_host_cannot_keep_is_refused_and_lifting_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup::below(dir.path(), Path::new("/spark/x"));
        files(&group.v2(), &["pids.max", "cpu.max", "memory.max", "memory.high"]);
        set(&group, &none(), &DISKS).unwrap();
        let io = EffectiveLimits { io: Some(1 << 20), ..none() };
        assert!(matches!(set(&group, &io, &DISKS), Err(Refused::Missing { controller: "io" })));
    }

    #[test]
    fn version_2_is_not_told_to_kill_what_uses_more() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup::below(dir.path(), Path::new("/spark/x"));
        files(&group.v2(), &["memory.max", "memory.high", "memory.swap.max", "cpu.max", "pids.max"]);
        std::fs::write(group.v2().join("memory.current"), (80 << 20).to_string()).unwrap();
        let limits = EffectiveLimits { io: None, ..all() };
        let refused = set(&group, &limits, &[]).unwrap_err();
        assert!(matches!(refused, Refused::InUse { bytes } if bytes == 80 << 20));
        assert_eq!(read(&group.v2().join("memory.max")).unwrap(), "max\n");
        assert_eq!(read(&group.v2().join("memory.high")).unwrap(), "max");
    }
}
