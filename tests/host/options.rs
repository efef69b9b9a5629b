//! What `create` and `exec` are told, as it looks from inside, and limits as the kernel has them.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::{Machine, cgroups, processes, wait_for};

fn sh(machine: &Machine, spark: &str, script: &str) -> String {
    machine.spark(&["exec", spark, "--", "sh", "-c", script]).ok()
}

fn id(machine: &Machine, spark: &str) -> String {
    machine.spark(&["--json", "info", spark]).json()["id"].as_str().unwrap().to_owned()
}

/// A file of a spark's cgroup, in whichever hierarchy it is: by its names in version 1 and 2.
fn limit(id: &str, names: [&str; 2]) -> String {
    let files = cgroups(id).into_iter().flat_map(|dir| names.map(|name| dir.join(name)));
    let found = files.filter_map(|file| std::fs::read_to_string(file).ok()).next();
    found.unwrap_or_else(|| panic!("{names:?} is in no cgroup of {id}")).trim().to_owned()
}

#[test]
fn limits_stand_in_the_cgroups_and_bound_memory_and_processes() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--memory", "64M", "--cpus", "0.5", "--pids", "32"]).ok();
    let id = id(&machine, "web");
    assert_eq!(limit(&id, ["memory.limit_in_bytes", "memory.max"]), (64 << 20).to_string());
    assert_eq!(limit(&id, ["pids.max", "pids.max"]), "32");
    let cpu = limit(&id, ["cpu.cfs_quota_us", "cpu.max"]);
    assert!(["50000", "50000 100000"].contains(&cpu.as_str()), "{cpu}");

    // A hog dies, its spark does not.
    let hog = machine.spark(&["exec", "web", "--", "sh", "-c", "exec tail /dev/zero"]);
    assert_eq!(hog.status(), 137, "{}", hog.stderr());
    assert_eq!(sh(&machine, "web", "echo well"), "well\n");

    // A bomb is bounded.
    machine.spark(&["exec", "-d", "web", "--", "sh", "-c", "f() { f | f & }; f; sleep 5"]).ok();
    let full = || {
        std::fs::read_to_string(
            cgroups(&id).into_iter().map(|d| d.join("pids.events")).find(|f| f.exists()).unwrap(),
        )
        .is_ok_and(|t| t.trim() != "max 0")
    };
    assert!(wait_for(full), "it never came to the limit");
    assert!(processes(&id).len() <= 32);
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    assert!(processes(&id).is_empty());

    machine.spark(&["create", "plain"]).ok();
    assert_eq!(limit(&self::id(&machine, "plain"), ["pids.max", "pids.max"]), "4096");
}

#[test]
fn a_limit_of_processors_slows_what_spins() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "slow", "--cpus", "0.2"]).ok();
    let id = id(&machine, "slow");
    machine.spark(&["exec", "-d", "slow", "--", "sh", "-c", "while :; do :; done"]).ok();
    let throttled = || {
        let stat = limit(&id, ["cpu.stat", "cpu.stat"]);
        stat.lines().any(|l| l.strip_prefix("nr_throttled ").is_some_and(|n| n != "0"))
    };
    assert!(wait_for(throttled));
}

#[test]
fn inside_are_a_host_name_hosts_a_machine_id_of_its_own_and_the_usual_environment() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    machine.spark(&["create", "other"]).ok();
    assert_eq!(sh(&machine, "web", "hostname; cat /etc/hostname"), "web\nweb\n");
    let hosts = sh(&machine, "web", "cat /etc/hosts");
    assert!(hosts.contains("127.0.0.1\tlocalhost") && hosts.contains("127.0.1.1\tweb"), "{hosts}");
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(sh(&machine, "web", "cat /etc/resolv.conf"), resolv);
    let machine_id = sh(&machine, "web", "cat /etc/machine-id");
    assert_eq!(machine_id.trim().len(), 32);
    assert!(machine_id.trim().bytes().all(|b| b.is_ascii_hexdigit()));
    assert_ne!(sh(&machine, "other", "cat /etc/machine-id"), machine_id);
    machine.spark(&["stop", "web"]).ok();
    machine.spark(&["resume", "web"]).ok();
    assert_eq!(sh(&machine, "web", "cat /etc/machine-id"), machine_id);

    let env = sh(&machine, "web", "env");
    let has = |line: &str| env.lines().any(|l| l == line);
    assert!(has("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/spark/bin"), "{env}");
    assert!(has("LANG=C.UTF-8") && has("HOME=/root") && env.contains("TERM="), "{env}");
    assert!(
        !env.contains("SPARK_ROOT") && !env.contains("SPARK_RUN"),
        "the host's own is not passed on: {env}"
    );

    let mounts = sh(&machine, "web", "cat /proc/mounts");
    let kind = |at: &str| {
        mounts
            .lines()
            .filter_map(|l| {
                let mut words = l.split(' ').skip(1);
                (words.next() == Some(at)).then(|| words.next().unwrap().to_owned())
            })
            .last()
    };
    assert_eq!(kind("/dev/shm").as_deref(), Some("tmpfs"));
    assert_eq!((kind("/tmp"), kind("/").as_deref()), (None, Some("btrfs")), "/tmp is on disk");
    assert_eq!(sh(&machine, "web", "touch /tmp/x /dev/shm/x && stat -c %a /tmp"), "1777\n");
}

