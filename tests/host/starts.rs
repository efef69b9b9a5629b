//! Starts that end by themselves, at once, or side by side.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Machine, PATIENCE, wait_for};
use crate::exec::Background;
use crate::inside::{bare, init, machine, sh};

fn info(machine: &Machine, name: &str) -> Value {
    machine.spark(&["info", name, "--json"]).json()
}

fn state(machine: &Machine, name: &str) -> String {
    info(machine, name)["state"].as_str().unwrap().to_owned()
}

fn read(machine: &Machine, name: &str, file: &str) -> String {
    machine.spark(&["exec", "-T", name, "cat", file]).ok().trim().to_owned()
}

fn names(machine: &Machine) -> String {
    machine.spark(&["list", "-q"]).ok().replace('\n', " ").trim().to_owned()
}

/// Kills PID 1 from the host and waits for its end.
fn kill(machine: &Machine, name: &str) {
    let pidfd = sparks::sys::process::pidfd_open(init(machine, name)).unwrap();
    sparks::sys::process::signal(&pidfd, Signal::KILL).unwrap();
    assert!(sparks::sys::deadline::ended(&pidfd, PATIENCE).unwrap());
}

#[test]
fn a_spark_whose_first_process_ends_is_stopped_and_starts_again() {
    let machine = machine();
    bare(&machine, "web", &[]);
    sh(&machine, "web", "0", "echo kept >/file").ok();
    let mut command =
        Background::ready(&machine, &["exec", "web", "sh", "-c", "echo ready; exec sleep 1000"]);
    kill(&machine, "web");
    assert_eq!(command.status(), 128 + 9, "nothing outlives PID 1");
    assert_eq!(state(&machine, "web"), "stopped");
    let found = machine.spark(&["gc", "--dry-run", "--json"]).json();
    assert!(found.as_array().unwrap().iter().any(|i| i["owner"] == "default/web"), "{found}");
    machine.spark(&["gc"]).ok();
    assert_eq!(machine.spark(&["gc", "--dry-run", "--json"]).json(), serde_json::json!([]));
    assert_eq!(read(&machine, "web", "/file"), "kept");
    // Also without anybody who cleans up between.
    kill(&machine, "web");
    assert_eq!(read(&machine, "web", "/file"), "kept");
    kill(&machine, "web");
    machine.spark(&["stop", "web"]).ok();
    assert_eq!(machine.spark(&["gc", "--dry-run", "--json"]).json(), serde_json::json!([]));

    // From inside, as `poweroff` would.
    let output = sh(&machine, "web", "0", "kill -TERM 1; sleep 60");
    assert!(output.status() > 128, "{}: {}", output.status(), output.stderr());
    assert!(wait_for(|| state(&machine, "web") == "stopped"));
    assert_eq!(sh(&machine, "web", "1000", "kill -TERM 1").status(), 1, "only by its root");
    assert_eq!(read(&machine, "web", "/file"), "kept");
}

#[test]
fn an_ephemeral_spark_is_listed_while_it_lives_and_gone_after() {
    let machine = machine();
    let mut command =
        Background::ready(&machine, &["exec", "-", "sh", "-c", "echo ready; sleep 1000 & wait"]);
    let rows = machine.spark(&["list", "--json"]).json();
    assert_eq!((&rows[0]["ephemeral"], &rows[0]["state"]), (&true.into(), &"running".into()), "{rows}");
    // Others may look in.
    let name = rows[0]["name"].as_str().unwrap();
    assert_eq!(machine.spark(&["exec", name, "hostname"]).ok().trim(), name);
    command.signal(Signal::TERM);
    assert_eq!(command.status(), 128 + 15);
    for (args, expected) in [
        (&["exec", "-", "sh", "-c", "exit 3"][..], 3),
        (&["exec", "-", "/no/such/program"], 127),
        (&["exec", "-", "/etc/passwd"], 126),
        (&["exec", "-", "-w", "/nowhere", "true"], 125),
        (&["exec", "-", "--timeout", "100ms", "sleep", "1000"], 124),
        (&["exec", "-", "true"], 0),
    ] {
        let output = machine.spark(args);
        assert_eq!(output.status(), expected, "{args:?}: {}", output.stderr());
        assert_eq!(names(&machine), "", "{args:?}");
    }
    assert_eq!(machine.spark(&["list", "--deleted", "--json"]).json(), serde_json::json!([]));
    assert_eq!(machine.spark(&["gc", "--dry-run", "--json"]).json(), serde_json::json!([]));
    let output = machine.spark(&["create", "-", "--json"]);
    assert_eq!(output.status(), 2);
    output.fails_with("usage");
}

