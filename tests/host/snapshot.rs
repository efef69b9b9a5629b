//! Snapshots, and going back to them.

use std::path::PathBuf;

use sparks::domain::name::SparkRef;
use sparks::ops::snapshot::Request;

use crate::common::{Machine, wait_for};

fn machine() -> Machine {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    machine
}

fn set(machine: &Machine, value: &str) {
    machine.spark(&["exec", "web", "--", "sh", "-c", &format!("echo {value} > /f")]).ok();
}

fn get(machine: &Machine, spark: &str) -> String {
    machine.spark(&["exec", spark, "--", "cat", "/f"]).ok().trim().to_owned()
}

fn state(machine: &Machine) -> String {
    machine.spark(&["--json", "info", "web"]).json()["state"].as_str().unwrap().to_owned()
}

fn names(machine: &Machine) -> Vec<String> {
    machine.spark(&["snapshot", "list", "-q", "web"]).ok().lines().map(str::to_owned).collect()
}

fn snapshot_dir(machine: &Machine, name: &str) -> PathBuf {
    machine.pool().join("projects/default/sparks/web/snapshots").join(name)
}

#[test]
fn a_snapshot_holds_the_files_of_its_moment_whatever_the_spark_is_doing() {
    let machine = machine();
    for (state, before) in [("running", "resume"), ("paused", "pause"), ("stopped", "stop")] {
        machine.spark(&["resume", "web"]).ok();
        set(&machine, state);
        machine.spark(&[before, "web"]).ok();
        assert_eq!(machine.spark(&["snapshot", "create", "web", state]).ok(), format!("{state}\n"));
        assert_eq!(self::state(&machine), state);
    }
    machine.spark(&["resume", "web"]).ok();
    set(&machine, "later");
    for state in ["running", "paused", "stopped"] {
        machine.spark(&["snapshot", "restore", "web", state]).ok();
        assert_eq!(get(&machine, "web"), state);
    }
}

#[test]
fn taking_a_snapshot_disturbs_nobody() {
    let machine = machine();
    let pid = || machine.spark(&["--json", "info", "web"]).json()["pid"].clone();
    let before = pid();
    machine.spark(&["exec", "-d", "web", "--", "sh", "-c", "while :; do echo x >> /log; done"]).ok();
    let log = machine.pool().join("projects/default/sparks/web/root/log");
    let length = || log.metadata().map_or(0, |m| m.len());
    assert!(wait_for(|| length() > 0));
    for _ in 0..5 {
        machine.spark(&["snapshot", "create", "web"]).ok();
        let then = length();
        assert!(wait_for(|| length() > then), "the writer has ended");
    }
    assert_eq!(pid(), before);
    // A long exec holds no lock that a snapshot, or a restore, would wait for.
    machine.spark(&["snapshot", "restore", "web", &names(&machine)[0]]).ok();
    assert_ne!(pid(), before);
}