#[test]
fn environment_user_directory_and_labels_come_from_the_spark_and_then_the_command() {
    let machine = Machine::new().with_base();
    let file = machine.work().join("env");
    std::fs::write(&file, "# comment\nA=file\nB=file\nexport C=with space\n").unwrap();
    let file = file.to_str().unwrap();
    machine
        .spark(&[
            "create",
            "web",
            "--env-file",
            file,
            "-e",
            "B=option",
            "--workdir",
            "/tmp",
            "--user",
            "1234:55",
            "--hostname",
            "my.host",
            "--label",
            "tier=front",
            "--label",
            "x=",
        ])
        .ok();
    assert_eq!(sh(&machine, "web", "echo $A $B \"$C\""), "file option with space\n");
    assert_eq!(sh(&machine, "web", "pwd; id -u; id -g; hostname"), "/tmp\n1234\n55\nmy.host\n");
    let exec = |options: &[&str], script: &str| {
        let args: Vec<&str> =
            ["exec", "web"].iter().chain(options).copied().chain(["--", "sh", "-c", script]).collect();
        machine.spark(&args).ok()
    };
    assert_eq!(exec(&["-e", "B=now", "-e", "B=last"], "echo $A $B"), "file last\n");
    assert_eq!(exec(&["-u", "0", "-w", "/etc"], "id -u; pwd"), "0\n/etc\n");
    let info = machine.spark(&["--json", "info", "web"]).json();
    assert_eq!(info["options"]["labels"], serde_json::json!({"tier": "front", "x": ""}));
    machine.spark(&["stop", "web"]).ok();
    assert_eq!(sh(&machine, "web", "echo $A $B; id -u; pwd; hostname"), "file option\n1234\n/tmp\nmy.host\n");

    for (bad, file) in [("no equals sign\n", "bad"), ("A=\0\n", "nul")] {
        let path = machine.work().join(file);
        std::fs::write(&path, bad).unwrap();
        let out = machine.spark(&["create", "no", "--env-file", path.to_str().unwrap()]);
        assert_eq!(out.status(), 2, "{}", out.stderr());
        assert!(out.stderr().contains("line 1"), "{}", out.stderr());
    }
    assert_eq!(machine.spark(&["create", "no", "--env-file", "nowhere"]).status(), 1);
    assert_ne!(machine.spark(&["exec", "web", "-w", "/nowhere", "true"]).status(), 0);
    assert_ne!(machine.spark(&["exec", "web", "-u", "nobody-such", "true"]).status(), 0);
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "web\n");
}

#[test]
fn without_start_it_is_stopped_and_a_dry_run_makes_nothing() {
    let machine = Machine::new().with_base();
    let before = everything(&machine.pool());
    machine.spark(&["create", "plan", "--dry-run", "-P", "new"]).ok();
    let plan = machine
        .spark(&["--json", "create", "plan", "--dry-run", "--memory", "1G", "--network", "none"])
        .json();
    assert_eq!((&plan["name"], &plan["base"]), (&"plan".into(), &"minimal".into()));
    assert_eq!(plan["config"]["linux"]["resources"]["memory"]["limit"], 1 << 30);
    assert_eq!(everything(&machine.pool()), before);
    machine.spark(&["create", "cold", "--no-start"]).ok();
    assert_eq!(machine.spark(&["--json", "info", "cold"]).json()["state"], "stopped");
    assert!(processes(&id(&machine, "cold")).is_empty());
    machine.spark(&["--json", "create", "cold", "--dry-run"]).fails_with("exists");

    let unused = Machine::without_pool();
    assert_eq!(unused.spark(&["create", "plan", "--dry-run"]).status(), 1);
    assert_eq!(std::fs::read_dir(unused.place().root).unwrap().count(), 0);
}

fn everything(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![top.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            found.push(entry.path().display().to_string());
            if entry.file_type().unwrap().is_dir() && entry.file_name() != "root" {
                todo.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_timeout_ends_a_command_that_ignores_it() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    let begun = Instant::now();
    let out = machine.spark(&[
        "exec",
        "--timeout",
        "300ms",
        "web",
        "--",
        "sh",
        "-c",
        "trap '' TERM; sleep 100 & wait; sleep 100",
    ]);
    assert_eq!(out.status(), 124);
    assert!(begun.elapsed() < Duration::from_secs(8));
    assert_eq!(sh(&machine, "web", "echo well"), "well\n");
}
