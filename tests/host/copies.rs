//! Snapshots and forks of sparks with data volumes: what is copied and what is shared, and at which instant.

use std::path::{Path, PathBuf};

use sparks::pool::btrfs;

use crate::common::{Machine, wait_for};
use crate::inside::{bare, machine, sh};

/// Writes lines to the root and to the volume, by turns.
const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n >> /count; echo $n >> /data/count; done";

fn lines(path: &Path) -> i64 {
    std::fs::read_to_string(path).unwrap_or_default().lines().count() as i64
}

fn volume(machine: &Machine, name: &str) -> PathBuf {
    machine.pool().join("projects/default/data").join(name).join("fs")
}

fn directory(machine: &Machine, spark: &str) -> PathBuf {
    machine.pool().join("projects/default/sparks").join(spark)
}

fn state(machine: &Machine, spark: &str) -> serde_json::Value {
    machine.spark(&["--json", "info", spark]).json()["state"].clone()
}

/// Makes the spark `web` with a volume `v` and something in both.
fn marked(machine: &Machine, mark: &str) {
    sh(machine, "web", "0", &format!("echo {mark} > /mark; echo {mark} > /data/mark")).ok();
}

#[track_caller]
fn has(machine: &Machine, spark: &str, mark: &str) {
    let seen = sh(machine, spark, "0", "cat /mark /data/mark").ok();
    assert_eq!(seen, format!("{mark}\n{mark}\n"), "{spark}");
}

#[test]
fn a_snapshot_has_root_and_volume_of_the_same_instant() {
    let machine = machine();
    bare(&machine, "web", &["-v", "v:/data"]);
    machine.spark(&["exec", "-d", "web", "--", "sh", "-c", COUNT]).ok();
    let live = volume(&machine, "v").join("count");
    assert!(wait_for(|| lines(&live) > 100));
    for n in 0..20 {
        let name = format!("s{n}");
        machine.spark(&["snapshot", "create", "web", &name]).ok();
        let dir = directory(&machine, "web").join("snapshots").join(&name);
        let (root, data) = (lines(&dir.join("root/count")), lines(&dir.join("data/v/count")));
        assert!((0..=1).contains(&(root - data)), "{name}: {root} and {data}");
        assert!(wait_for(|| lines(&live) > data), "{name}: it does not go on");
    }
    // That this could fail: without a stop in between, the two differ.
    let apart = (0..20).any(|n| {
        let (root, data) = (machine.pool().join(format!("r{n}")), machine.pool().join(format!("d{n}")));
        btrfs::snapshot_read_only(&directory(&machine, "web").join("root"), &root).unwrap();
        btrfs::snapshot_read_only(&volume(&machine, "v"), &data).unwrap();
        let apart = lines(&data.join("count")) - lines(&root.join("count"));
        btrfs::delete(&root).unwrap();
        btrfs::delete(&data).unwrap();
        apart > 1
    });
    assert!(apart, "two snapshots one after the other were never apart");
    assert_eq!(state(&machine, "web"), "running");
}

#[test]
fn a_snapshot_of_a_paused_spark_leaves_it_paused() {
    let machine = machine();
    bare(&machine, "web", &["-v", "v:/data"]);
    machine.spark(&["pause", "web"]).ok();
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    machine.spark(&["fork", "web", "new", "--no-start"]).ok();
    assert_eq!(state(&machine, "web"), "paused");
}

#[test]
fn a_restore_brings_root_and_volume_back_and_an_undo_too() {
    let machine = machine();
    bare(&machine, "web", &["-v", "v:/data"]);
    marked(&machine, "one");
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    marked(&machine, "two");
    let restored = machine.spark(&["--json", "snapshot", "restore", "web", "s"]).json();
    assert_eq!((&restored["volumes"], &restored["state"]), (&serde_json::json!(["v"]), &"running".into()));
    has(&machine, "web", "one");
    machine.spark(&["undo", "web"]).ok();
    has(&machine, "web", "two");
    machine.spark(&["undo", "web"]).ok();
    has(&machine, "web", "one");
    // The root alone.
    machine.spark(&["undo", "web"]).ok();
    machine.spark(&["snapshot", "restore", "web", "s", "--data", "none"]).ok();
    assert_eq!(sh(&machine, "web", "0", "cat /mark /data/mark").ok(), "one\ntwo\n");
    // As many times as one likes, and nothing is left where nobody finds it.
    for _ in 0..3 {
        machine.spark(&["snapshot", "restore", "web", "s"]).ok();
    }
    has(&machine, "web", "one");
    assert!(!directory(&machine, "web").join("restore.json").exists());
    assert_eq!(machine.spark(&["--json", "gc"]).json(), serde_json::json!([]));
    machine.spark(&["delete", "-f", "--now", "web"]).ok();
    machine.spark(&["data", "delete", "v"]).ok();
}

#[test]
fn a_volume_that_others_have_now_is_not_restored_under_them() {
    let machine = machine();
    bare(&machine, "web", &["-v", "v:/data"]);
    marked(&machine, "one");
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    marked(&machine, "two");
    bare(&machine, "other", &["-v", "v:/srv"]);
    let error = machine.spark(&["--json", "snapshot", "restore", "web", "s"]).fails_with("wrong_state");
    assert!(error.contains("`v`") && error.contains("`other`"), "{error}");
    has(&machine, "web", "two");
    machine.spark(&["snapshot", "restore", "web", "s", "--data", "none"]).ok();
    assert_eq!(sh(&machine, "web", "0", "cat /mark /data/mark").ok(), "one\ntwo\n");
    // Nor is one that the spark has no longer, or that is gone.
    machine.spark(&["delete", "-f", "--now", "other"]).ok();
    machine.spark(&["data", "detach", "v", "web"]).ok();
    machine.spark(&["--json", "snapshot", "restore", "web", "s"]).fails_with("wrong_state");
    machine.spark(&["data", "delete", "v"]).ok();
    machine.spark(&["--json", "snapshot", "restore", "web", "s"]).fails_with("wrong_state");
}

