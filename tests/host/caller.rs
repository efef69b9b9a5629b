//! What the caller's process passes on: nothing of it reaches Sparks or a spark, but for what a command keeps on purpose.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::common::wait_for;
use crate::exec::host;
use crate::images::built::{busybox, layout};
use crate::inside::{bare, init, machine};

/// A line of `/proc/PID/status`.
fn status(pid: i32, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
    value.trim().to_owned()
}

#[test]
fn no_signal_that_the_caller_ignores_or_blocks_reaches_a_spark() {
    let machine = machine();
    bare(&machine, "web", &[]);
    let all = "env --ignore-signal --block-signal $spark";
    let inside = host(&machine, &format!("{all} exec web -- cat /proc/self/status")).ok();
    let masks: Vec<&str> =
        inside.lines().filter(|line| line.starts_with("SigIgn") || line.starts_with("SigBlk")).collect();
    assert_eq!(masks, ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"]);
    host(&machine, &format!("{all} stop -t 0 web && {all} resume web")).ok();
    assert_eq!(status(init(&machine, "web"), "SigIgn"), "0000000000000000");
}

#[test]
fn a_caller_that_reaps_no_children_gets_the_results_of_ours() {
    let machine = machine();
    let line = "spark() { env --ignore-signal=CHLD --block-signal=CHLD $spark \"$@\"; }; set -e; cd $PWD
        spark create web; spark fork web two; spark stop -t 0 web; spark resume web; spark exec - true; spark gc
        spark port open web 127.0.0.1:0:80 || true; spark exec web -- sh -c 'exit 7' || echo ended with $?";
    assert!(host(&machine, line).ok().ends_with("ended with 7\n"));
    let list = machine.spark(&["list", "--json"]).json();
    let states: Vec<_> = list.as_array().unwrap().iter().map(|row| row["state"].clone()).collect();
    assert_eq!(states, ["running", "running"]);
    let doctor = host(&machine, "env --ignore-signal=CHLD $spark doctor").stdout();
    assert!(!doctor.contains("cannot be idmapped"), "{doctor}");
    std::fs::create_dir(machine.work().join("repo")).unwrap();
    let clone = "git -C repo init -q && env --ignore-signal=CHLD $spark create cloned --clone repo";
    host(&machine, clone).ok();
}

#[test]
fn who_tells_a_command_to_go_on_is_obeyed() {
    let machine = machine();
    bare(&machine, "web", &[]);
    // As nohup(1) does.
    let line =
        "env --ignore-signal=HUP $spark exec web -- sh -c 'echo ready; sleep 0.2; echo done' > out & p=$!
        until grep -q ready out; do sleep 0.01; done; kill -HUP $p; wait $p; echo $?; cat out";
    assert_eq!(host(&machine, line).ok(), "0\nready\ndone\n");
}

#[test]
fn a_narrow_umask_of_the_caller_narrows_nothing_of_ours_and_an_older_one_is_mended() {
    let machine = machine();
    let run = machine.place().run;
    let narrow = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o700)).unwrap();
    for (umask, name) in [("077", "one"), ("027", "two"), ("777", "three")] {
        let line = format!(
            "umask {umask}; set -e; $spark create {name}; $spark exec {name} -- sh -c umask; $spark stop -t 0 {name}
            $spark exec -u 1000 {name} -- cat /etc/hosts >/dev/null; $spark fork {name} f-{name}; $spark exec - true"
        );
        let told = host(&machine, &line).ok();
        assert!(told.contains("0022\n"), "inside it is as ever: {told}");
        // What an older version made under it.
        narrow(&run);
        narrow(&run.join("bundles"));
        machine.spark(&["stop", "-t", "0", name]).ok();
        machine.spark(&["exec", name, "true"]).ok();
        assert_eq!(std::fs::metadata(&run).unwrap().permissions().mode() & 0o7777, 0o711);
    }
}

