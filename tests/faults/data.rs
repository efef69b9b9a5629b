//! Fault points of data volumes.

use crate::common::{Machine, wait_for};
use crate::points::Scenario;

const CREATE: Scenario = Scenario {
    points: &["data-create."],
    args: &["data", "create", "v"],
    before: |_| {},
    after: |m| {
        if exists(m) {
            // It was not acknowledged, but it is all there.
            m.spark(&["--json", "data", "create", "v"]).fails_with("exists");
            m.spark(&["data", "delete", "v"]).ok();
        }
        m.spark(&["data", "create", "v"]).ok();
        m.spark(&["exec", "-", "-v", "v:/data", "--", "sh", "-c", "echo x > /data/x"]).ok();
        m.spark(&["data", "delete", "v"]).ok();
    },
};

const DELETE: Scenario = Scenario {
    points: &["data-delete."],
    args: &["data", "delete", "v"],
    before: filled,
    after: |m| {
        if exists(m) {
            still_filled(m);
            m.spark(&["data", "delete", "v"]).ok();
        }
        m.spark(&["--json", "data", "delete", "v"]).fails_with("not_found");
    },
};

const ATTACH: Scenario = Scenario {
    points: &["data-attach."],
    args: &["data", "attach", "v", "web", "/data"],
    before: |m| {
        filled(m);
        m.spark(&["create", "web"]).ok();
    },
    after: |m| {
        // Recorded, it is there after a start at the latest; else it can be attached.
        if attached(m) {
            m.spark(&["stop", "web"]).ok();
        } else {
            assert_ne!(m.spark(&["exec", "web", "--", "cat", "/data/x"]).status(), 0);
            m.spark(&["data", "attach", "v", "web", "/data"]).ok();
        }
        assert_eq!(m.spark(&["exec", "web", "--", "cat", "/data/x"]).ok(), "kept\n");
        without_spark(m);
    },
};

const DETACH: Scenario = Scenario {
    points: &["data-detach."],
    args: &["data", "detach", "v", "web"],
    before: |m| {
        filled(m);
        m.spark(&["create", "web", "-v", "v:/data"]).ok();
    },
    after: |m| {
        if attached(m) {
            m.spark(&["stop", "web"]).ok();
            assert_eq!(m.spark(&["exec", "web", "--", "cat", "/data/x"]).ok(), "kept\n");
            m.spark(&["data", "detach", "v", "web"]).ok();
        }
        assert_ne!(m.spark(&["exec", "web", "--", "cat", "/data/x"]).status(), 0);
        without_spark(m);
    },
};

const SNAPSHOT: Scenario = Scenario {
    points: &["copies.", "snapshot."],
    args: &["snapshot", "create", "web", "one"],
    before: with_volume,
    after: |m| {
        // Nobody has to thaw it.
        assert!(wait_for(|| m.spark(&["--json", "info", "web"]).json()["state"] == "running"));
        let list = m.spark(&["--json", "snapshot", "list", "web"]).json();
        if !list.as_array().unwrap().is_empty() {
            m.spark(&["snapshot", "delete", "web", "one"]).ok();
        }
        m.spark(&["snapshot", "create", "web", "one"]).ok();
        m.spark(&["exec", "web", "--", "sh", "-c", "echo later > /marker; echo later > /data/x"]).ok();
        m.spark(&["snapshot", "restore", "web", "one"]).ok();
        assert_eq!(both(m, "web"), "kept\nkept\n");
        without_spark(m);
    },
};

const FORK: Scenario = Scenario {
    points: &["copies.", "fork-data."],
    args: &["fork", "web", "new"],
    before: with_volume,
    after: |m| {
        assert!(wait_for(|| m.spark(&["--json", "info", "web"]).json()["state"] == "running"));
        if m.spark(&["info", "new"]).status() == 0 {
            // It was not acknowledged, but it is all there.
            assert_eq!(both(m, "new"), "kept\nkept\n");
            m.spark(&["delete", "-f", "--now", "new"]).ok();
            m.spark(&["data", "delete", "v-new"]).ok();
        }
        assert_eq!(m.spark(&["data", "list", "-q"]).ok(), "v\n");
        m.spark(&["fork", "web", "new"]).ok();
        assert_eq!(both(m, "new"), "kept\nkept\n");
        m.spark(&["delete", "-f", "--now", "new"]).ok();
        m.spark(&["data", "delete", "v-new"]).ok();
        without_spark(m);
    },
};