#[test]
fn of_two_that_create_one_name_at_once_one_does_and_different_names_do_not_meet() {
    let machine = machine();
    let create = |name: String| {
        let machine = &machine;
        move || (machine.spark(&["create", &name, "--json"]), name)
    };
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(create("web".into())));
        let (lost, won): (Vec<_>, Vec<_>) =
            both.into_iter().map(|t| t.join().unwrap().0).partition(|o| o.status() != 0);
        assert_eq!((won.len(), lost.len()), (1, 1), "{won:?} {lost:?}");
        lost[0].fails_with("exists");
    });
    assert_eq!(sh(&machine, "web", "0", "hostname").ok(), "web\n");
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|n| scope.spawn(create(format!("many-{n}")))).collect();
        for thread in all {
            let (output, name) = thread.join().unwrap();
            assert_eq!(output.json()["name"], name);
            assert_eq!(machine.spark(&["exec", &name, "hostname"]).ok().trim(), name);
        }
    });
    assert_eq!(names(&machine).split(' ').count(), 9);
    assert_eq!(machine.staged(), [""; 0].map(std::path::PathBuf::from));
    assert_eq!(machine.spark(&["gc", "--dry-run", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn a_create_without_any_base_makes_one_and_says_so() {
    let machine = Machine::new();
    // A host without mmdebstrap, which would make a whole Debian: the test is about who makes the first base.
    let programs = tempfile::tempdir().unwrap();
    let create = |name: &str| {
        let mut command = machine.command(&["create", "--network", "none", name]);
        command.env("PATH", programs.path());
        crate::common::Output::of("create", &mut command)
    };
    let first = create("one");
    assert!(first.stderr().contains("there is no base yet: making `minimal`"), "{}", first.stderr());
    assert_eq!(first.ok(), "one\n");
    let second = create("two");
    assert_eq!(second.stderr(), "");
    second.ok();
    let bases = machine.spark(&["base", "list", "--json"]).json();
    assert_eq!((bases.as_array().unwrap().len(), &bases[0]["name"]), (1, &"minimal".into()));
}

#[test]
fn what_changes_a_spark_is_served_while_commands_are_started_in_it_without_end() {
    /// Loops that start commands, and how many of these each may start while one change waits: what a change does before it
    /// asks for the lock, and after it has let go of it, takes its time too where all processors are busy.
    const LOOPS: usize = 30;
    const EACH: usize = 20;
    let machine = machine();
    bare(&machine, "web", &[]);
    machine.spark(&["snapshot", "create", "web", "before"]).ok();
    let (started, most) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let begin = || {
        while started.load(Ordering::Relaxed) < most.load(Ordering::Relaxed) {
            let output = machine.spark(&["exec", "-T", "web", "true"]);
            // Ended by the stop that it met, or too late for the spark.
            assert!([0, 137, 125].contains(&output.status()), "{}: {}", output.status(), output.stderr());
            started.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..LOOPS {
            scope.spawn(begin);
        }
        assert!(wait_for(|| started.load(Ordering::Relaxed) > LOOPS));
        let lines: [&[&str]; 4] = [
            &["set", "web", "--label", "a=b"],
            &["stop", "-t", "0", "web"],
            &["snapshot", "restore", "web", "before"],
            &["delete", "-f", "--now", "web"],
        ];
        let met: Vec<usize> = lines
            .iter()
            .map(|line| {
                let before = started.load(Ordering::Relaxed);
                // If the change is not served, the loops end, and then it is.
                most.store(before + LOOPS * EACH, Ordering::Relaxed);
                machine.spark(line).ok();
                started.load(Ordering::Relaxed) - before
            })
            .collect();
        most.store(0, Ordering::Relaxed);
        assert!(met.iter().all(|met| *met < LOOPS * EACH), "{met:?}");
    });
}
