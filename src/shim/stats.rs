//! What a container uses, as the messages that containerd knows: one for each version of cgroups.
//!
//! A file that is not there leaves its numbers at zero: hosts differ in the controllers they have.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use containerd_shim::protos::cgroups::metrics as v1;
use containerd_shim::protos::cgroups_v2::metrics as v2;
use containerd_shim::protos::protobuf::MessageField;
use containerd_shim::protos::protobuf::well_known_types::any::Any;

use super::cgroup::Cgroup;
use crate::error::{Error, Result};

/// Nanoseconds of the ticks that version 1 counts user and system time in.
const TICK: u64 = 10_000_000;

/// Reads what the container of a cgroup uses.
///
/// # Errors
/// If it has no cgroup any more.
pub(super) fn read(cgroup: &Cgroup) -> Result<Any> {
    let gone =
        || Error::NotFound { kind: "cgroup", name: "of the task".into(), in_project: None, near: Vec::new() };
    let any = match cgroup.v2() {
        Some(dir) if dir.exists() => containerd_shim::util::convert_to_any(Box::new(of_v2(dir))),
        Some(_) => return Err(gone()),
        None => {
            let there = ["memory", "pids", "cpuacct"].iter().filter_map(|c| cgroup.v1(c)).any(Path::exists);
            if !there {
                return Err(gone());
            }
            containerd_shim::util::convert_to_any(Box::new(of_v1(cgroup)))
        }
    };
    any.map_err(|e| Error::Host {
        what: format!("cannot encode statistics: {e}"),
        hint: String::new(),
        source: None,
    })
}

fn of_v1(cgroup: &Cgroup) -> v1::Metrics {
    let mut metrics = v1::Metrics::new();
    if let Some(dir) = cgroup.v1("pids") {
        let pids = v1::PidsStat {
            current: number(dir, "pids.current"),
            limit: limit(dir, "pids.max"),
            ..Default::default()
        };
        metrics.pids = MessageField::some(pids);
    }
    metrics.cpu = MessageField::some(cpu_v1(cgroup));
    if let Some(dir) = cgroup.v1("memory") {
        metrics.memory = MessageField::some(memory_v1(dir));
        let control = pairs(dir, "memory.oom_control");
        metrics.memory_oom_control = MessageField::some(v1::MemoryOomControl {
            oom_kill_disable: control.get("oom_kill_disable"),
            under_oom: control.get("under_oom"),
            oom_kill: control.get("oom_kill"),
            ..Default::default()
        });
    }
    if let Some(dir) = cgroup.v1("blkio") {
        metrics.blkio = MessageField::some(v1::BlkIOStat {
            io_service_bytes_recursive: blkio(
                dir,
                &["blkio.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"],
            ),
            io_serviced_recursive: blkio(dir, &["blkio.io_serviced_recursive", "blkio.throttle.io_serviced"]),
            ..Default::default()
        });
    }
    metrics
}

fn cpu_v1(cgroup: &Cgroup) -> v1::CPUStat {
    let mut stat = v1::CPUStat::new();
    if let Some(dir) = cgroup.v1("cpuacct") {
        let ticks = pairs(dir, "cpuacct.stat");
        stat.usage = MessageField::some(v1::CPUUsage {
            total: number(dir, "cpuacct.usage"),
            kernel: ticks.get("system").saturating_mul(TICK),
            user: ticks.get("user").saturating_mul(TICK),
            per_cpu: text(dir, "cpuacct.usage_percpu").split_whitespace().filter_map(parsed).collect(),
            ..Default::default()
        });
    }
    if let Some(dir) = cgroup.v1("cpu") {
        let throttled = pairs(dir, "cpu.stat");
        stat.throttling = MessageField::some(v1::Throttle {
            periods: throttled.get("nr_periods"),
            throttled_periods: throttled.get("nr_throttled"),
            throttled_time: throttled.get("throttled_time"),
            ..Default::default()
        });
    }
    stat
}

