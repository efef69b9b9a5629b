//! `exec` and `console` are as confined as PID 1, and PID 1 is confined.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use crate::common::{Machine, cgroups, wait_for};
use crate::inside::{USER, init, machine, output_in_time, root, sh, spark};

const NAMESPACES: [&str; 6] = ["user", "mnt", "pid", "uts", "ipc", "cgroup"];

/// What Docker gives by default. `CAP_MKNOD`, `CAP_AUDIT_WRITE` and `CAP_SETFCAP` are among it.
const DOCKER: u64 = 0xa804_25fb;

fn status(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|l| l.split_once(':'));
    pairs.map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect()
}

fn of_init(pid: i32, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}

fn ns_of(pid: i32) -> Vec<String> {
    let link = |n: &&str| std::fs::read_link(format!("/proc/{pid}/ns/{n}")).unwrap().display().to_string();
    NAMESPACES.iter().map(link).collect()
}

fn caps(status: &BTreeMap<String, String>, set: &str) -> u64 {
    u64::from_str_radix(&status[set], 16).unwrap()
}

const LOOK: &str = "cat /proc/self/uid_map /proc/self/gid_map; for n in user mnt pid uts ipc cgroup; do \
                    readlink /proc/self/ns/$n; done; echo --; cat /proc/self/cgroup; echo --; cat /proc/self/status";

fn compare(machine: &Machine, name: &str, user: &str, seen: &str) {
    let pid = init(machine, name);
    let parts: Vec<&str> = seen.split("--\n").collect();
    let mut lines = of_init(pid, "uid_map") + &of_init(pid, "gid_map");
    for ns in ns_of(pid) {
        lines.push_str(&ns);
        lines.push('\n');
    }
    assert_eq!(parts[0], lines, "{name} {user}: ids and namespaces");
    // Inside everything is `/`: the namespace's own top. On the host both are in the same place.
    assert!(parts[1].lines().all(|l| l.ends_with(":/")), "{name} {user}: {}", parts[1]);
    let (mine, inits) = (status(parts[2]), status(&of_init(pid, "status")));
    for field in ["Seccomp", "Seccomp_filters", "NoNewPrivs", "CapBnd", "CapInh", "CapAmb"] {
        assert_eq!(mine[field], inits[field], "{name} {user}: {field}");
    }
    assert_eq!(mine["Seccomp"], "2");
    assert_eq!((caps(&inits, "CapInh"), caps(&inits, "CapAmb")), (0, 0));
    assert_eq!(caps(&inits, "CapBnd") & !DOCKER, 0, "more than Docker gives");
    let expected = if user == "0" { inits["CapEff"].clone() } else { "0".repeat(16) };
    assert_eq!((&mine["CapEff"], &mine["CapPrm"]), (&expected, &expected), "{name} {user}");
    let id = user.split(':').next().unwrap();
    assert_eq!(mine["Uid"].split_whitespace().collect::<Vec<_>>(), [id; 4], "{name} {user}");
    assert_eq!(mine["Groups"], "", "{name} {user}: groups of the host");
}

#[test]
fn exec_and_console_are_as_confined_as_pid_1_as_root_and_as_another_user() {
    let machine = machine();
    spark(&machine, "plain", &[]);
    spark(&machine, "hard", &["--hardened"]);
    spark(&machine, "alone", &["--network", "none"]);
    for name in ["plain", "hard", "alone"] {
        for user in ["0", USER] {
            compare(&machine, name, user, &sh(&machine, name, user, LOOK).ok());
            let terminal = machine.spark(&["exec", "-t", "-u", user, name, "--", "/bin/sh", "-c", LOOK]);
            compare(&machine, name, user, &terminal.ok().replace('\r', ""));
        }
        let console = machine.spark(&["console", name, "--", "/bin/sh", "-c", LOOK]);
        compare(&machine, name, "0", &console.ok().replace('\r', ""));
    }
    let [hard, plain] = ["hard", "plain"].map(|n| status(&of_init(init(&machine, n), "status")));
    assert_eq!((caps(&hard, "CapBnd"), hard["NoNewPrivs"].as_str()), (0, "1"));
    assert_eq!(plain["NoNewPrivs"], "0", "sudo has to work");
}

