//! The same for snapshots, restores, forks and what is made of them.

use crate::common::Machine;
use crate::points::{Scenario, exists, marked, still_marked};

/// A spark whose marker says `kept` in the snapshot `old`, and `new` now.
fn changed(m: &Machine) {
    marked(m);
    m.spark(&["snapshot", "create", "web", "old"]).ok();
    m.spark(&["exec", "web", "--", "sh", "-c", "echo new > /marker"]).ok();
}

fn marker(m: &Machine, spark: &str) -> String {
    m.spark(&["exec", spark, "--", "cat", "/marker"]).ok().trim().to_owned()
}

fn snapshots(m: &Machine) -> Vec<String> {
    let list = m.spark(&["snapshot", "list", "-q", "web"]).ok();
    list.lines().map(str::to_owned).collect()
}

fn remove(m: &Machine, sparks: &[&str]) {
    m.spark(&[&["delete", "-f", "--now"], sparks].concat()).ok();
}

pub(crate) const ALL: &[&Scenario] =
    &[&SNAPSHOT, &SNAPSHOT_DELETE, &RESTORE, &UNDO, &FORK, &PICK, &BASE_SAVE];

const SNAPSHOT: Scenario = Scenario {
    points: &["snapshot."],
    args: &["snapshot", "create", "web", "old"],
    before: marked,
    after: |m| {
        assert_eq!(m.spark(&["--json", "info", "web"]).json()["state"], "running");
        if snapshots(m).is_empty() {
            m.spark(&["snapshot", "create", "web", "old"]).ok();
        }
        m.spark(&["exec", "web", "--", "rm", "/marker"]).ok();
        m.spark(&["snapshot", "restore", "web", "old"]).ok();
        still_marked(m, "web");
        remove(m, &["web"]);
    },
};

const SNAPSHOT_DELETE: Scenario = Scenario {
    points: &["snapshot-delete."],
    args: &["snapshot", "delete", "web", "old"],
    before: changed,
    after: |m| {
        if !snapshots(m).is_empty() {
            m.spark(&["snapshot", "restore", "web", "old"]).ok();
            still_marked(m, "web");
            m.spark(&["snapshot", "delete", "web", "old"]).ok();
        }
        m.spark(&["--json", "snapshot", "delete", "web", "old"]).fails_with("not_found");
        remove(m, &["web"]);
    },
};

const RESTORE: Scenario = Scenario {
    points: &["restore.", "stop.ended", "start.prepared"],
    args: &["snapshot", "restore", "web", "old"],
    before: changed,
    after: |m| {
        // Both states are there, whichever of them is the spark's own now.
        if marker(m, "web") == "new" {
            assert_eq!(snapshots(m), ["old"]);
            m.spark(&["snapshot", "restore", "web", "old"]).ok();
        }
        still_marked(m, "web");
        m.spark(&["undo", "web"]).ok();
        assert_eq!(marker(m, "web"), "new");
        m.spark(&["undo", "web"]).ok();
        still_marked(m, "web");
        assert_eq!(snapshots(m).len(), 2, "{:?}", snapshots(m));
        remove(m, &["web"]);
    },
};

const UNDO: Scenario = Scenario {
    points: &["undo.", "restore.ended"],
    args: &["undo", "web"],
    before: |m| {
        changed(m);
        m.spark(&["snapshot", "restore", "web", "old"]).ok();
    },
    after: |m| {
        let now = marker(m, "web");
        assert!(["kept", "new"].contains(&now.as_str()), "{now}");
        m.spark(&["undo", "web"]).ok();
        assert_ne!(marker(m, "web"), now);
        m.spark(&["snapshot", "restore", "web", "old"]).ok();
        still_marked(m, "web");
        remove(m, &["web"]);
    },
};

const FORK: Scenario = Scenario {
    points: &["create.", "start."],
    args: &["fork", "web", "app"],
    before: marked,
    after: |m| {
        if exists(m, "app") {
            still_marked(m, "app");
            remove(m, &["app"]);
        }
        m.spark(&["fork", "web", "app"]).ok();
        still_marked(m, "app");
        still_marked(m, "web");
        remove(m, &["web", "app"]);
    },
};

const PICK: Scenario = Scenario {
    points: &["pick.", "restore."],
    args: &["pick", "app-1", "--as", "web"],
    before: |m| {
        changed(m);
        m.spark(&["fork", "web@old", "app", "-n", "2"]).ok();
    },
    after: |m| {
        // The winner is gone only when the origin is what it was.
        if exists(m, "app-1") {
            still_marked(m, "app-1");
            m.spark(&["pick", "app-1", "--as", "web"]).ok();
        } else if exists(m, "app-2") {
            remove(m, &["app-2"]);
        }
        assert!(!exists(m, "app-1") && !exists(m, "app-2"));
        still_marked(m, "web");
        m.spark(&["undo", "web"]).ok();
        remove(m, &["web"]);
    },
};

const BASE_SAVE: Scenario = Scenario {
    points: &["base-save."],
    args: &["base", "save", "web", "mine", "--replace"],
    before: |m| {
        changed(m);
        m.spark(&["base", "save", "web@old", "mine", "--replace"]).ok();
    },
    after: |m| {
        m.spark(&["create", "app", "--base", "mine"]).ok();
        assert!(["kept", "new"].contains(&marker(m, "app").as_str()));
        m.spark(&["base", "save", "web@old", "mine", "--replace"]).ok();
        m.spark(&["create", "other", "--base", "mine"]).ok();
        still_marked(m, "other");
        remove(m, &["web", "app", "other"]);
        m.spark(&["base", "delete", "mine"]).ok();
    },
};

#[test]
fn a_snapshot_that_fails_anywhere_is_whole_or_not_there() {
    SNAPSHOT.run();
}

#[test]
fn a_snapshot_delete_that_fails_anywhere_leaves_a_whole_snapshot_or_none() {
    SNAPSHOT_DELETE.run();
}

#[test]
fn a_restore_that_fails_anywhere_loses_neither_state() {
    RESTORE.run();
}

#[test]
fn an_undo_that_fails_anywhere_can_be_repeated() {
    UNDO.run();
}

#[test]
fn a_fork_that_fails_anywhere_makes_all_of_it_or_nothing() {
    FORK.run();
}

#[test]
fn a_pick_that_fails_anywhere_loses_no_winner() {
    PICK.run();
}

#[test]
fn a_base_save_that_fails_anywhere_leaves_the_old_base_or_the_new() {
    BASE_SAVE.run();
}
