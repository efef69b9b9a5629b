//! The caller and the kernel: root, version, filesystems, namespaces, seccomp, limits, security modules.

use super::{Check, Probe};

/// The first with idmapped mounts of btrfs. The other system calls are older: `mount_setattr` 5.12,
/// `close_range` with close-on-exec 5.11, `openat2` 5.6, pidfds and `clone3` 5.3.
const LEAST: (u32, u32) = (5, 15);

/// The first with simple quotas of btrfs.
const SIMPLE_QUOTAS: (u32, u32) = (6, 7);

/// Open files that a few commands at once need at most.
const FILES: u64 = 1024;

pub(super) fn checks(probe: &Probe) -> Vec<Check> {
    let mut checks = vec![root(probe), version(probe), btrfs(probe), user_namespaces(probe), seccomp(probe)];
    checks.push(landlock(probe));
    checks.push(open_files(probe));
    checks.push(networks(probe));
    checks.push(quotas(probe));
    checks.extend(selinux(probe));
    checks.extend(apparmor(probe));
    checks
}

fn root(probe: &Probe) -> Check {
    if probe.user != 0 {
        return Check::required("root", false, format!("user {}", probe.user)).or("sudo spark doctor");
    }
    let map = probe.text(probe.proc.join("self/uid_map")).unwrap_or_default();
    let whole = map.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"];
    let found = if whole { "the host's root" } else { "root of a user namespace, not the host's" };
    Check::required("root", whole, found)
        .or("docker run --privileged --cgroupns=host …  # or run it on the host itself")
}