fn memory_v1(dir: &Path) -> v1::MemoryStat {
    let stat = pairs(dir, "memory.stat");
    let entry = |prefix: &str| {
        let file = |what: &str| format!("memory.{prefix}{what}");
        MessageField::some(v1::MemoryEntry {
            limit: number(dir, &file("limit_in_bytes")),
            usage: number(dir, &file("usage_in_bytes")),
            max: number(dir, &file("max_usage_in_bytes")),
            failcnt: number(dir, &file("failcnt")),
            ..Default::default()
        })
    };
    v1::MemoryStat {
        cache: stat.get("cache"),
        rss: stat.get("rss"),
        rss_huge: stat.get("rss_huge"),
        mapped_file: stat.get("mapped_file"),
        dirty: stat.get("dirty"),
        writeback: stat.get("writeback"),
        pg_pg_in: stat.get("pgpgin"),
        pg_pg_out: stat.get("pgpgout"),
        pg_fault: stat.get("pgfault"),
        pg_maj_fault: stat.get("pgmajfault"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        hierarchical_memory_limit: stat.get("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat.get("hierarchical_memsw_limit"),
        total_cache: stat.get("total_cache"),
        total_rss: stat.get("total_rss"),
        total_rss_huge: stat.get("total_rss_huge"),
        total_mapped_file: stat.get("total_mapped_file"),
        total_dirty: stat.get("total_dirty"),
        total_writeback: stat.get("total_writeback"),
        total_pg_pg_in: stat.get("total_pgpgin"),
        total_pg_pg_out: stat.get("total_pgpgout"),
        total_pg_fault: stat.get("total_pgfault"),
        total_pg_maj_fault: stat.get("total_pgmajfault"),
        total_inactive_anon: stat.get("total_inactive_anon"),
        total_active_anon: stat.get("total_active_anon"),
        total_inactive_file: stat.get("total_inactive_file"),
        total_active_file: stat.get("total_active_file"),
        total_unevictable: stat.get("total_unevictable"),
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
        ..Default::default()
    }
}

/// Lines like `8:0 Read 4096`, from the first file that has some.
fn blkio(dir: &Path, files: &[&str]) -> Vec<v1::BlkIOEntry> {
    let entries = |file: &&str| -> Vec<v1::BlkIOEntry> {
        let lines = text(dir, file);
        lines
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let (major, minor) = words.next()?.split_once(':')?;
                let (op, value) = (words.next()?, words.next()?);
                Some(v1::BlkIOEntry {
                    op: op.to_owned(),
                    major: parsed(major)?,
                    minor: parsed(minor)?,
                    value: parsed(value)?,
                    ..Default::default()
                })
            })
            .collect()
    };
    files.iter().map(entries).find(|found| !found.is_empty()).unwrap_or_default()
}

fn of_v2(dir: &Path) -> v2::Metrics {
    let mut metrics = v2::Metrics::new();
    let pids = v2::PidsStat {
        current: number(dir, "pids.current"),
        limit: limit(dir, "pids.max"),
        ..Default::default()
    };
    metrics.pids = MessageField::some(pids);
    let cpu = pairs(dir, "cpu.stat");
    metrics.cpu = MessageField::some(v2::CPUStat {
        usage_usec: cpu.get("usage_usec"),
        user_usec: cpu.get("user_usec"),
        system_usec: cpu.get("system_usec"),
        nr_periods: cpu.get("nr_periods"),
        nr_throttled: cpu.get("nr_throttled"),
        throttled_usec: cpu.get("throttled_usec"),
        ..Default::default()
    });
    metrics.memory = MessageField::some(memory_v2(dir));
    let events = pairs(dir, "memory.events");
    metrics.memory_events = MessageField::some(v2::MemoryEvents {
        low: events.get("low"),
        high: events.get("high"),
        max: events.get("max"),
        oom: events.get("oom"),
        oom_kill: events.get("oom_kill"),
        ..Default::default()
    });
    metrics.io = MessageField::some(v2::IOStat { usage: io(dir), ..Default::default() });
    metrics
}

