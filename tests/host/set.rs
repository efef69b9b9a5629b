//! Limits that are changed while a spark runs, and what is told when one of them is hit.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Machine, cgroups, wait_for};
use crate::inside::{bare, init, machine, sh};

fn info(machine: &Machine, name: &str) -> Value {
    machine.spark(&["info", name, "--json"]).json()
}

/// What the kernel holds a spark to: memory, memory with swap or swap alone, processes, processor time.
fn in_force(machine: &Machine, name: &str) -> [String; 4] {
    let id = info(machine, name)["id"].as_str().unwrap().to_owned();
    let names = [
        ["memory.limit_in_bytes", "memory.max"],
        ["memory.memsw.limit_in_bytes", "memory.swap.max"],
        ["pids.max", "pids.max"],
        ["cpu.cfs_quota_us", "cpu.max"],
    ];
    names.map(|names| {
        let files = cgroups(&id).into_iter().flat_map(|dir| names.map(|name| dir.join(name)));
        let text = files.filter_map(|file| std::fs::read_to_string(file).ok()).next();
        text.unwrap_or_default().trim().to_owned()
    })
}

/// The same that is expected of a host with version 1, or with version 2.
fn expected(memory: u64, pids: u64, quota: u64) -> [String; 4] {
    let v1 = Path::new("/sys/fs/cgroup/memory").is_dir();
    let swap = if v1 { memory } else { 0 };
    let quota = if v1 { quota.to_string() } else { format!("{quota} 100000") };
    [memory.to_string(), swap.to_string(), pids.to_string(), quota]
}

/// The default limit of memory: half of what /proc/meminfo has, in whole pages.
fn half_of_the_host() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    let kib: u64 = total.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024 / 2 / 4096 * 4096
}

#[test]
fn a_spark_has_at_most_half_of_the_host_unless_somebody_says_otherwise() {
    let machine = machine();
    bare(&machine, "web", &[]);
    let first = info(&machine, "web");
    assert_eq!(first["limits"], json!({ "memory": half_of_the_host(), "pids": 4096 }));
    let from = json!({
        "memory": "default: half of the host's memory", "pids": "default: 4096, or half of what the host can run"
    });
    assert_eq!((&first["limits_from"], &first["options"]["limits"]), (&from, &json!({})));
    assert_eq!(in_force(&machine, "web")[..1], expected(half_of_the_host(), 4096, 0)[..1]);
    // The kernel holds what runs inside to it. To reach half of this host would be to take it from other tests.
    let files = sh(&machine, "web", "0", "ulimit -Hn").ok();
    assert!(files.trim().parse::<u64>().unwrap() <= 524_288, "{files}");
    let own = std::fs::read_to_string(format!("/proc/{}/limits", init(&machine, "web"))).unwrap();
    let own = own.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(own.split_whitespace().nth(4).unwrap().parse::<u64>().unwrap() <= 524_288, "{own}");

    // A spark whose record is of an older version has none either, and gets the default at its next start.
    bare(&machine, "free", &["--memory", "none", "--pids", "5000"]);
    assert_eq!(info(&machine, "free")["limits"], json!({ "pids": 5000 }));
    let from = json!({ "memory": "options", "pids": "options" });
    assert_eq!(info(&machine, "free")["limits_from"], from);
    // It is inherited, and can be lowered.
    machine.spark(&["fork", "free", "app", "--memory", "64M"]).ok();
    assert_eq!(info(&machine, "app")["limits"], json!({ "memory": 64 << 20, "pids": 5000 }));
    machine.spark(&["fork", "free", "like"]).ok();
    assert_eq!(info(&machine, "like")["limits"], json!({ "pids": 5000 }));
}

