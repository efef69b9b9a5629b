//! The same for sparks that are sent and received.

use std::fs::File;

use crate::common::{Machine, Output};
use crate::points::{Scenario, exists};

fn content(m: &Machine, spark: &str) -> String {
    let root = m.pool().join("projects/default/sparks").join(spark).join("root");
    std::fs::read_to_string(root.join("marker")).unwrap()
}

fn set(m: &Machine, text: &str) {
    let root = m.pool().join("projects/default/sparks/web/root");
    std::fs::write(root.join("marker"), text).unwrap();
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
    m.spark(&["create", "web", "--no-start"]).ok();
    set(m, "old");
    send(m, &[])
}

fn snapshots(m: &Machine, spark: &str) -> Vec<String> {
    m.spark(&["snapshot", "list", "-q", spark]).ok().lines().map(str::to_owned).collect()
}

pub(crate) const SEND: Scenario = Scenario {
    points: &["send."],
    args: &["send", "web"],
    before: |m| {
        m.spark(&["create", "web", "--no-start"]).ok();
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
        m.spark(&["delete", "--now", "web", "app"]).ok();
    },
};

pub(crate) const RECEIVE: Scenario = Scenario {
    points: &[
        "receive.staged",
        "receive.verified",
        "receive.complete",
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
        }
        receive(m, "app");
        assert_eq!((content(m, "app").as_str(), snapshots(m, "app").len()), ("old", 1));
        m.spark(&["delete", "--now", "web", "app"]).ok();
    },
};

pub(crate) const INCREMENT: Scenario = Scenario {
    points: &["receive.staged", "receive.verified", "receive.increment", "receive.published", "restore."],
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
        m.spark(&["delete", "--now", "web", "app"]).ok();
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