#[test]
fn every_spark_has_namespaces_and_ids_of_its_own_and_a_limit_of_processes() {
    let machine = machine();
    spark(&machine, "one", &[]);
    spark(&machine, "two", &["--pids", "77"]);
    let pids = ["one", "two"].map(|n| init(&machine, n));
    let host = ns_of(std::process::id() as i32);
    let [one, two] = pids.map(ns_of);
    for (i, name) in NAMESPACES.iter().enumerate() {
        assert!(one[i] != two[i] && one[i] != host[i] && two[i] != host[i], "{name}");
    }
    let ranges = pids.map(|pid| {
        let map = of_init(pid, "uid_map");
        let fields: Vec<u64> = map.split_whitespace().map(|f| f.parse().unwrap()).collect();
        assert_eq!((fields.len(), fields[0], fields[2]), (3, 0, 65536), "{map}");
        assert_eq!(map, of_init(pid, "gid_map"));
        fields[1]
    });
    assert!(ranges[0].abs_diff(ranges[1]) >= 65536, "{ranges:?}");
    for (pid, limit) in pids.iter().zip(["4096", "77"]) {
        let lines = of_init(*pid, "cgroup");
        let path = lines.lines().find_map(|l| match l.splitn(3, ':').collect::<Vec<_>>()[..] {
            [_, "pids", path] => Some(format!("/sys/fs/cgroup/pids{path}")),
            ["0", "", path] if !lines.contains(":pids:") => Some(format!("/sys/fs/cgroup{path}")),
            _ => None,
        });
        let path = path.unwrap() + "/pids.max";
        assert_eq!(std::fs::read_to_string(path).unwrap().trim(), limit);
    }
    // It holds for what exec starts.
    let many = sh(
        &machine,
        "two",
        "0",
        "for i in $(seq 100); do sleep 60 </dev/null >/dev/null 2>&1 & done; echo all",
    );
    assert!(!many.stdout().contains("all"), "100 processes in a spark that may have 77");
}

#[test]
fn a_spark_is_in_a_cgroup_of_its_own_in_every_hierarchy_and_sees_no_other() {
    let machine = machine();
    spark(&machine, "one", &[]);
    let id = machine.spark(&["info", "one", "--json"]).json()["id"].as_str().unwrap().to_owned();
    let own = format!("/spark/{id}");
    let pid = init(&machine, "one");
    for line in of_init(pid, "cgroup").lines() {
        assert!(line.ends_with(&format!(":{own}")), "{line}");
    }
    // Of what is mounted: the part of the hierarchy that is at its top.
    let mounts = of_init(pid, "mountinfo");
    let is_cgroup = |line: &&str| line.split(" - ").nth(1).unwrap().starts_with("cgroup");
    let seen: Vec<&str> = mounts.lines().filter(is_cgroup).collect();
    assert!(!seen.is_empty());
    assert!(seen.iter().all(|line| line.split(' ').nth(3) == Some(&own)), "{seen:#?}");
    machine.spark(&["stop", "-t", "0", "one"]).ok();
    assert!(cgroups(&id).is_empty(), "{:?}", cgroups(&id));
}

#[test]
fn nothing_of_the_callers_gets_inside() {
    let machine = machine();
    let leaked = std::fs::File::open("/").unwrap();
    let fd = leaked.as_raw_fd();
    let inherit = move |command: &mut std::process::Command| {
        // SAFETY: dup2(2) and setgroups(2) are safe between fork and exec; the array is of the length given.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || {
                for to in [9, 11, 40] {
                    libc::dup2(fd, to);
                }
                libc::setgroups(2, [6, 27].as_ptr());
                Ok(())
            });
        }
    };
    let mut create = machine.command(&["create", "web", "--base", "minimal"]);
    inherit(&mut create);
    assert!(output_in_time(create, b"").status.success());
    let pid = init(&machine, "web");
    let fds = |pid| -> Vec<String> {
        let names = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(fds(pid), ["0", "1", "2"], "PID 1");
    assert_eq!(status(&of_init(pid, "status"))["Groups"], "", "PID 1");

    for user in ["0", USER] {
        for terminal in ["-t", "-T"] {
            // 3 is the directory that ls reads.
            let script =
                "ls -1 /proc/self/fd; grep Groups /proc/self/status; cat /proc/self/environ | tr '\\0' '\\n'";
            let mut exec =
                machine.command(&["exec", terminal, "-u", user, "web", "--", "/bin/sh", "-c", script]);
            inherit(&mut exec);
            exec.env("HOST_CANARY", "1").env("LD_PRELOAD", "");
            let output = output_in_time(exec, b"");
            let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
            assert!(text.starts_with("0\n1\n2\n3\nGroups:\t"), "{user} {terminal}: {text}");
            assert!(!text.contains("27") && !text.contains("HOST_CANARY"), "{user} {terminal}: {text}");
        }
    }
    drop(leaked);
}

#[test]
fn a_detached_command_is_confined_too() {
    let machine = machine();
    spark(&machine, "web", &[]);
    machine.spark(&["exec", "-d", "web", "--", "/bin/sh", "-c", &format!("{LOOK}; echo end")]).ok();
    let log = || machine.spark(&["logs", "web"]).ok();
    assert!(wait_for(|| log().contains("\nend\n")));
    compare(&machine, "web", "0", log().trim_end_matches("end\n"));
}