#[test]
fn limits_change_while_it_runs_and_hold_at_the_next_start() {
    let machine = machine();
    bare(&machine, "web", &["--memory", "64M"]);
    let pid = init(&machine, "web");
    // Up, down, and up again: the kernel wants memory and swap in an order that depends on the direction.
    for (memory, pids, cpus) in [(96u64, 70, "0.5"), (32, 60, "1.5"), (128, 50, "0.25")] {
        let memory_arg = format!("{memory}M");
        let pids_arg = pids.to_string();
        machine.spark(&["set", "web", "--memory", &memory_arg, "--pids", &pids_arg, "--cpus", cpus]).ok();
        let milli = (cpus.parse::<f64>().unwrap() * 1000.0) as u64;
        assert_eq!(in_force(&machine, "web"), expected(memory << 20, pids, milli * 100));
        let limits = json!({ "memory": memory << 20, "cpus_milli": milli, "pids": pids });
        let info = info(&machine, "web");
        assert_eq!((&info["limits"], &info["options"]["limits"]), (&limits, &limits));
    }
    assert_eq!(init(&machine, "web"), pid, "it runs on");
    machine.spark(&["stop", "web", "-t", "0"]).ok();
    assert_eq!(info(&machine, "web")["limits"], Value::Null);
    machine.spark(&["set", "web", "--pids", "40"]).ok();
    machine.spark(&["resume", "web"]).ok();
    assert_eq!(in_force(&machine, "web"), expected(128 << 20, 40, 25_000));

    // What is inherited can be lifted, and what is not named stays.
    machine.spark(&["fork", "web", "app"]).ok();
    machine.spark(&["set", "web", "app", "--memory", "none", "--pids", "none"]).ok();
    for name in ["web", "app"] {
        assert_eq!(info(&machine, name)["limits"], json!({ "cpus_milli": 250, "pids": 4096 }), "{name}");
        let recorded = json!({ "cpus_milli": 250, "memory": "none" });
        assert_eq!(info(&machine, name)["options"]["limits"], recorded, "{name}");
    }
    // That there is no limit is remembered, and the default comes back when asked for.
    machine.spark(&["stop", "app", "-t", "0"]).ok();
    machine.spark(&["resume", "app"]).ok();
    assert_eq!(info(&machine, "app")["limits"], json!({ "cpus_milli": 250, "pids": 4096 }));
    assert_eq!(info(&machine, "app")["limits_from"]["memory"], "options");
    machine.spark(&["set", "app", "--memory", "default"]).ok();
    assert_eq!(info(&machine, "app")["limits"]["memory"], half_of_the_host());
    assert_eq!(info(&machine, "app")["options"]["limits"], json!({ "cpus_milli": 250 }));
    machine.spark(&["pause", "web"]).ok();
    machine.spark(&["set", "web", "--memory", "48M"]).ok();
    assert_eq!(info(&machine, "web")["state"], "paused");
    assert_eq!(info(&machine, "web")["limits"]["memory"], 48 << 20);
}

#[test]
fn one_of_several_that_is_not_there_does_not_keep_the_others_from_their_limits() {
    let machine = machine();
    bare(&machine, "web", &["--no-start"]);
    let output = machine.spark(&["set", "nobody", "web", "--pids", "30", "--json"]);
    output.fails_with("not_found");
    assert_eq!(info(&machine, "web")["options"]["limits"]["pids"], 30);
    for nothing in [&["set", "web"][..], &["set", "web", "--memory", "lots"], &["set", "--pids", "3"]] {
        assert_eq!(machine.spark(nothing).status(), 2, "{nothing:?}");
    }
}

#[test]
fn labels_come_and_go() {
    let machine = machine();
    bare(&machine, "web", &["--label", "a=1", "--label", "b=2", "--no-start"]);
    machine
        .spark(&["set", "web", "--label", "a=3", "--unlabel", "b", "--unlabel", "no", "--label", "c="])
        .ok();
    assert_eq!(info(&machine, "web")["options"]["labels"], json!({ "a": "3", "c": "" }));
}

#[test]
fn a_memory_limit_below_what_is_used_is_refused_and_nothing_is_killed_for_it() {
    let machine = machine();
    bare(&machine, "web", &["--memory", "96M", "--pids", "50"]);
    sh(&machine, "web", "0", "dd if=/dev/zero of=/dev/shm/x bs=1M count=40").ok();
    machine.spark(&["exec", "-d", "web", "sleep", "1000"]).ok();
    let pid = init(&machine, "web");
    let output = machine.spark(&["set", "web", "--memory", "16M", "--pids", "20", "--json"]);
    let message = output.fails_with("wrong_state");
    assert!(message.contains("using 4") && message.contains("MiB"), "{message}");
    let all = json!({ "memory": 96 << 20, "pids": 50 });
    let after = info(&machine, "web");
    assert_eq!((&after["limits"], &after["options"]["limits"]), (&all, &all));
    assert_eq!((after["usage"]["oom_kills"].as_u64(), init(&machine, "web")), (Some(0), pid));
    assert_eq!(sh(&machine, "web", "0", "pidof sleep | wc -w").ok(), "1\n");

    machine.spark(&["set", "web", "--memory", "64M"]).ok();
    sh(&machine, "web", "0", "rm /dev/shm/x").ok();
    machine.spark(&["set", "web", "--memory", "16M"]).ok();
    assert_eq!(info(&machine, "web")["limits"]["memory"], 16 << 20);
}

/// Takes memory until it is killed.
const HOG: &str = "awk 'BEGIN { x = \"x\"; while (1) x = x x }'";

