//! The same for sparks that are sent and received.

use std::fs::File;

use crate::common::{Machine, Output};
use crate::points::{Scenario, exists};

/// What root and data volume hold, which is of one state.
fn content(m: &Machine, spark: &str) -> String {
    // Whoever opens it next finishes what was killed.
    m.spark(&["stop", spark]).ok();
    let project = m.pool().join("projects/default");
    let root = project.join("sparks").join(spark).join("root");
    let text = std::fs::read_to_string(root.join("marker")).unwrap();
    let volumes = m.spark(&["--json", "info", spark]).json()["options"]["volumes"].clone();
    let name = volumes[0]["volume"].as_str().unwrap();
    let own = project.join("sparks").join(spark).join("data").join(name);
    let home = if own.exists() { own } else { project.join("data").join(name) };
    assert_eq!(std::fs::read_to_string(home.join("fs/marker")).unwrap(), text, "{spark}");
    text
}

fn set(m: &Machine, text: &str) {
    let project = m.pool().join("projects/default");
    for top in ["sparks/web/root", "data/v/fs"] {
        std::fs::write(project.join(top).join("marker"), text).unwrap();
    }
}

/// Frees the sparks of a scenario, and whatever volumes there are: no more than theirs.
fn clear(m: &Machine, sparks: &[&str]) {
    m.spark(&[&["delete", "--now"], sparks].concat()).ok();
    let left = m.spark(&["data", "list", "-q"]).ok();
    let names: Vec<&str> = left.lines().collect();
    for name in &names {
        m.spark(&["data", "delete", name]).ok();
    }
    assert!(names.len() <= sparks.len(), "{left}");
}

/// Sends `web` to the standard input of the command that is made to fail. Returns the snapshot.
fn send(m: &Machine, more: &[&str]) -> String {
    let stream = m.work().join("stdin");
    let args = [&["--json", "send", "web"], more].concat();
    let out = Output::of("send", m.command(&args).stdout(File::create(stream).unwrap()));
    out.ok();
    let said: serde_json::Value = serde_json::from_str(&out.stderr()).unwrap();
    said["snapshot"].as_str().unwrap().to_owned()
}

fn receive(m: &Machine, spark: &str) {
    let stream = File::open(m.work().join("stdin")).unwrap();
    Output::of("receive", m.command(&["receive", spark]).stdin(stream)).ok();
}

fn sent(m: &Machine) -> String {
    m.spark(&["create", "web", "--no-start", "-v", "v:/data"]).ok();
    set(m, "old");
    send(m, &[])
}

fn snapshots(m: &Machine, spark: &str) -> Vec<String> {
    m.spark(&["snapshot", "list", "-q", spark]).ok().lines().map(str::to_owned).collect()
}

pub(crate) const ALL: &[&Scenario] = &[&SEND, &RECEIVE, &INCREMENT];

const SEND: Scenario = Scenario {
    points: &["send.", "copies."],
    args: &["send", "web"],
    before: |m| {
        m.spark(&["create", "web", "--no-start", "-v", "v:/data"]).ok();
        set(m, "old");
    },
    after: |m| {
        // What a killed one has left is a snapshot as any other.
        for name in snapshots(m, "web") {
            m.spark(&["snapshot", "restore", "web", &name]).ok();
        }
        send(m, &[]);
        receive(m, "app");
        assert_eq!(content(m, "app"), "old");
        clear(m, &["web", "app"]);
    },
};

const RECEIVE: Scenario = Scenario {
    points: &[
        "receive.staged",
        "receive.verified",
        "receive.complete",
        "fork-data.",
        "create.after-publish",
        "create.started",
    ],
    args: &["receive", "app"],
    before: |m| {
        sent(m);
    },
    after: |m| {
        if exists(m, "app") {
            assert_eq!(content(m, "app"), "old");
            m.spark(&["delete", "--now", "app"]).ok();
            // A volume outlives its spark; one that was not published yet went with it.
            let _ = m.spark(&["data", "delete", "v-app"]);
        }
        assert_eq!(m.spark(&["data", "list", "-q"]).ok(), "v\n");
        receive(m, "app");
        assert_eq!((content(m, "app").as_str(), snapshots(m, "app").len()), ("old", 1));
        clear(m, &["web", "app"]);
    },
};

const INCREMENT: Scenario = Scenario {
    points: &["receive.staged", "receive.verified", "receive.increment", "receive.published", "restore"],
    args: &["receive", "app"],
    before: |m| {
        let first = sent(m);
        receive(m, "app");
        set(m, "new");
        send(m, &["--since", &first]);
    },
    after: |m| {
        let last = snapshots(m, "web").pop().unwrap();
        if !snapshots(m, "app").contains(&last) {
            receive(m, "app");
        } else if content(m, "app") == "old" {
            m.spark(&["snapshot", "restore", "app", &last]).ok();
        }
        assert_eq!(content(m, "app"), "new");
        clear(m, &["web", "app"]);
    },
};

#[test]
fn a_send_that_fails_anywhere_leaves_a_spark_that_can_be_sent() {
    SEND.run();
}

#[test]
fn a_receive_that_fails_anywhere_makes_a_whole_spark_or_none() {
    RECEIVE.run();
}

#[test]
fn an_increment_that_fails_anywhere_can_be_received_again() {
    INCREMENT.run();
}