#[test]
fn what_others_have_is_noted_in_a_snapshot_and_what_nobody_else_has_is_copied() {
    let machine = machine();
    bare(&machine, "web", &["-v", "own:/data", "-v", "ours:/ours:ro"]);
    bare(&machine, "other", &["-v", "ours:/ours"]);
    let taken = |name: &str, options: &[&str]| {
        machine.spark(&[&["snapshot", "create", "web", name], options].concat()).ok();
        let dir = directory(&machine, "web").join("snapshots").join(name);
        ["own", "ours"].map(|v| btrfs::info(&dir.join("data").join(v)).is_ok_and(|i| i.read_only))
    };
    assert_eq!(taken("a", &[]), [true, false]);
    assert_eq!(taken("b", &["--data", "copy"]), [true, true]);
    assert_eq!(taken("c", &["--data", "share"]), [false, false]);
    assert_eq!(taken("d", &["--data", "none"]), [false, false]);
    machine.spark(&["snapshot", "delete", "web", "a", "b", "c", "d"]).ok();
    assert!(machine.spark(&["--json", "gc"]).json().as_array().unwrap().is_empty());
}

#[test]
fn a_fork_shares_what_others_have_too_and_gets_copies_of_the_rest() {
    let machine = machine();
    bare(&machine, "web", &["-v", "own:/data", "-v", "ours:/ours:ro"]);
    bare(&machine, "other", &["-v", "ours:/ours"]);
    marked(&machine, "one");
    let forked = machine.spark(&["fork", "web", "new"]);
    assert!(forked.stderr().contains("copied data volume `own` to `own-new`"), "{}", forked.stderr());
    assert_eq!(forked.ok(), "new\n");
    has(&machine, "new", "one");
    sh(&machine, "new", "0", "echo new > /data/mark").ok();
    sh(&machine, "other", "0", "echo ours > /ours/x").ok();
    assert_eq!(sh(&machine, "new", "0", "cat /ours/x").ok(), "ours\n");
    assert!(sh(&machine, "new", "0", "echo > /ours/x").stderr().contains("Read-only"));
    has(&machine, "web", "one");
    let info = machine.spark(&["--json", "data", "info", "own-new"]).json();
    assert_eq!((&info["origin"], &info["attached"][0]["spark"]), (&"own".into(), &"new".into()));
    // As it was told otherwise.
    machine.spark(&["fork", "web", "same", "--data", "share"]).ok();
    sh(&machine, "same", "0", "echo same > /data/mark").ok();
    assert_eq!(sh(&machine, "web", "0", "cat /data/mark").ok(), "same\n");
    machine.spark(&["create", "bare", "--from", "web", "--data", "none", "-v", "ours:/data"]).ok();
    assert_eq!(sh(&machine, "bare", "0", "cat /data/x; ls -d /ours/x /ours/*").stdout(), "ours\n");
    // Many from one moment, each with a copy of its own. The name is free however often it is taken.
    machine.spark(&["data", "create", "own-many-2"]).ok();
    machine.spark(&["fork", "web", "many", "-n", "2", "--data", "copy"]).ok();
    let names = machine.spark(&["data", "list", "-q"]).ok();
    for name in ["own-many-1", "ours-many-1", "own-many-2", "own-many-2-2", "ours-many-2"] {
        assert!(names.lines().any(|n| n == name), "{name}: {names}");
    }
    assert_eq!(sh(&machine, "many-2", "0", "cat /data/mark").ok(), "same\n");
}

#[test]
fn a_fork_of_a_snapshot_has_the_volume_as_it_was_then() {
    let machine = machine();
    bare(&machine, "web", &["-v", "v:/data"]);
    marked(&machine, "one");
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    machine.spark(&["snapshot", "create", "web", "without", "--data", "share"]).ok();
    marked(&machine, "two");
    machine.spark(&["fork", "web@s", "old"]).ok();
    has(&machine, "old", "one");
    machine.spark(&["fork", "web@s", "mixed", "--data", "share"]).ok();
    assert_eq!(sh(&machine, "mixed", "0", "cat /mark /data/mark").ok(), "one\ntwo\n");
    machine.spark(&["--json", "fork", "web@without", "x", "--data", "copy"]).fails_with("usage");
    // Another project has nothing to share it with.
    machine.spark(&["fork", "web", "shop/far"]).ok();
    assert_eq!(machine.spark(&["exec", "shop/far", "--", "cat", "/data/mark"]).ok(), "two\n");
    assert_eq!(machine.spark(&["data", "list", "-q", "-P", "shop"]).ok(), "v-far\n");
    machine.spark(&["--json", "fork", "web", "shop/x", "--data", "share"]).fails_with("usage");
    machine.spark(&["--json", "create", "y", "--data", "copy"]).fails_with("usage");
    assert!(machine.staged().is_empty());
}

#[test]
fn a_spark_for_one_command_keeps_its_copies_to_itself() {
    let machine = machine();
    bare(&machine, "web", &["-v", "v:/data"]);
    marked(&machine, "one");
    let script = "cat /data/mark; echo two > /data/mark; cat /data/mark";
    let run = ["exec", "-", "--from", "web", "--", "sh", "-c", script];
    assert_eq!(machine.spark(&run).ok(), "one\ntwo\n");
    has(&machine, "web", "one");
    assert_eq!(machine.spark(&["data", "list", "-q"]).ok(), "v\n");
    assert_eq!(machine.spark(&["--json", "gc"]).json(), serde_json::json!([]));
}