#[test]
fn who_is_killed_for_memory_is_told_so() {
    let machine = machine();
    bare(&machine, "web", &["--memory", "32M"]);
    let text = "error: spark `web` ran out of its 32.0 MiB of memory, and a process in it was killed\n\
                hint: give it more with `spark set web --memory SIZE`\n";
    let output = sh(&machine, "web", "0", &format!("exec {HOG}"));
    assert_eq!((output.status(), output.stderr().as_str()), (128 + 9, text));
    // Who started it may make something else of it.
    let output = sh(&machine, "web", "0", &format!("{HOG} 2>&-; exit 3"));
    assert!(output.status() == 3 && output.stderr().ends_with(text), "{}", output.stderr());
    let output = sh(&machine, "web", "0", "exit 3");
    assert_eq!((output.status(), output.stderr().as_str()), (3, ""));
    let args = ["exec", "--memory", "32M", "--json", "-", "--base", "minimal", "--", "sh", "-c", HOG];
    let output = machine.spark(&[&args[..5], &args[7..]].concat());
    assert_eq!(output.status(), 128 + 9);
    output.fails_with("out_of_memory");

    machine.spark(&["exec", "-d", "web", "--", "sh", "-c", &format!("echo begun; {HOG}")]).ok();
    let kills = || info(&machine, "web")["usage"]["oom_kills"].as_u64();
    assert!(wait_for(|| kills() == Some(3)), "{:?}", kills());
    let output = machine.spark(&["logs", "web"]);
    assert!(output.ok().starts_with("begun\n"), "{}", output.stdout());
    assert_eq!(output.stderr(), "spark: out of memory: killed 3 since `web` started\n");
    assert_eq!(machine.spark(&["logs", "web", "--json"]).json()["oom_kills"], 3);
    machine.spark(&["stop", "web", "-t", "0"]).ok();
    let log = machine.spark(&["logs", "web"]).ok();
    assert!(log.ends_with("spark: out of memory with a limit of 32.0 MiB: killed 3\n"), "{log}");
    machine.spark(&["resume", "web"]).ok();
    assert_eq!(kills(), Some(0), "counted from its start");
}

#[test]
fn a_spark_that_ended_for_want_of_memory_says_so() {
    let machine = machine();
    bare(&machine, "web", &["--memory", "32M"]);
    // Its PID 1 is two kilobytes: the kernel would never choose it, if not told to. And whoever fills memory that is no
    // process's own is not to be chosen before it.
    std::fs::write(format!("/proc/{}/oom_score_adj", init(&machine, "web")), "1000").unwrap();
    let output = sh(&machine, "web", "0", "dd if=/dev/zero of=/dev/shm/x bs=1M count=64");
    assert_eq!(output.status(), 128 + 9);
    assert!(output.stderr().contains("ran out of its 32.0 MiB"), "{}", output.stderr());
    assert!(wait_for(|| info(&machine, "web")["state"] == "stopped"));
    assert_eq!(info(&machine, "web")["ended"], "out of memory");
    machine.spark(&["resume", "web"]).ok();
    assert_eq!(info(&machine, "web")["ended"], Value::Null);
    assert!(machine.spark(&["logs", "web"]).ok().contains("spark: out of memory"));
    machine.spark(&["stop", "web"]).ok();
    assert_eq!(info(&machine, "web")["ended"], Value::Null);
}

#[test]
fn reading_and_writing_the_disk_are_slowed_and_set_free() {
    let machine = machine();
    bare(&machine, "web", &["--io", "1M"]);
    bare(&machine, "free", &[]);
    let read = |name: &str| {
        let begun = Instant::now();
        sh(&machine, name, "0", "dd if=/file of=/dev/null bs=64k iflag=direct").ok();
        begun.elapsed()
    };
    for name in ["web", "free"] {
        sh(&machine, name, "0", "dd if=/dev/urandom of=/file bs=1M count=2 conv=fsync").ok();
    }
    // What is limited takes longer than this. What is not may do so too, as long as others keep the disk busy.
    let margin = Duration::from_millis(900);
    let slowed = read("web");
    assert!(slowed > margin, "{slowed:?}");
    assert!(wait_for(|| read("free") + margin < slowed), "2 MiB took {slowed:?} with --io 1M, and without");
    assert_eq!(info(&machine, "web")["limits"]["io"], 1 << 20);
    let used = info(&machine, "web")["usage"]["read_bytes"].as_u64().unwrap();
    // Once, and not again on the disk that the pool's image is on.
    assert!((2 << 20..4 << 20).contains(&used), "{used}");
    machine.spark(&["set", "web", "--io", "none"]).ok();
    assert!(wait_for(|| read("web") + margin < slowed), "2 MiB took {slowed:?} with --io 1M, and after it");
    let write = |name: &str| {
        let begun = Instant::now();
        sh(&machine, name, "0", "dd if=/dev/zero of=/more bs=64k count=32 oflag=direct").ok();
        begun.elapsed()
    };
    machine.spark(&["set", "web", "--io", "1M"]).ok();
    let slowed = write("web");
    assert!(slowed > margin, "{slowed:?}");
    assert!(wait_for(|| write("free") + margin < slowed), "2 MiB took {slowed:?} with --io 1M, and without");
}