#[test]
fn what_is_written_for_the_caller_has_the_callers_umask() {
    let machine = machine();
    let line = "umask 027; $spark man pages; stat -c %a pages pages/spark.1
        spark-oci() { ${spark}-oci \"$@\"; }; spark-oci spec; stat -c %a config.json";
    assert_eq!(host(&machine, line).ok(), "750\n640\n640\n");
}

#[test]
fn a_spark_does_not_depend_on_the_callers_oom_score_or_execution_domain() {
    let machine = machine();
    let line = "echo 500 > /proc/self/oom_score_adj; set -e
        $spark create web; $spark exec web -- cat /proc/self/oom_score_adj /proc/1/oom_score_adj
        setarch -R linux32 $spark exec web -- sh -c 'uname -m; cat /proc/self/personality'";
    let host_is = std::process::Command::new("uname").arg("-m").output().unwrap();
    let expected = format!("web\n0\n0\n{}00000000\n", String::from_utf8_lossy(&host_is.stdout));
    assert_eq!(host(&machine, line).ok(), expected);
}

#[test]
fn descriptors_of_the_caller_are_closed_unless_they_are_named() {
    let machine = machine();
    bare(&machine, "web", &[]);
    // Files that a shell has open, and a pipe of which somebody waits for the end.
    let line = "exec 107</etc/passwd 200</etc/passwd
        $spark exec web -- sh -c 'echo up; exec sleep 1000' 108</etc/passwd > out & p=$!
        until grep -q up out; do sleep 0.01; done
        for n in 107 108 200; do test -e /proc/$p/fd/$n && echo $n is open; done; kill $p; wait $p; echo $?";
    assert_eq!(host(&machine, line).ok(), "143\n");
    // The shell gives these names.
    let named =
        "$spark exec --env-file <(echo A=named) web -- sh -c 'echo $A; ls /proc/self/fd' 9</etc/passwd";
    assert_eq!(host(&machine, named).ok(), "named\n0\n1\n2\n3\n");
    // 0, 1 and 2 are something, also where they were closed.
    let closed = "$spark exec web -- sh -c 'readlink /proc/self/fd/0; readlink /proc/self/fd/2' <&- 2>&-";
    assert_eq!(host(&machine, closed).ok(), "/dev/null\n/dev/null\n");
    let none = "$spark exec web -- sh -c 'x=$(readlink /proc/$$/fd/1); echo $x >/out' <&- >&- 2>&-; echo $?";
    assert_eq!(host(&machine, none).ok(), "0\n");
    assert_eq!(machine.spark(&["exec", "web", "cat", "/out"]).ok(), "/dev/null\n");
}

/// Nice value, processors and the soft limit of open files.
const SCHEDULE: &str = "cut -d' ' -f19 /proc/self/stat; grep Cpus_allowed_list /proc/self/status; ulimit -n";

#[test]
fn a_command_keeps_the_callers_schedule_and_limits_and_what_a_start_makes_does_not() {
    let machine = machine();
    let caller = "ulimit -Sn 100; nice -n 7 taskset -c 0 $spark";
    let run = json!({ "Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "1000"] });
    layout(&machine.work().join("l"), "v", &[busybox().layer()], run);
    host(&machine, &format!("{caller} create served --image oci:l:v --run")).ok();
    bare(&machine, "web", &[]);
    let kept = host(&machine, &format!("{caller} exec web -- sh -c \"{SCHEDULE}\"")).ok();
    assert_eq!(kept, "7\nCpus_allowed_list:\t0\n100\n");
    let class = host(&machine, "chrt -i 0 $spark exec web -- cut -d' ' -f41 /proc/self/stat").ok();
    assert_eq!(class, "5\n", "SCHED_IDLE");
    let service = || {
        let info = machine.spark(&["info", "served", "--json"]).json();
        let pids = crate::common::processes(info["id"].as_str().unwrap());
        pids.into_iter().find(|pid| status(*pid, "Name") == "sleep")
    };
    for round in ["made", "resumed"] {
        assert!(wait_for(|| service().is_some()));
        for pid in [init(&machine, "served"), service().unwrap()] {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let nice = stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().to_owned();
            assert_eq!(nice, "0", "{round}: {stat}");
            assert_eq!(status(pid, "Cpus_allowed_list"), status(1, "Cpus_allowed_list"), "{round}");
            let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
            assert_ne!(files.split_whitespace().nth(3), Some("100"), "{round}: {files}");
        }
        host(&machine, &format!("$spark stop -t 0 served; {caller} resume served")).ok();
    }
}

#[test]
fn narrow_limits_of_the_caller_are_an_error_and_no_panic() {
    let machine = machine();
    bare(&machine, "web", &[]);
    for (limit, says) in [
        ("-n 6", "6 files open at once, and needs 64"),
        ("-n 20", "20 files open at once, and needs 64"),
        ("-s 256", "stack of 256 KiB"),
    ] {
        for (verb, expected) in [("exec web true", 125), ("create two", 1), ("list", 1)] {
            let output = host(&machine, &format!("ulimit {limit}; $spark {verb}"));
            assert_eq!(output.status(), expected, "{limit} {verb}: {}", output.stderr());
            assert!(output.stderr().contains(says), "{}", output.stderr());
            assert!(output.stderr().contains("raise the limit"), "{}", output.stderr());
        }
    }
    for verb in ["create two", "fork web three", "cp /etc/passwd web:/passwd", "snapshot create web"] {
        let output = host(&machine, &format!("ulimit -f 0; $spark {verb}"));
        assert_eq!(output.status(), 1, "{verb}: {}", output.stderr());
        assert!(output.stderr().contains("File too large"), "{verb}: {}", output.stderr());
    }
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "web\n");
    assert_eq!(machine.spark(&["gc", "--dry-run", "--json"]).json(), serde_json::json!([]));
}

/// A directory that is deleted while a shell is in it, and one of a filesystem that was taken away.
const GONE: [&str; 2] = [
    "mkdir gone; cd gone; rmdir ../gone;",
    "mkdir -p dead; mount -t tmpfs dead dead; mkdir dead/in; cd dead/in; umount -l ../../dead;",
];

#[test]
fn in_a_directory_that_is_gone_a_command_works_if_it_knows_its_project_or_needs_none() {
    let machine = machine();
    bare(&machine, "web", &[]);
    machine.spark(&["create", "bugs/web", "--base", "minimal"]).ok();
    for gone in GONE {
        let run = |line: &str| {
            let unshared = format!("unshare -m bash -c '{gone} {line}'");
            host(&machine, &unshared)
        };
        for line in [
            "$spark exec bugs/web true",
            "$spark -P bugs exec web true",
            "SPARK_PROJECT=bugs $spark stop -t 0 web",
            "$spark base list",
            "$spark list -a",
            "$spark pool info",
            "$spark gc",
            "$spark cp /etc/passwd bugs/web:/passwd",
            "$spark info bugs/web",
        ] {
            let output = run(line);
            output.ok();
            assert_eq!(output.stderr(), "", "{gone} {line}");
        }
        for line in ["$spark list -q", "$spark info web", "$spark logs web"] {
            let output = run(line);
            output.ok();
            assert!(output.stderr().contains("this is project `default`"), "{line}: {}", output.stderr());
        }
        assert_eq!(run("$spark list -q").stdout(), "web\n");
        for line in ["$spark exec web true", "$spark create new", "$spark delete -f web", "$spark stop web"] {
            let output = run(line);
            assert_ne!(output.status(), 0, "{line}");
            assert!(output.stderr().contains("`-P PROJECT`"), "{line}: {}", output.stderr());
        }
    }
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "web\n");
}