const RESTORE: Scenario = Scenario {
    points: &["restore.", "restore-data."],
    args: &["snapshot", "restore", "web", "one"],
    before: |m| {
        with_volume(m);
        m.spark(&["snapshot", "create", "web", "one"]).ok();
        m.spark(&["exec", "web", "--", "sh", "-c", "echo later > /marker; echo later > /data/x"]).ok();
    },
    after: |m| {
        // Whoever uses it next finds both restored or neither, and can go back and forth.
        let found = both(m, "web");
        assert!(found == "kept\nkept\n" || found == "later\nlater\n", "{found}");
        let undo = m.spark(&["--json", "undo", "web"]);
        if undo.status() == 0 {
            assert_eq!(both(m, "web"), "later\nlater\n");
        } else {
            undo.fails_with("wrong_state");
            assert_eq!(found, "later\nlater\n");
        }
        m.spark(&["snapshot", "restore", "web", "one"]).ok();
        assert_eq!(both(m, "web"), "kept\nkept\n");
        without_spark(m);
    },
};

const OWN_SNAPSHOT: Scenario = Scenario {
    points: &["data-snapshot."],
    args: &["data", "snapshot", "v", "one"],
    before: filled,
    after: |m| {
        if !m.spark(&["--json", "data", "snapshots", "v"]).json().as_array().unwrap().is_empty() {
            m.spark(&["data", "delete", "v@one"]).ok();
        }
        m.spark(&["data", "snapshot", "v", "one"]).ok();
        m.spark(&["data", "restore", "v", "one"]).ok();
        still_filled(m);
        m.spark(&["data", "delete", "v"]).ok();
    },
};

const OWN_RESTORE: Scenario = Scenario {
    points: &["data-restore."],
    args: &["data", "restore", "v", "one"],
    before: |m| {
        filled(m);
        m.spark(&["data", "snapshot", "v", "one"]).ok();
        std::fs::write(m.pool().join("projects/default/data/v/fs/x"), "later\n").unwrap();
    },
    after: |m| {
        let path = m.pool().join("projects/default/data/v/fs/x");
        let found = std::fs::read_to_string(&path).unwrap();
        let snapshots = m.spark(&["--json", "data", "snapshots", "v"]).json();
        // Whole, with a way back, or not at all.
        match snapshots.as_array().unwrap().as_slice() {
            [_] => assert_eq!(found, "later\n"),
            [_, undo] => {
                assert_eq!(found, "kept\n");
                m.spark(&["data", "restore", "v", undo["name"].as_str().unwrap()]).ok();
                assert_eq!(std::fs::read_to_string(&path).unwrap(), "later\n");
            }
            other => panic!("{other:?}"),
        }
        m.spark(&["data", "restore", "v", "one"]).ok();
        still_filled(m);
        m.spark(&["data", "delete", "v"]).ok();
    },
};

pub(crate) const ALL: &[&Scenario] =
    &[&CREATE, &DELETE, &ATTACH, &DETACH, &SNAPSHOT, &FORK, &RESTORE, &OWN_SNAPSHOT, &OWN_RESTORE];

fn with_volume(machine: &Machine) {
    filled(machine);
    machine.spark(&["create", "web", "-v", "v:/data"]).ok();
    machine.spark(&["exec", "web", "--", "sh", "-c", "echo kept > /marker"]).ok();
}

fn both(machine: &Machine, spark: &str) -> String {
    machine.spark(&["exec", spark, "--", "cat", "/marker", "/data/x"]).ok()
}

fn exists(machine: &Machine) -> bool {
    let list = machine.spark(&["--json", "data", "list"]).json();
    list.as_array().unwrap().iter().any(|v| v["name"] == "v")
}

fn attached(machine: &Machine) -> bool {
    !machine.spark(&["--json", "info", "web"]).json()["options"]["volumes"].is_null()
}