#[test]
fn snapshots_are_listed_with_what_is_known_of_them() {
    let machine = machine();
    machine.spark(&["snapshot", "create", "web", "first", "--label", "before the upgrade"]).ok();
    let timed = machine.spark(&["snapshot", "create", "web"]).ok();
    machine.spark(&["snapshot", "restore", "web", "first"]).ok();
    let list = machine.spark(&["--json", "snapshot", "list", "web"]).json();
    let kinds: Vec<_> = list.as_array().unwrap().iter().map(|s| s["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["named", "timed", "undo"]);
    assert_eq!((&list[0]["name"], &list[0]["label"]), (&"first".into(), &"before the upgrade".into()));
    assert_eq!(list[1]["name"], timed.trim());
    assert!(list[0]["created"].as_str().unwrap() <= list[1]["created"].as_str().unwrap());
    let undo = list[2]["name"].as_str().unwrap();
    assert!(undo.starts_with("undo-"), "{undo}");
    for row in list.as_array().unwrap() {
        let made = std::fs::write(format!("{}/x", row["path"].as_str().unwrap()), "x");
        assert_eq!(made.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    machine.spark(&["--json", "snapshot", "create", "web", "first"]).fails_with("exists");
    machine.spark(&["--json", "snapshot", "create", "web", "a", "--label", "\x1b[31m"]).fails_with("usage");
}

#[test]
fn the_list_tells_what_each_snapshot_holds_alone() {
    let machine = machine();
    let own = || -> Vec<u64> {
        let list = machine.spark(&["--json", "snapshot", "list", "web"]).json();
        list.as_array().unwrap().iter().map(|s| s["own_bytes"].as_u64().unwrap()).collect()
    };
    let write = |name: &str, kib: u32| {
        let line = format!("head -c {} /dev/urandom > /{name}; sync", kib << 10);
        machine.spark(&["exec", "web", "--", "sh", "-c", &line]).ok();
    };
    write("a", 1024);
    machine.spark(&["snapshot", "create", "web", "one"]).ok();
    assert_eq!(own(), [0], "the spark has it too");
    write("a", 512);
    assert_eq!(own(), [1 << 20]);
    machine.spark(&["snapshot", "create", "web", "two"]).ok();
    write("b", 256);
    machine.spark(&["snapshot", "create", "web", "three"]).ok();
    write("b", 64);
    write("a", 64);
    // What `two` has of `a`, `three` has as well.
    assert_eq!(own(), [1 << 20, 0, 256 << 10]);
    machine.spark(&["snapshot", "delete", "web", "two"]).ok();
    // btrfs takes its time to forget what was deleted: half a minute, unless it commits more often.
    let mut often = std::process::Command::new("mount");
    assert!(often.args(["-o", "remount,commit=1"]).arg(machine.pool()).status().unwrap().success());
    let forget = || {
        let done =
            std::process::Command::new("btrfs").args(["subvolume", "sync"]).arg(machine.pool()).output();
        assert!(done.unwrap().status.success());
    };
    forget();
    assert_eq!(own(), [1 << 20, (512 + 256) << 10]);
    machine.spark(&["snapshot", "delete", "web", "one"]).ok();
    forget();
    assert_eq!(own(), [(512 + 256) << 10], "alone it is compared with the base");
}

#[test]
fn keep_thins_out_those_of_one_label_that_are_called_by_their_time() {
    let machine = machine();
    let take = |args: &[&str]| machine.spark(&[&["snapshot", "create", "web"], args].concat()).ok();
    let (named, other) = (take(&["mine", "--label", "nightly"]), take(&["--label", "weekly"]));
    let taken: Vec<String> = (0..4).map(|_| take(&["--label", "nightly", "--keep", "2"])).collect();
    let left: Vec<String> = names(&machine).iter().map(|n| format!("{n}\n")).collect();
    assert_eq!(left, [named, other, taken[2].clone(), taken[3].clone()]);
    machine.spark(&["--json", "snapshot", "create", "web", "x", "--keep", "1"]).fails_with("usage");
    machine.spark(&["--json", "snapshot", "create", "web", "--keep", "0"]).fails_with("usage");
}

#[test]
fn a_restore_is_undone_and_done_again() {
    let machine = machine();
    set(&machine, "old");
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    set(&machine, "new");
    machine.spark(&["--json", "undo", "web"]).fails_with("wrong_state");
    let restored = machine.spark(&["--json", "snapshot", "restore", "web", "s"]).json();
    assert_eq!(restored["state"], "running");
    assert_eq!(get(&machine, "web"), "old");
    assert!(names(&machine).contains(&restored["undo"].as_str().unwrap().to_owned()));
    for expected in ["new", "old", "new"] {
        machine.spark(&["undo", "web"]).ok();
        assert_eq!(get(&machine, "web"), expected);
        assert_eq!(names(&machine).len(), 2, "an undo leaves one state to go back to");
    }
    // The snapshot is as it was, and the root can be written to.
    set(&machine, "newest");
    machine.spark(&["snapshot", "restore", "web", "s"]).ok();
    assert_eq!(get(&machine, "web"), "old");
}

#[test]
fn a_restore_leaves_a_spark_running_or_stopped_as_it_was() {
    let machine = machine();
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    machine.spark(&["snapshot", "restore", "web", "s", "--no-resume"]).ok();
    assert_eq!(state(&machine), "stopped");
    machine.spark(&["snapshot", "restore", "web", "s"]).ok();
    assert_eq!(state(&machine), "stopped");
    machine.spark(&["resume", "web"]).ok();
    machine.spark(&["pause", "web"]).ok();
    machine.spark(&["undo", "web"]).ok();
    assert_eq!(state(&machine), "stopped", "what was frozen belongs to files that are gone");
}

#[test]
fn no_more_than_ten_states_before_a_restore_are_kept() {
    let machine = machine();
    machine.spark(&["stop", "web"]).ok();
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    for _ in 0..12 {
        machine.spark(&["snapshot", "restore", "web", "s"]).ok();
    }
    assert_eq!(names(&machine).len(), 11);
    assert_eq!(names(&machine)[0], "s");
}

#[test]
fn what_is_no_snapshot_of_this_spark_is_not_restored() {
    let machine = machine();
    machine.spark(&["create", "db", "--no-start"]).ok();
    machine.spark(&["snapshot", "create", "db", "before"]).ok();
    machine.spark(&["snapshot", "create", "web", "after"]).ok();
    let said = machine.spark(&["--json", "snapshot", "restore", "web", "before"]).fails_with("not_found");
    assert!(said.contains("web@before"), "{said}");
    machine.spark(&["--json", "snapshot", "delete", "web", "before"]).fails_with("not_found");
    machine.spark(&["--json", "snapshot", "restore", "web", "../after"]).fails_with("invalid_name");
    machine.spark(&["--json", "snapshot", "list", "nobody"]).fails_with("not_found");
    let near = machine.spark(&["snapshot", "restore", "web", "aftr"]);
    assert!(near.stderr().contains("did you mean `after`?"), "{}", near.stderr());
}

#[test]
fn a_snapshot_that_is_damaged_by_hand_is_listed_refused_and_deleted() {
    let machine = machine();
    for name in ["gone", "torn", "dir", "whole"] {
        machine.spark(&["snapshot", "create", "web", name]).ok();
    }
    sparks::pool::btrfs::delete(&snapshot_dir(&machine, "gone").join("root")).unwrap();
    std::fs::write(snapshot_dir(&machine, "torn").join("snapshot.json"), "{").unwrap();
    sparks::pool::btrfs::delete(&snapshot_dir(&machine, "dir").join("root")).unwrap();
    std::fs::create_dir(snapshot_dir(&machine, "dir").join("root")).unwrap();
    let list = machine.spark(&["--json", "snapshot", "list", "web"]).json();
    let broken = list.as_array().unwrap().iter().filter(|s| !s["broken"].is_null()).count();
    assert_eq!((list.as_array().unwrap().len(), broken), (4, 3));
    for name in ["gone", "torn", "dir"] {
        machine.spark(&["--json", "snapshot", "restore", "web", name]).fails_with("corrupt");
        machine.spark(&["--json", "fork", &format!("web@{name}"), "x"]).fails_with("corrupt");
        machine.spark(&["snapshot", "delete", "web", name]).ok();
    }
    assert_eq!(state(&machine), "running");
    machine.spark(&["snapshot", "restore", "web", "whole"]).ok();
    assert_eq!(names(&machine)[0], "whole");
}

#[test]
fn a_spark_that_has_lost_its_root_gets_it_back_from_a_snapshot() {
    let machine = machine();
    set(&machine, "kept");
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    machine.spark(&["stop", "web"]).ok();
    sparks::pool::btrfs::delete(&machine.pool().join("projects/default/sparks/web/root")).unwrap();
    assert_eq!(state(&machine), "broken");
    machine.spark(&["--json", "undo", "web"]).fails_with("corrupt");
    let said = machine.spark(&["resume", "web"]).stderr();
    assert!(said.contains("spark snapshot list web"), "{said}");
    machine.spark(&["snapshot", "restore", "web", "s"]).ok();
    assert_eq!(get(&machine, "web"), "kept");
}

#[test]
fn snapshots_go_to_the_trash_and_come_back_with_their_spark() {
    let machine = machine();
    set(&machine, "old");
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    set(&machine, "new");
    machine.spark(&["delete", "-f", "web"]).ok();
    machine.spark(&["undelete", "web", "--as", "again"]).ok();
    machine.spark(&["snapshot", "restore", "again", "s"]).ok();
    assert_eq!(get(&machine, "again"), "old");
    machine.spark(&["delete", "-f", "--now", "again"]).ok();
    machine.spark(&["gc"]).ok();
    assert!(machine.staged().is_empty());
}

#[test]
fn subvolumes_inside_a_root_are_in_nobodys_way() {
    let machine = machine();
    set(&machine, "old");
    let root = machine.pool().join("projects/default/sparks/web/root");
    let nest = |top: &str| {
        let mut path = root.join(top);
        for name in ["", "b", "c"] {
            path = if name.is_empty() { path } else { path.join(name) };
            sparks::pool::btrfs::create(&path).unwrap();
            std::fs::write(path.join("deep"), "x").unwrap();
        }
    };
    nest("a");
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    machine.spark(&["fork", "web", "app"]).ok();
    // btrfs does not go into them: that their content is not in a snapshot is said in docs/consistency.md.
    let inside = machine.spark(&["exec", "app", "--", "sh", "-c", "ls -A /a | wc -l"]).ok();
    assert_eq!(inside.trim(), "0");
    set(&machine, "new");
    machine.spark(&["snapshot", "restore", "web", "s"]).ok();
    assert_eq!(get(&machine, "web"), "old");
    // What was restored has a placeholder where a subvolume was, which can be removed as any directory.
    machine.spark(&["exec", "web", "--", "rmdir", "/a"]).ok();
    nest("d");
    machine.spark(&["undo", "web"]).ok();
    assert_eq!(machine.spark(&["exec", "web", "--", "cat", "/a/b/c/deep"]).ok(), "x");
    machine.spark(&["base", "save", "web", "tpl"]).ok();
    machine.spark(&["snapshot", "delete", "web", "s"]).ok();
    machine.spark(&["delete", "-f", "web"]).ok();
    machine.spark(&["undelete", "web"]).ok();
    machine.spark(&["delete", "-f", "--now", "web", "app"]).ok();
    assert!(machine.staged().is_empty(), "{:?}", machine.staged());
}

#[test]
fn five_hundred_snapshots_are_no_burden() {
    let machine = machine();
    machine.spark(&["stop", "web"]).ok();
    let (sparks, web) = (machine.sparks(), "web".parse::<SparkRef>().unwrap());
    for n in 0..500 {
        let name = Some(format!("s{n}").parse().unwrap());
        sparks.snapshot_create(&web, &Request { name, ..Request::default() }).unwrap();
    }
    assert_eq!(names(&machine).len(), 500);
    machine.spark(&["snapshot", "restore", "web", "s250"]).ok();
    machine.spark(&["fork", "web@s499", "app"]).ok();
    machine.spark(&["snapshot", "delete", "web", "s0", "s250", "s499"]).ok();
    assert_eq!(names(&machine).len(), 498);
    machine.spark(&["delete", "web", "--now"]).ok();
    assert!(machine.staged().is_empty());
}
