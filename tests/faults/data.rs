//! Fault points of data volumes.

use crate::common::Machine;
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

pub(crate) const ALL: [&Scenario; 4] = [&CREATE, &DELETE, &ATTACH, &DETACH];

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