/// A spark that lost its limits keeps what runs in it, and gets nothing more.
#[test]
fn nothing_enters_a_spark_that_has_no_cgroup() {
    let machine = machine();
    spark(&machine, "web", &[]);
    let id = machine.spark(&["info", "web", "--json"]).json()["id"].as_str().unwrap().to_owned();
    let pid = init(&machine, "web").to_string();
    for dir in cgroups(&id) {
        let top = dir.ancestors().nth(2).unwrap().to_owned();
        std::fs::write(top.join("cgroup.procs"), &pid).unwrap();
        assert!(wait_for(|| std::fs::remove_dir(&dir).is_ok()), "{}", dir.display());
    }
    let refused = machine.spark(&["exec", "-T", "web", "--", "true"]);
    assert_eq!(refused.status(), 125);
    assert!(refused.stderr().contains("it has no cgroup"), "{}", refused.stderr());
}

#[test]
fn a_set_uid_program_gives_root_inside_unless_hardened() {
    use std::os::unix::fs::PermissionsExt;
    let machine = machine();
    for (name, options, ids) in [("plain", &[][..], "0 0"), ("hard", &["--hardened"], "1000 1000")] {
        spark(&machine, name, options);
        let probe = crate::inside::root(&machine, name).join("bin/probe");
        std::fs::set_permissions(&probe, PermissionsExt::from_mode(0o4755)).unwrap();
        let seen = sh(&machine, name, USER, "probe uid").ok();
        assert!(seen.trim().ends_with(ids), "{name}: {seen}");
        // The host's root it is not: what belongs to nobody inside stays out of reach.
        let pid = init(&machine, name);
        let map = of_init(pid, "uid_map");
        assert!(!map.split_whitespace().nth(1).unwrap().starts_with("0"), "{map}");
    }
    // su itself.
    let root = crate::inside::root(&machine, "plain");
    std::fs::remove_file(root.join("bin/su")).ok();
    std::fs::copy(root.join("bin/busybox"), root.join("bin/su")).unwrap();
    std::fs::set_permissions(root.join("bin/su"), PermissionsExt::from_mode(0o4755)).unwrap();
    std::fs::write(root.join("etc/passwd"), "root::0:0::/root:/bin/sh\nann::1000:1000::/:/bin/sh\n").unwrap();
    std::fs::remove_file(root.join("etc/shadow")).unwrap();
    let su = sh(&machine, "plain", "ann", "/bin/su root -c 'id -u; grep CapEff /proc/self/status'").ok();
    let init_caps = status(&of_init(init(&machine, "plain"), "status"))["CapEff"].clone();
    assert_eq!(su, format!("0\nCapEff:\t{init_caps}\n"));
}

/// Where the kernel has no rules for devices, the mount alone keeps a spark from those of the host.
#[test]
fn a_device_node_in_a_root_opens_no_device() {
    let machine = machine();
    spark(&machine, "web", &[]);
    spark(&machine, "strict", &["--hardened"]);
    let flags = |name: &str| sh(&machine, name, "0", "grep ' / ' /proc/self/mounts").ok();
    assert!(flags("web").contains("nodev") && !flags("web").contains("nosuid"), "{}", flags("web"));
    assert!(flags("strict").contains("nodev") && flags("strict").contains("nosuid"), "{}", flags("strict"));

    // Only the host can put one there.
    let null = rustix::fs::makedev(1, 3);
    let character = rustix::fs::FileType::CharacterDevice;
    let node = root(&machine, "web").join("node");
    rustix::fs::mknodat(rustix::fs::CWD, &node, character, 0o666.into(), null).unwrap();
    std::fs::set_permissions(&node, PermissionsExt::from_mode(0o666)).unwrap();
    let script = "while [ ! -e /go ]; do sleep 0.05; done; cat /dev/null && cat /node; echo $? > /status";
    let pid = machine.spark(&["exec", "-d", "web", "--", "sh", "-c", script]).ok();
    // Out of the group whose rules refuse it too, as on a host that has none.
    let rules = std::path::Path::new("/sys/fs/cgroup/devices/cgroup.procs");
    if rules.exists() {
        std::fs::write(rules, pid.trim()).unwrap();
    }
    std::fs::write(root(&machine, "web").join("go"), "").unwrap();
    let status = root(&machine, "web").join("status");
    assert!(wait_for(|| status.metadata().is_ok_and(|m| m.len() > 0)));
    assert_eq!(std::fs::read_to_string(status).unwrap(), "1\n");
    assert!(machine.spark(&["logs", "web"]).ok().contains("node': Permission denied"));
}
