//! Control groups: version 2, version 1, or both side by side, and the controllers that sparks need.

use super::{Check, Probe};

/// What limits and pausing need, of version 2.
const V2: [&str; 3] = ["cpu", "memory", "pids"];
/// The same of version 1, where freezing and devices are controllers too.
const V1: [&str; 5] = ["cpu", "memory", "pids", "freezer", "devices"];

/// What is mounted, read from mountinfo: `… - TYPE SOURCE OPTIONS`.
#[derive(Debug, Default)]
struct Mounted {
    v2: Option<String>,
    v1: Vec<String>,
}

fn mounted(probe: &Probe) -> Mounted {
    let mut found = Mounted::default();
    for line in probe.text(probe.proc.join("self/mountinfo")).unwrap_or_default().lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else {
            continue;
        };
        let mut filesystem = filesystem.split(' ');
        match filesystem.next() {
            Some("cgroup2") => found.v2 = found.v2.or_else(|| mount.split(' ').nth(4).map(str::to_owned)),
            Some("cgroup") => {
                found.v1.extend(filesystem.nth(1).into_iter().flat_map(|o| o.split(',')).map(str::to_owned))
            }
            _ => {}
        }
    }
    found
}

pub(super) fn checks(probe: &Probe) -> Vec<Check> {
    vec![cgroups(probe), io(probe)]
}

/// Whether `--io` can be kept.
fn io(probe: &Probe) -> Check {
    const NAME: &str = "io limits";
    let mounted = mounted(probe);
    if mounted.v1.iter().any(|m| m == "blkio") {
        return Check::recommended(NAME, true, "by blkio, of reads and O_DIRECT writes only");
    }
    let v2 = mounted.v2.map(|at| v2_controllers(probe, &at)).unwrap_or_default();
    if v2.iter().any(|c| c == "io") {
        return Check::recommended(NAME, true, "by io");
    }
    Check::recommended(NAME, false, "no controller for them: `--io` is refused")
        .or("echo +io > /sys/fs/cgroup/cgroup.subtree_control  # on the host itself, if this is a container")
}

/// What is there of version 2.
fn v2_controllers(probe: &Probe, at: &str) -> Vec<String> {
    let at = at.strip_prefix("/sys").map_or(at.into(), |rest| probe.sys.join(rest.trim_start_matches('/')));
    let list = probe.text(at.join("cgroup.controllers")).unwrap_or_default();
    list.split_whitespace().map(str::to_owned).collect()
}

fn cgroups(probe: &Probe) -> Check {
    const NAME: &str = "cgroups";
    let mounted = mounted(probe);
    // Where version 1 has any controller of ours, it has all of them: version 2 beside it is for systemd.
    let v1 = V1.iter().any(|c| mounted.v1.iter().any(|m| m == c));
    let (version, wanted, have): (&str, &[&str], Vec<String>) = if v1 {
        (if mounted.v2.is_some() { "hybrid, version 1" } else { "version 1" }, &V1, mounted.v1)
    } else if let Some(at) = mounted.v2 {
        ("version 2", &V2, v2_controllers(probe, &at))
    } else {
        return Check::required(NAME, false, "not mounted").or("mount -t cgroup2 none /sys/fs/cgroup");
    };
    let (there, missing): (Vec<&str>, Vec<&str>) = wanted.iter().partition(|c| have.iter().any(|h| h == *c));
    if missing.is_empty() {
        return Check::required(NAME, true, format!("{version}, with {}", there.join(", ")));
    }
    let remedy = if missing.contains(&"memory") {
        "editor /etc/default/grub && update-grub && reboot  # add cgroup_enable=memory to GRUB_CMDLINE_LINUX"
            .to_owned()
    } else if v1 {
        let name = missing[0];
        format!("mkdir -p /sys/fs/cgroup/{name} && mount -t cgroup -o {name} none /sys/fs/cgroup/{name}")
    } else {
        format!(
            "echo '+{}' > /sys/fs/cgroup/cgroup.subtree_control  # on the host itself, if this is a container",
            missing.join(" +")
        )
    };
    Check::required(NAME, false, format!("{version}, without {}", missing.join(", "))).or(remedy)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Bare;
    use super::*;

    fn v1(controllers: &[&str]) -> String {
        let line = |c: &&str| format!("30 25 0:1 / /sys/fs/cgroup/{c} rw - cgroup cgroup rw,{c}\n");
        controllers.iter().map(line).collect()
    }

    #[test]
    fn version_2_is_enough_with_its_three_controllers() {
        let bare = Bare::new();
        assert!(cgroups(&bare.probe).found.contains("not mounted"));
        bare.write("proc/self/mountinfo", "30 25 0:1 / /sys/fs/cgroup rw shared:1 - cgroup2 none rw\n");
        bare.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
        assert_eq!(cgroups(&bare.probe).found, "version 2, with cpu, memory, pids");
        assert_eq!(io(&bare.probe).found, "by io");
        bare.write("sys/fs/cgroup/cgroup.controllers", "cpu pids\n");
        let check = cgroups(&bare.probe);
        assert!(!check.ok && check.remedy.unwrap().contains("cgroup_enable=memory"));
        assert!(io(&bare.probe).remedy.unwrap().starts_with("echo +io"));
        bare.write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
        assert!(cgroups(&bare.probe).remedy.unwrap().starts_with("echo '+pids'"));
    }

    #[test]
    fn version_1_needs_its_freezer_too_and_is_told_from_hybrid() {
        let bare = Bare::new();
        bare.write("proc/self/mountinfo", &v1(&V1));
        assert!(cgroups(&bare.probe).ok);
        assert!(cgroups(&bare.probe).found.starts_with("version 1"));
        let unified = "31 25 0:2 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        bare.write("proc/self/mountinfo", &(unified.to_owned() + &v1(&V1)));
        assert!(cgroups(&bare.probe).found.starts_with("hybrid"));
        assert!(!io(&bare.probe).ok);
        bare.write("proc/self/mountinfo", &(unified.to_owned() + &v1(&V1) + &v1(&["blkio"])));
        assert!(io(&bare.probe).found.starts_with("by blkio"));
        bare.write("proc/self/mountinfo", &v1(&["cpu", "memory", "pids", "devices"]));
        let check = cgroups(&bare.probe);
        assert!(!check.ok && check.remedy.unwrap().contains("mount -t cgroup -o freezer"));
    }
}
