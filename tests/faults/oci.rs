//! A container of `spark-oci` whose making fails or dies anywhere: nothing is left of it, or what `delete --force` removes.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use crate::bundle::{Host, cgroups};
use crate::common::{is_running, wait_for};
use crate::ends::{children, comm, kill, output_ends};
use crate::points::points;

/// What the fault points of `spark-oci` begin with.
pub(crate) const POINTS: &str = "oci.";

#[test]
fn a_container_whose_making_fails_anywhere_is_not_there_or_can_be_deleted() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |_| {});
    let points: Vec<String> = points().into_iter().filter(|p| p.starts_with(POINTS)).collect();
    assert!(!points.is_empty());
    for point in points {
        for mode in ["fail", "die", "die-all"] {
            let fault = format!("{point}={mode}");
            // Not a pipe: what is left of it would keep that open.
            let said = host.dir().join("said");
            let mut create = host.command(&["create", "failing"]);
            create.stdout(Stdio::null()).stderr(File::create(&said).unwrap());
            let status = create.env("SPARK_FAULT", &fault).process_group(0).status().unwrap();
            assert!(!status.success(), "create passed {fault}");
            if mode == "fail" {
                let said = std::fs::read_to_string(&said).unwrap();
                assert!(said.contains("fault point"), "{said}");
                assert_eq!(host.oci(&["list", "-q"]).ok(), "");
                assert!(cgroups("failing").is_empty());
            }
            // The name is taken, or it is not: never does a half-made one run.
            assert_ne!(host.oci(&["start", "failing"]).status(), 0, "{fault}");
            host.oci(&["delete", "--force", "failing"]).ok();
            assert_eq!(host.oci(&["list", "-q"]).ok(), "", "{fault}");
            assert!(cgroups("failing").is_empty(), "{fault}");

            host.start("failing");
            assert_eq!(host.state("failing")["status"], "running");
            host.oci(&["delete", "--force", "failing"]).ok();
        }
    }
    assert_eq!(host.oci(&["list", "-q"]).ok(), "");
}

/// A command that makes a container, with pipes for its output, which the container has too.
fn begin(host: &Host, verb: &str, fault: &str) -> Child {
    let mut command = host.command(&[verb, "killed"]);
    command.env("SPARK_FAULT", fault).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What libcontainer has forked in a process, and in those of its children that are libcontainer's.
fn forked(pid: i32) -> Vec<i32> {
    let own: Vec<i32> = children(pid).into_iter().filter(|pid| comm(*pid).starts_with("youki")).collect();
    own.iter().flat_map(|pid| [vec![*pid], forked(*pid)].concat()).collect()
}

#[track_caller]
fn nothing_is_left(host: &Host, maker: Child, seen: &[i32]) {
    output_ends(maker);
    assert!(wait_for(|| !seen.iter().any(|pid| is_running(*pid))), "{seen:?}");
    let pids = || {
        cgroups("killed").into_iter().map(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).unwrap())
    };
    assert!(pids().all(|pids| pids.is_empty()), "{:?}", pids().collect::<Vec<_>>());
    host.oci(&["delete", "--force", "killed"]).ok();
    assert_eq!(host.oci(&["list", "-q"]).ok(), "");
    assert!(cgroups("killed").is_empty(), "{:?}", cgroups("killed"));
}

/// From its first moment on: before libcontainer forks, while its processes work, and when they wait.
#[test]
fn a_maker_that_is_killed_at_any_moment_leaves_no_process_and_no_pipe_open() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |_| {});
    let mut met = [0; 2];
    for round in 0..60_u64 {
        let verb = if round % 2 == 0 { "create" } else { "run" };
        let mut maker = begin(&host, verb, "none=none");
        let pid = maker.id() as i32;
        let is_made = || host.root().join("killed/spark.json").exists();
        let mut seen = forked(pid);
        while seen.is_empty() && !is_made() {
            seen = forked(pid);
        }
        // Another moment each time: of busy processors, not of the clock.
        for _ in 0..round * 4 {
            seen.extend(forked(pid));
        }
        seen.extend(forked(pid));
        maker.kill().unwrap();
        let recorded = is_made();
        met[usize::from(recorded)] += 1;
        if recorded {
            // It was made in time. A container outlives its maker, with the streams that it got from that.
            host.oci(&["delete", "--force", "killed"]).ok();
        }
        nothing_is_left(&host, maker, &seen);
    }
    assert!(met[0] > 10, "killed while it made one, and after that: {met:?}");
}

#[test]
fn a_container_that_waits_for_its_start_ends_with_its_maker_until_it_is_made() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |_| {});
    for verb in ["create", "run"] {
        let maker = begin(&host, verb, "oci.create.made=stop");
        let pid = maker.id() as i32;
        let stopped = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
        assert!(wait_for(stopped));
        let seen = forked(pid);
        assert!(seen.iter().any(|pid| is_running(*pid)), "{seen:?}");
        kill(pid);
        nothing_is_left(&host, maker, &seen);
    }
}
