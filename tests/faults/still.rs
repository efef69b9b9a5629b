//! A snapshot holds its spark still for a moment. Whoever is killed over that leaves nothing frozen for long.

use std::path::PathBuf;

use crate::common::{Machine, cgroups, containers, wait_for};

/// A spark that counts in a file, and a snapshot of it that died when it had been held still.
fn held(machine: &Machine) -> PathBuf {
    machine.spark(&["create", "web"]).ok();
    let counting = "n=0; while :; do n=$((n + 1)); echo $n > /count; done";
    machine.spark(&["exec", "-d", "web", "--", "sh", "-c", counting]).ok();
    let count = machine.pool().join("projects/default/sparks/web/root/count");
    assert!(goes_on(&count));
    let mut snapshot = machine.command(&["snapshot", "create", "web", "s"]);
    snapshot.env("SPARK_FAULT", "snapshot.still=die");
    assert!(!snapshot.output().unwrap().status.success());
    assert!(wait_for(|| is_frozen(machine)));
    count
}

fn is_frozen(machine: &Machine) -> bool {
    let groups = containers(&machine.place().run).into_iter().flat_map(|id| cgroups(&id));
    let holds = |path: PathBuf, word| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == word);
    groups
        .into_iter()
        .any(|dir| holds(dir.join("freezer.state"), "FROZEN") || holds(dir.join("cgroup.freeze"), "1"))
}

fn goes_on(count: &PathBuf) -> bool {
    let before = std::fs::read(count).unwrap_or_default();
    wait_for(|| std::fs::read(count).is_ok_and(|now| now != before))
}

#[test]
fn what_a_killed_snapshot_held_still_goes_on_at_the_next_command() {
    let machine = Machine::new().with_base();
    let count = held(&machine);
    assert_eq!(machine.spark(&["--json", "info", "web"]).json()["state"], "running");
    machine.spark(&["exec", "web", "--", "true"]).ok();
    assert!(goes_on(&count));
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    assert!(goes_on(&count));
}

#[test]
fn gc_lets_go_what_a_killed_snapshot_held_still_and_a_dry_run_only_says_so() {
    let machine = Machine::new().with_base();
    let count = held(&machine);
    for args in [&["--json", "gc", "--dry-run"][..], &["--json", "gc"]] {
        let found = machine.spark(args).json();
        assert!(found.as_array().unwrap().iter().any(|item| item["what"] == "frozen spark"), "{found}");
        assert_eq!(is_frozen(&machine), args.contains(&"--dry-run"));
    }
    assert!(goes_on(&count));
    assert_eq!(machine.spark(&["--json", "gc"]).json(), serde_json::json!([]));
}

#[test]
fn a_paused_spark_stays_paused_when_it_is_copied() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    machine.spark(&["pause", "web"]).ok();
    machine.spark(&["snapshot", "create", "web"]).ok();
    machine.spark(&["fork", "web", "app"]).ok();
    machine.spark(&["fork", "-n", "2", "--no-start", "web", "app"]).ok();
    assert_eq!(machine.spark(&["--json", "info", "web"]).json()["state"], "paused");
}

#[test]
fn many_snapshots_at_once_let_a_spark_go_on() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    let names: Vec<String> = (0..8).map(|n| format!("s{n}")).collect();
    let snapshots =
        names.iter().map(|name| machine.command(&["snapshot", "create", "-q", "web", name]).spawn());
    let snapshots: Vec<_> = snapshots.collect();
    for snapshot in snapshots {
        assert!(snapshot.unwrap().wait().unwrap().success());
    }
    assert_eq!(machine.spark(&["--json", "info", "web"]).json()["state"], "running");
    machine.spark(&["exec", "web", "--", "true"]).ok();
}