fn release(probe: &Probe) -> (u32, u32) {
    let mut parts = probe.release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// Whether `--disk` can be kept, in a pool that is made for it.
fn quotas(probe: &Probe) -> Check {
    let found = |what: &str| format!("Linux {} {what}", probe.release);
    match release(probe) >= SIMPLE_QUOTAS {
        true => Check::recommended(
            "disk quotas",
            true,
            "only in pools made with `spark pool init --quota`, which kernels before Linux 6.7 refuse",
        ),
        false => Check::recommended("disk quotas", false, found("has no simple quotas: `--disk` is refused"))
            .or("apt-get install -t bookworm-backports linux-image-amd64 && reboot  # any Linux from 6.7 on"),
    }
}

fn version(probe: &Probe) -> Check {
    Check::required("kernel", release(probe) >= LEAST, format!("Linux {}", probe.release)).or(format!(
        "apt-get install linux-image-amd64 && reboot  # any Linux from {}.{} on",
        LEAST.0, LEAST.1
    ))
}

fn btrfs(probe: &Probe) -> Check {
    let list = probe.text(probe.proc.join("filesystems")).unwrap_or_default();
    let there = list.lines().any(|line| line.split_whitespace().last() == Some("btrfs"));
    let found = if there {
        "known to the kernel"
    } else if probe.has_module("btrfs") {
        "a module, loaded when it is mounted"
    } else {
        "unknown to the kernel, and no module of it in /lib/modules"
    };
    Check::required("btrfs filesystem", there || probe.has_module("btrfs"), found).or(
        "modprobe btrfs || apt-get install linux-image-amd64  # on the host itself, if this is a container",
    )
}

/// What project networks are made of. The kernel loads these by itself.
fn networks(probe: &Probe) -> Check {
    let lacking: Vec<&str> = ["veth", "cls_bpf", "nf_tables"]
        .into_iter()
        .filter(|name| {
            let built_in = match *name {
                // Neither shows what it is when it is a part of the kernel.
                "nf_tables" => probe.proc.join("sys/net/netfilter").exists(),
                _ => probe.proc.join("sys/net/ipv4").exists() && !probe.modules.exists(),
            };
            !built_in && !probe.sys.join("module").join(name).exists() && !probe.has_module(name)
        })
        .collect();
    let found = if lacking.is_empty() {
        "veth, cls_bpf, nf_tables".to_owned()
    } else {
        format!("the kernel lacks {}: sparks need `--network host` or `none`", lacking.join(", "))
    };
    Check::recommended("project networks", lacking.is_empty(), found)
        .or("apt-get install linux-image-amd64 && reboot  # on the host itself, if this is a container")
}

fn user_namespaces(probe: &Probe) -> Check {
    let max = probe.text(probe.proc.join("sys/user/max_user_namespaces"));
    let max: Option<u64> = max.and_then(|text| text.trim().parse().ok());
    let found = match max {
        None => "unknown to the kernel".to_owned(),
        Some(0) => "forbidden (user.max_user_namespaces is 0)".to_owned(),
        Some(n) => format!("up to {n}"),
    };
    Check::required("user namespaces", max.is_some_and(|n| n > 0), found)
        .or("sysctl -w user.max_user_namespaces=15000  # to keep it, a line in /etc/sysctl.d")
}

fn seccomp(probe: &Probe) -> Check {
    let actions = probe.text(probe.proc.join("sys/kernel/seccomp/actions_avail")).unwrap_or_default();
    let there = ["errno", "allow"].iter().all(|wanted| actions.split_whitespace().any(|a| a == *wanted));
    let found = if there { "filters work" } else { "the kernel has no seccomp filters" };
    Check::required("seccomp", there, found)
        .or("apt-get install linux-image-amd64 && reboot  # any kernel with CONFIG_SECCOMP_FILTER")
}

/// What confines git, and readers of archives and streams, to the files that they need.
fn landlock(probe: &Probe) -> Check {
    let found = match probe.landlock {
        Some(version) => format!("version {version}"),
        None => "none: git can read and write all files of a repository's owner".to_owned(),
    };
    Check::recommended("Landlock", probe.landlock.is_some(), found)
        .or("apt-get install linux-image-amd64 && reboot  # any Linux from 5.13 on, with `landlock` in its `lsm=`")
}

fn open_files(probe: &Probe) -> Check {
    // None is no limit.
    let enough = probe.nofile.is_none_or(|n| n >= FILES);
    let found = probe.nofile.map_or("no limit".to_owned(), |n| format!("at most {n}"));
    Check::recommended("open files", enough, found).or("ulimit -n 4096")
}

/// Only where SELinux enforces.
fn selinux(probe: &Probe) -> Option<Check> {
    let enforcing = probe.text(probe.sys.join("fs/selinux/enforce"))?.trim() == "1";
    enforcing.then(|| {
        Check::recommended(
            "selinux",
            false,
            "enforcing: sparks carry no label of their own, and may be refused files",
        )
        .or("ausearch -m avc -ts recent  # and `setenforce 0`, to see whether it is the cause")
    })
}

/// Only where this process is confined.
fn apparmor(probe: &Probe) -> Option<Check> {
    let enabled = probe.text(probe.sys.join("module/apparmor/parameters/enabled"))?;
    let profile = probe.text(probe.proc.join("self/attr/apparmor/current"))?;
    let profile = profile.trim_end_matches(['\0', '\n']);
    let confined = enabled.trim() == "Y" && profile != "unconfined" && !profile.ends_with("(unconfined)");
    confined.then(|| {
        Check::recommended(
            "apparmor",
            false,
            format!("this process is confined by `{profile}`: mounts may be refused"),
        )
        .or("aa-exec -p unconfined spark doctor")
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::Bare;
    use super::*;

    #[test]
    fn quotas_are_of_newer_kernels() {
        let mut bare = Bare::new();
        assert!(!quotas(&bare.probe).ok && quotas(&bare.probe).found.contains("6.1.0-9-amd64"));
        bare.probe.release = "6.7.1".into();
        assert!(quotas(&bare.probe).ok);
    }

    #[test]
    fn root_has_to_be_the_hosts() {
        let mut bare = Bare::new();
        bare.write("proc/self/uid_map", "         0          0 4294967295\n");
        assert!(root(&bare.probe).ok);
        bare.write("proc/self/uid_map", "         0     100000      65536\n");
        assert!(!root(&bare.probe).ok);
        bare.probe.user = 1000;
        assert_eq!(root(&bare.probe).remedy.unwrap(), "sudo spark doctor");
    }

    #[test]
    fn kernels_before_idmapped_btrfs_are_too_old() {
        let mut bare = Bare::new();
        for (release, ok) in [
            ("5.14.0-70.el9", false),
            ("5.15.0", true),
            ("6.1.0-9-amd64", true),
            ("4.19", false),
            ("10.0", true),
            ("", false),
        ] {
            bare.probe.release = release.into();
            assert_eq!(version(&bare.probe).ok, ok, "{release}");
        }
    }

    #[test]
    fn btrfs_is_known_or_loadable_or_missing() {
        let bare = Bare::new();
        bare.write("proc/filesystems", "nodev\tsysfs\n\text4\n");
        assert!(!btrfs(&bare.probe).ok);
        bare.write("modules/modules.dep", "kernel/fs/btrfs/btrfs.ko: \n");
        assert!(btrfs(&bare.probe).found.contains("module"));
        bare.write("proc/filesystems", "nodev\tsysfs\n\tbtrfs\n");
        assert!(btrfs(&bare.probe).found.contains("known"));
    }

    #[test]
    fn user_namespaces_may_be_missing_or_forbidden() {
        let bare = Bare::new();
        assert!(!user_namespaces(&bare.probe).ok);
        bare.write("proc/sys/user/max_user_namespaces", "0\n");
        assert!(user_namespaces(&bare.probe).found.contains("forbidden"));
        bare.write("proc/sys/user/max_user_namespaces", "7\n");
        assert!(user_namespaces(&bare.probe).ok);
    }

    #[test]
    fn seccomp_and_open_files_are_judged() {
        let mut bare = Bare::new();
        assert!(!seccomp(&bare.probe).ok);
        bare.write("proc/sys/kernel/seccomp/actions_avail", "kill_process trap errno log allow\n");
        assert!(seccomp(&bare.probe).ok);
        assert!(landlock(&bare.probe).ok);
        bare.probe.landlock = None;
        assert!(!landlock(&bare.probe).ok && landlock(&bare.probe).found.contains("git can read"));
        bare.probe.nofile = Some(256);
        assert!(!open_files(&bare.probe).ok);
        bare.probe.nofile = None;
        assert!(open_files(&bare.probe).ok);
    }

    #[test]
    fn security_modules_are_named_only_where_they_are_in_the_way() {
        let bare = Bare::new();
        assert!(selinux(&bare.probe).is_none() && apparmor(&bare.probe).is_none());
        bare.write("sys/fs/selinux/enforce", "1");
        assert!(!selinux(&bare.probe).unwrap().ok);
        bare.write("sys/fs/selinux/enforce", "0");
        assert!(selinux(&bare.probe).is_none());
        bare.write("sys/module/apparmor/parameters/enabled", "Y\n");
        bare.write("proc/self/attr/apparmor/current", "unconfined\n");
        assert!(apparmor(&bare.probe).is_none());
        bare.write("proc/self/attr/apparmor/current", "docker-default (enforce)\n");
        assert!(apparmor(&bare.probe).unwrap().found.contains("docker-default"));
    }
}