fn memory_v2(dir: &Path) -> v2::MemoryStat {
    let stat = pairs(dir, "memory.stat");
    v2::MemoryStat {
        anon: stat.get("anon"),
        file: stat.get("file"),
        kernel_stack: stat.get("kernel_stack"),
        slab: stat.get("slab"),
        sock: stat.get("sock"),
        shmem: stat.get("shmem"),
        file_mapped: stat.get("file_mapped"),
        file_dirty: stat.get("file_dirty"),
        file_writeback: stat.get("file_writeback"),
        anon_thp: stat.get("anon_thp"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        slab_reclaimable: stat.get("slab_reclaimable"),
        slab_unreclaimable: stat.get("slab_unreclaimable"),
        pgfault: stat.get("pgfault"),
        pgmajfault: stat.get("pgmajfault"),
        pgrefill: stat.get("pgrefill"),
        pgscan: stat.get("pgscan"),
        pgsteal: stat.get("pgsteal"),
        pgactivate: stat.get("pgactivate"),
        pgdeactivate: stat.get("pgdeactivate"),
        pglazyfree: stat.get("pglazyfree"),
        pglazyfreed: stat.get("pglazyfreed"),
        thp_fault_alloc: stat.get("thp_fault_alloc"),
        thp_collapse_alloc: stat.get("thp_collapse_alloc"),
        usage: number(dir, "memory.current"),
        usage_limit: unlimited(dir, "memory.max"),
        swap_usage: number(dir, "memory.swap.current"),
        swap_limit: unlimited(dir, "memory.swap.max"),
        max_usage: number(dir, "memory.peak"),
        swap_max_usage: number(dir, "memory.swap.peak"),
        ..Default::default()
    }
}

/// Lines like `8:0 rbytes=4096 wbytes=0 rios=1 wios=0`.
fn io(dir: &Path) -> Vec<v2::IOEntry> {
    let lines = text(dir, "io.stat");
    lines
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (major, minor) = words.next()?.split_once(':')?;
            let mut entry =
                v2::IOEntry { major: parsed(major)?, minor: parsed(minor)?, ..Default::default() };
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                let value = parsed(value).unwrap_or(0);
                match key {
                    "rbytes" => entry.rbytes = value,
                    "wbytes" => entry.wbytes = value,
                    "rios" => entry.rios = value,
                    "wios" => entry.wios = value,
                    _ => {}
                }
            }
            Some(entry)
        })
        .collect()
}

/// Lines of a word and a number.
struct Pairs(HashMap<String, u64>);

impl Pairs {
    fn get(&self, key: &str) -> u64 {
        self.0.get(key).copied().unwrap_or(0)
    }
}

fn pairs(dir: &Path, file: &str) -> Pairs {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), parsed(value)?))
    };
    Pairs(text(dir, file).lines().filter_map(pair).collect())
}

fn text(dir: &Path, file: &str) -> String {
    fs::read_to_string(dir.join(file)).unwrap_or_default()
}

fn parsed(text: &str) -> Option<u64> {
    u64::from_str(text.trim()).ok()
}

fn number(dir: &Path, file: &str) -> u64 {
    parsed(&text(dir, file)).unwrap_or(0)
}

/// A limit of processes: 0 for none, as containerd has it.
fn limit(dir: &Path, file: &str) -> u64 {
    number(dir, file)
}

/// A limit of bytes: the largest number for none, as containerd has it.
fn unlimited(dir: &Path, file: &str) -> u64 {
    match text(dir, file).trim() {
        "max" => u64::MAX,
        number => parsed(number).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, content) in files {
            fs::write(dir.path().join(file), content).unwrap();
        }
        dir
    }

    #[test]
    fn version_2_is_read_with_max_for_no_limit() {
        let dir = directory(&[
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_throttled 2\n"),
            ("memory.stat", "anon 4096\ninactive_file 8192\n"),
            ("memory.current", "20480\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\noom 1\noom_kill 3\n"),
            ("pids.current", "7\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:16 rbytes=512 wbytes=1024 rios=1 wios=2 dbytes=0 dios=0\n"),
        ]);
        let metrics = of_v2(dir.path());
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.nr_throttled), (1500, 2));
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit), (20480, u64::MAX));
        assert_eq!((metrics.memory.anon, metrics.memory.inactive_file), (4096, 8192));
        assert_eq!(metrics.memory_events.oom_kill, 3);
        assert_eq!((metrics.pids.current, metrics.pids.limit), (7, 0));
        let io = &metrics.io.usage[0];
        assert_eq!((io.major, io.minor, io.rbytes, io.wbytes, io.wios), (8, 16, 512, 1024, 2));
    }

    #[test]
    fn version_1_block_devices_are_read_where_the_scheduler_counts_or_the_throttle_does() {
        let dir = directory(&[
            ("blkio.io_service_bytes_recursive", "Total 0\n"),
            ("blkio.throttle.io_service_bytes", "8:0 Read 4096\n8:0 Write 0\nTotal 4096\n"),
        ]);
        let files = ["blkio.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"];
        let entries = blkio(dir.path(), &files);
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].op.as_str(), entries[0].major, entries[0].value), ("Read", 8, 4096));
    }
}
