//! What a container may use, uses, and runs.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::bundle::{Host, cgroups};
use crate::common::wait_for;

/// What the first of some files of a container's cgroup says, in whatever hierarchy it is.
fn in_cgroup(id: &str, names: &[&str]) -> String {
    let found: Vec<PathBuf> = cgroups(id)
        .into_iter()
        .flat_map(|dir| names.iter().map(move |name| dir.join(name)))
        .filter(|path| path.exists())
        .collect();
    std::fs::read_to_string(&found[0]).unwrap().trim().to_owned()
}

#[test]
fn resources_are_limited_and_the_limits_can_be_changed() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |c| {
        c["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        c["linux"]["resources"]["pids"] = json!({"limit": 50});
    });
    host.start("limits");
    let memory = ["memory.limit_in_bytes", "memory.max"];
    assert_eq!(in_cgroup("limits", &memory), (64 << 20).to_string());
    assert_eq!(in_cgroup("limits", &["pids.max"]), "50");
    host.oci(&["update", "--memory", "32M", "--pids-limit", "20", "limits"]).ok();
    assert_eq!(in_cgroup("limits", &memory), (32 << 20).to_string());
    assert_eq!(in_cgroup("limits", &["pids.max"]), "20");
    let file = host.dir().join("resources.json");
    std::fs::write(&file, json!({"pids": {"limit": 30}}).to_string()).unwrap();
    host.oci(&["update", "-r", file.to_str().unwrap(), "limits"]).ok();
    assert_eq!(in_cgroup("limits", &["pids.max"]), "30");
    assert_eq!(host.oci(&["update", "--memory", "much", "limits"]).status(), 1);
}

#[test]
fn a_command_is_put_in_cgroups_below_the_containers_that_are_there() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |_| {});
    host.start("below");
    let dirs = cgroups("below");
    let pid_file = host.dir().join("pid");
    let exec = |groups: &[&str]| {
        let options = groups.iter().flat_map(|group| ["--cgroup", group]);
        let start = ["exec", "-d", "--pid-file", pid_file.to_str().unwrap()];
        let args: Vec<&str> = start.into_iter().chain(options).chain(["below", "sleep", "1000"]).collect();
        (host.quietly(&args) == 0).then(|| std::fs::read_to_string(&pid_file).unwrap())
    };
    let holds = |dir: &std::path::Path, pid: &str| {
        std::fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines().any(|line| line == pid)
    };
    let make = |dir: &PathBuf| {
        std::fs::create_dir(dir.join("sub")).unwrap();
        // Version 1 has nowhere to run in a new one.
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(text) = std::fs::read_to_string(dir.join(name)) {
                std::fs::write(dir.join("sub").join(name), text).unwrap();
            }
        }
    };
    // Missing in one hierarchy, it would leave the process outside of that one's limits.
    make(&dirs[0]);
    if dirs.len() > 1 {
        assert_eq!(exec(&["/sub"]), None);
        let controllers =
            dirs[0].strip_prefix("/sys/fs/cgroup").unwrap().iter().next().unwrap().to_str().unwrap();
        let pid = exec(&[&format!("{controllers}:/sub")]).unwrap();
        for (number, dir) in dirs.iter().enumerate() {
            let dir = if number == 0 { dir.join("sub") } else { dir.clone() };
            assert!(holds(&dir, &pid), "{}", dir.display());
        }
    }
    dirs[1..].iter().for_each(make);
    let pid = exec(&["sub"]).unwrap();
    assert!(dirs.iter().all(|dir| holds(&dir.join("sub"), &pid)));
    for wrong in [&["nosuch"][..], &["nosuch:/sub"], &["../x"], &["pids:/../x"], &["a:b:c"], &["sub", "sub"]]
    {
        assert_eq!(exec(wrong), None, "{wrong:?}");
    }
}

