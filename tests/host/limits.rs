//! Limits of processors and of time.

use std::time::Instant;

use crate::common::{Machine, PATIENCE, cgroups, wait_for};

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
        "trap '' TERM; sleep 1000 & wait; sleep 1000",
    ]);
    assert_eq!(out.status(), 124);
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!(sh(&machine, "web", "echo well"), "well\n");
}
