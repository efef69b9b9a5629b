//! What a control group uses.

use std::path::Path;
use std::time::Duration;

use super::{Cgroup, field, number, read};
use crate::sys::block::Device;

/// What a spark uses at this moment, and has used since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Processor time since its start, in microseconds.
    pub cpu_usec: u64,
    /// Bytes of memory that it cannot do without: what counts towards the limit, less files that can be read again.
    pub memory_bytes: u64,
    /// The most that it ever counted, files included.
    pub memory_peak_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes read from and written to the pool's disks since its start. None where the host does not count them.
    #[serde(flatten)]
    pub io: Option<Io>,
    /// Processes that the kernel killed because no memory was left within the limit.
    pub oom_kills: u64,
}

/// Bytes from and to disks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Io {
    pub read_bytes: u64,
    pub written_bytes: u64,
}

/// Processor time of a group alone. None if it is gone.
pub fn processor_time(group: &Cgroup) -> Option<Duration> {
    let v1 = number(&group.v1("cpuacct").join("cpuacct.usage")).map(Duration::from_nanos);
    v1.or_else(|| {
        let stat = read(&group.v2().join("cpu.stat")).ok()?;
        field(&stat, "usage_usec").map(Duration::from_micros)
    })
}

impl Usage {
    /// Measures a group. None if it is gone. `disks` are those that count.
    pub fn of(group: &Cgroup, disks: &[Device]) -> Option<Usage> {
        let (memory_bytes, memory_peak_bytes) = memory(group)?;
        Some(Usage {
            cpu_usec: processor_time(group)?.as_micros() as u64,
            memory_bytes,
            memory_peak_bytes,
            pids: pids(group)?,
            io: io(group, disks),
            oom_kills: group.oom_kills().unwrap_or_default(),
        })
    }
}

fn memory(group: &Cgroup) -> Option<(u64, Option<u64>)> {
    let v1 = group.v1("memory");
    let (dir, [current, peak, droppable]) = if v1.is_dir() {
        (v1, ["memory.usage_in_bytes", "memory.max_usage_in_bytes", "total_inactive_file"])
    } else {
        (group.v2(), ["memory.current", "memory.peak", "inactive_file"])
    };
    let used = number(&dir.join(current))?;
    let stat = read(&dir.join("memory.stat")).ok()?;
    Some((used.saturating_sub(field(&stat, droppable).unwrap_or_default()), number(&dir.join(peak))))
}

fn pids(group: &Cgroup) -> Option<u64> {
    let file = |dir: &Path| number(&dir.join("pids.current"));
    file(&group.v1("pids")).or_else(|| file(&group.v2()))
}

fn io(group: &Cgroup, disks: &[Device]) -> Option<Io> {
    let v1 = read(&group.v1("blkio").join("blkio.throttle.io_service_bytes_recursive"));
    match v1 {
        Ok(text) => Some(sum(&text, disks, |words, io| {
            if let [kind, bytes, ..] = words {
                let bytes: u64 = bytes.parse().unwrap_or_default();
                match *kind {
                    "Read" => io.read_bytes += bytes,
                    "Write" => io.written_bytes += bytes,
                    _ => {}
                }
            }
        })),
        Err(_) => {
            let text = read(&group.v2().join("io.stat")).ok()?;
            Some(sum(&text, disks, |words, io| {
                for word in words {
                    match word.split_once('=') {
                        Some(("rbytes", n)) => io.read_bytes += n.parse().unwrap_or(0),
                        Some(("wbytes", n)) => io.written_bytes += n.parse().unwrap_or(0),
                        _ => {}
                    }
                }
            }))
        }
    }
}

/// Of lines that begin with a device, those of `disks`. What goes to a loop device goes to the disk below it too, and
/// would be counted twice.
fn sum(text: &str, disks: &[Device], mut add: impl FnMut(&[&str], &mut Io)) -> Io {
    let mut io = Io::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [device, rest @ ..] = &words[..]
            && disks.iter().any(|d| d.to_string() == *device)
        {
            add(rest, &mut io);
        }
    }
    io
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn both_versions_say_the_same_in_other_words() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup::below(dir.path(), Path::new("/spark/x"));
        let disks = [Device { major: 7, minor: 0 }];
        assert_eq!(Usage::of(&group, &disks), None);
        let expected = Usage {
            cpu_usec: 1_500_000,
            memory_bytes: 60,
            memory_peak_bytes: Some(200),
            pids: 3,
            io: Some(Io { read_bytes: 10, written_bytes: 20 }),
            oom_kills: 1,
        };
        write(
            &group.v2(),
            &[
                ("cpu.stat", "usage_usec 1500000\nuser_usec 1\n"),
                ("memory.current", "100\n"),
                ("memory.peak", "200\n"),
                ("memory.stat", "anon 5\ninactive_file 40\nactive_file 9\n"),
                ("memory.events", "oom 1\noom_kill 1\n"),
                ("pids.current", "3\n"),
                (
                    "io.stat",
                    "254:0 rbytes=999 wbytes=999 rios=1 wios=1\n7:0 rbytes=10 wbytes=20 rios=1 wios=1\n",
                ),
            ],
        );
        assert_eq!(Usage::of(&group, &disks), Some(expected.clone()));

        let top = tempfile::tempdir().unwrap();
        let group = Cgroup::below(top.path(), Path::new("/spark/x"));
        write(&group.v1("cpuacct"), &[("cpuacct.usage", "1500000000\n")]);
        write(
            &group.v1("memory"),
            &[
                ("memory.usage_in_bytes", "100\n"),
                ("memory.max_usage_in_bytes", "200\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 40\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            ],
        );
        write(&group.v1("pids"), &[("pids.current", "3\n")]);
        let bytes = "7:0 Read 10\n7:0 Write 20\n7:0 Total 30\n254:0 Read 999\nTotal 1029\n";
        write(&group.v1("blkio"), &[("blkio.throttle.io_service_bytes_recursive", bytes)]);
        assert_eq!(Usage::of(&group, &disks), Some(expected));
    }
}