#[test]
fn processes_in_cgroups_that_the_container_made_are_its_own_too() {
    let host = Host::new();
    // The first process stays where it is, and another one goes below.
    let script = "for procs in $(find /sys/fs/cgroup -name cgroup.procs); do
            dir=${procs%/*}/own/deeper; mkdir -p $dir 2>/dev/null && echo $dir
        done >/out/made
        (while read dir; do sh -c 'echo $PPID >'$dir/cgroup.procs 2>/dev/null; done </out/made; echo >/out/ready
            exec sleep 1001) &
        exec sleep 1002";
    host.configure(&["sh", "-c", script], |c| {
        for mount in c["mounts"].as_array_mut().unwrap().iter_mut().filter(|m| m["type"] == "cgroup") {
            mount["options"] = json!(["nosuid", "noexec", "nodev", "relatime", "rw"]);
        }
    });
    host.start("inner");
    assert!(wait_for(|| host.out("ready").exists()));
    let pids =
        || -> Vec<i64> { serde_json::from_str(&host.oci(&["ps", "-f", "json", "inner"]).ok()).unwrap() };
    let made = std::fs::read_to_string(host.out("made")).unwrap();
    assert!(made.lines().count() >= 1, "the container could make no cgroup");
    assert!(wait_for(|| pids().len() == 2), "{:?}", pids());
    host.oci(&["pause", "inner"]).ok();
    host.oci(&["resume", "inner"]).ok();
    host.oci(&["exec", "inner", "true"]).ok();
    host.oci(&["kill", "--all", "inner", "KILL"]).ok();
    assert!(wait_for(|| pids().is_empty()), "{:?}", pids());
    host.oci(&["delete", "inner"]).ok();
    assert!(cgroups("inner").is_empty(), "{:?}", cgroups("inner"));
}

#[test]
fn features_are_told_with_annotations() {
    let host = Host::new();
    let features: Value = serde_json::from_str(&host.oci(&["features"]).ok()).unwrap();
    let annotations = &features["annotations"];
    let version = annotations["io.github.seccomp.libseccomp.version"].as_str().unwrap();
    assert!(version.split('.').count() == 3, "{version}");
    assert_eq!(annotations["org.opencontainers.runc.checkpoint.enabled"], "false");
    assert_eq!(annotations["spark-oci.version"], env!("CARGO_PKG_VERSION"));
    assert!(features["mountOptions"].as_array().unwrap().contains(&json!("tmpcopyup")));
}

#[test]
fn what_runs_and_what_it_uses_is_shown() {
    let host = Host::new();
    host.configure(&["sh", "-c", "sleep 1001 & sleep 1002; true"], |_| {});
    host.start("shown");
    let pids =
        || -> Vec<i64> { serde_json::from_str(&host.oci(&["ps", "-f", "json", "shown"]).ok()).unwrap() };
    assert!(wait_for(|| pids().len() == 3), "{:?}", pids());
    let table = host.oci(&["ps", "shown"]).ok();
    assert!(table.contains("PID") && table.contains("sleep 1001"), "{table}");
    assert_eq!(table.lines().count(), 4, "{table}");
    let event: Value = serde_json::from_str(&host.oci(&["events", "--stats", "shown"]).ok()).unwrap();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!("shown")));
    assert_eq!(event["data"]["pids"]["current"], 3);
    assert!(event["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    // All of them, and not the first one alone.
    host.oci(&["kill", "--all", "shown", "KILL"]).ok();
    assert!(wait_for(|| pids().is_empty()));
}

#[test]
fn two_containers_never_share_a_cgroup_and_none_has_the_top() {
    let host = Host::new();
    let configure =
        |path: &str| host.configure(&["sleep", "1000"], |c| c["linux"]["cgroupsPath"] = json!(path));
    configure("spark-oci-shared-x");
    host.start("one");
    let places = std::fs::read_to_string(format!("/proc/{}/cgroup", host.pid("one"))).unwrap();
    assert!(places.lines().any(|line| line.ends_with(":/spark-oci-shared-x")), "{places}");
    configure("/spark-oci-shared-x");
    let refused = host.oci(&["create", "two"]);
    assert_eq!(refused.status(), 1);
    assert!(refused.stderr().contains("the cgroup /spark-oci-shared-x is busy"), "{}", refused.stderr());
    assert_eq!(host.state("one")["status"], "running");
    for path in ["/", "..", "/../x", "./"] {
        configure(path);
        let refused = host.oci(&["create", "two"]);
        assert!(refused.stderr().contains("is no cgroup that a container can have"), "{}", refused.stderr());
    }
    assert_eq!(host.oci(&["list", "-q"]).ok(), "one\n");
}

/// A delete, and a create that fails, end all that is in the container's cgroup or below it.
#[test]
fn a_cgroup_with_a_process_below_it_in_any_hierarchy_is_refused_and_the_process_lives() {
    let host = Host::new();
    let tops =
        ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/freezer", "/sys/fs/cgroup"].map(std::path::Path::new);
    let tops: Vec<_> = tops.into_iter().filter(|top| top.join("cgroup.procs").exists()).collect();
    assert!(!tops.is_empty());
    for top in tops {
        let parent = top.join("spark-oci-theirs");
        let service = parent.join("a/service");
        std::fs::create_dir_all(&service).unwrap();
        let mut theirs = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        std::fs::write(service.join("cgroup.procs"), theirs.id().to_string()).unwrap();
        host.configure(&["sleep", "1000"], |c| c["linux"]["cgroupsPath"] = json!("/spark-oci-theirs"));
        let refused = host.oci(&["create", "two"]);
        let deleted = host.oci(&["delete", "--force", "two"]);
        let lives = theirs.try_wait().unwrap().is_none();
        theirs.kill().unwrap();
        theirs.wait().unwrap();
        let removed = wait_for(|| {
            [&service, &parent.join("a"), &parent]
                .into_iter()
                .all(|dir| std::fs::remove_dir(dir).is_ok() || !dir.exists())
        });
        assert!(refused.stderr().contains("the cgroup /spark-oci-theirs is busy"), "{}", refused.stderr());
        assert!(lives && removed, "{}: {}", top.display(), deleted.stderr());
    }
}

#[test]
fn want_of_memory_is_an_event_and_the_end_of_the_container_that_of_its_events() {
    let host = Host::new();
    // Without a word it waits; then it has more than it may.
    let greedy = "while ! test -e /out/eat; do sleep 0.05; done; exec tail /dev/zero";
    for (id, program) in [("child", "sleep 1000"), ("first", greedy)] {
        host.configure(&["sh", "-c", program], |c| {
            c["linux"]["resources"]["memory"] = json!({"limit": 16 << 20});
        });
        host.start(id);
        let mut events = host.command(&["events", "--interval", "1h", id]);
        let mut events = events.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut reader = BufReader::new(events.stdout.take().unwrap());
        reader.read_line(&mut line).unwrap();
        let begun: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(begun["type"], "stats");
        if id == "child" {
            assert_eq!(host.oci(&["exec", id, "tail", "/dev/zero"]).status(), 137);
            line.clear();
            reader.read_line(&mut line).unwrap();
            assert_eq!(line, "{\"type\":\"oom\",\"id\":\"child\"}\n");
            host.oci(&["kill", id, "KILL"]).ok();
        } else {
            std::fs::write(host.out("eat"), "").unwrap();
        }
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(events.wait().unwrap().success());
        let expected = if id == "child" { "" } else { "{\"type\":\"oom\",\"id\":\"first\"}\n" };
        assert_eq!(rest, expected);
    }
}

#[test]
fn features_say_what_bundles_may_ask_for() {
    let host = Host::new();
    std::fs::create_dir_all(host.bundle()).unwrap();
    let features: Value = serde_json::from_str(&host.oci(&["features"]).ok()).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert!(features["hooks"].as_array().unwrap().contains(&json!("createRuntime")));
    assert!(features["linux"]["capabilities"].as_array().unwrap().contains(&json!("CAP_SYS_ADMIN")));
    assert!(features["mountOptions"].as_array().unwrap().contains(&json!("rbind")));
}

#[test]
fn where_systemd_makes_no_cgroups_of_version_2_it_is_not_asked_for_them() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |c| c["linux"]["cgroupsPath"] = json!("machine.slice:libpod:refused"));
    // Whatever the host is, nobody is in charge in here. What systemd does make is tested in the VM.
    let script = "mount -t tmpfs none /run/systemd 2>/dev/null; exec \"$@\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(env!("CARGO_BIN_EXE_spark-oci")).arg("--root").arg(host.root()).args([
        "--systemd-cgroup",
        "create",
        "refused",
    ]);
    command.env("SPARK_RUN", host.run()).current_dir(host.bundle()).stdin(Stdio::null());
    let out = crate::common::Output::of("create", &mut command);
    assert_eq!(out.status(), 1);
    assert!(out.stderr().contains("--systemd-cgroup") && out.stderr().contains("hint: "), "{}", out.stderr());
    assert!(host.oci(&["--systemd-cgroup", "list", "-q"]).ok().is_empty());
}