fn filled(machine: &Machine) {
    machine.spark(&["data", "create", "v"]).ok();
    std::fs::write(machine.pool().join("projects/default/data/v/fs/x"), "kept\n").unwrap();
}

#[track_caller]
fn still_filled(machine: &Machine) {
    let path = machine.pool().join("projects/default/data/v/fs/x");
    assert_eq!(std::fs::read_to_string(path).unwrap(), "kept\n");
}

fn without_spark(machine: &Machine) {
    machine.spark(&["delete", "-f", "--now", "web"]).ok();
    still_filled(machine);
    machine.spark(&["data", "delete", "v"]).ok();
}

#[test]
fn a_volume_that_fails_to_be_made_is_whole_or_not_there() {
    CREATE.run();
}

#[test]
fn a_volume_delete_that_fails_anywhere_leaves_all_or_nothing() {
    DELETE.run();
}

#[test]
fn an_attach_that_fails_anywhere_is_recorded_or_not_there() {
    ATTACH.run();
}

#[test]
fn a_detach_that_fails_anywhere_can_be_repeated() {
    DETACH.run();
}

#[test]
fn a_snapshot_with_volumes_that_fails_anywhere_leaves_a_spark_that_goes_on() {
    SNAPSHOT.run();
}

#[test]
fn a_fork_with_copies_that_fails_anywhere_makes_all_of_it_or_nothing() {
    FORK.run();
}

#[test]
fn a_restore_of_volumes_that_fails_anywhere_restores_all_or_nothing() {
    RESTORE.run();
}

#[test]
fn a_snapshot_of_a_volume_that_fails_anywhere_is_whole_or_not_there() {
    OWN_SNAPSHOT.run();
}

#[test]
fn a_restore_of_a_volume_that_fails_anywhere_can_be_taken_back() {
    OWN_RESTORE.run();
}

/// What reads or writes the files of a spark finds all of them restored, or none.
#[test]
fn whatever_uses_the_files_of_a_spark_finishes_a_killed_restore_first() {
    let machine = Machine::new().with_base();
    let restore = |machine: &Machine| {
        (RESTORE.before)(machine);
        let mut command = machine.command(RESTORE.args);
        let output = command.env("SPARK_FAULT", "restore-data.after-root=die").output().unwrap();
        assert!(!output.status.success());
        let dir = machine.pool().join("projects/default/sparks/web");
        assert!(dir.join("restore.json").exists());
        dir
    };
    std::fs::write(machine.work().join("new"), "new\n").unwrap();
    for args in [
        &["cp", "web:/data/x", "out"][..],
        &["cp", "web@UNDO:/data/x", "out"],
        &["cp", "new", "web:/data/new"],
        &["du"],
        &["diff", "web"],
        &["fork", "web", "new", "--no-start"],
        &["base", "save", "web", "saved"],
        &["send", "web@UNDO"],
        &["snapshot", "delete", "web", "UNDO"],
        &["exec", "web", "--", "true"],
    ] {
        eprintln!("{args:?}");
        let dir = restore(&machine);
        let snapshots = std::fs::read_dir(dir.join("snapshots")).unwrap().flatten();
        let names = snapshots.map(|entry| entry.file_name().into_string().unwrap());
        let undo = names.into_iter().find(|name| name.starts_with("undo-")).unwrap();
        let args: Vec<String> = args.iter().map(|arg| arg.replace("UNDO", &undo)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        machine.spark(&args).ok();
        assert!(!dir.join("restore.json").exists(), "{args:?}");
        if args.contains(&"out") {
            let expected = if args[1].contains('@') { "later\n" } else { "kept\n" };
            assert_eq!(std::fs::read_to_string(machine.work().join("out")).unwrap(), expected);
        }
        assert_eq!(both(&machine, "web"), "kept\nkept\n", "{args:?}");
        if args.contains(&"web:/data/new") {
            assert_eq!(machine.spark(&["exec", "web", "--", "cat", "/data/new"]).ok(), "new\n");
        }
        for spark in ["web", "new"] {
            machine.spark(&["delete", "-f", "--now", spark]);
        }
        for volume in ["v", "v-new"] {
            machine.spark(&["data", "delete", volume]);
        }
        machine.spark(&["base", "delete", "saved"]);
    }
}
