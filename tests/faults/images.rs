//! The same for images: whole layers may stay, and half a base never.

use crate::common::Machine;
use crate::points::{self, Scenario};

pub(crate) const ALL: &[&Scenario] = &[&BASE_PULL, &CREATE_RUN, &STOP_RUN];

const BASE_PULL: Scenario = Scenario {
    points: &["base-pull."],
    args: &["base", "pull", "oci:image", "mine"],
    before: |m| {
        if !m.work().join("image").exists() {
            m.spark(&["base", "export", "minimal", "--oci-layout", "image"]).ok();
        }
    },
    after: |m| {
        if exists(m) {
            is_whole(m);
        }
        m.spark(&["base", "pull", "oci:image", "mine"]).ok();
        is_whole(m);
        m.spark(&["base", "delete", "mine"]).ok();
    },
};

/// What an image runs: the process may be there without being known as that, and a stop of it is none without the rest.
const CREATE_RUN: Scenario = Scenario {
    points: &["service."],
    args: &["create", "web", "--image", "oci:service", "--run"],
    before: service,
    after: |m| {
        if points::exists(m, "web") {
            m.spark(&["stop", "web"]).ok();
            m.spark(&["exec", "web", "--", "true"]).ok();
            m.spark(&["delete", "-f", "--now", "web"]).ok();
        }
        m.spark(&["create", "web", "--image", "oci:service", "--run"]).ok();
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const STOP_RUN: Scenario = Scenario {
    points: &["service-stop."],
    args: &["stop", "web"],
    before: |m| {
        service(m);
        m.spark(&["create", "web", "--image", "oci:service", "--run"]).ok();
    },
    after: |m| {
        m.spark(&["stop", "web"]).ok();
        assert_eq!(m.spark(&["--json", "info", "web"]).json()["state"], "stopped");
        m.spark(&["exec", "web", "--", "true"]).ok();
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

/// An image whose entrypoint is ended by SIGQUIT.
fn service(m: &Machine) {
    if m.work().join("service").exists() {
        return;
    }
    m.spark(&["base", "export", "minimal", "--oci-layout", "service"]).ok();
    let script = "trap exit QUIT TERM; while :; do sleep 0.05; done";
    let mut umoci = std::process::Command::new("umoci");
    umoci.current_dir(m.work()).args(["config", "--image", "service", "--config.stopsignal", "SIGQUIT"]);
    umoci.args(["--config.entrypoint", "/bin/sh", "--config.cmd", "-c", "--config.cmd", script]);
    assert!(umoci.status().expect("umoci is not installed").success());
}

fn exists(m: &Machine) -> bool {
    let list = m.spark(&["--json", "base", "list"]).json();
    list.as_array().unwrap().iter().any(|b| b["name"] == "mine")
}

fn is_whole(m: &Machine) {
    let base = m.spark(&["--json", "base", "info", "mine"]).json();
    assert_eq!((&base["broken"], &base["subvolume"]["read_only"]), (&serde_json::Value::Null, &true.into()));
    // As pushing it needs it.
    m.spark(&["base", "export", "mine", "--oci-layout", "again"]).ok();
    let index = |dir: &str| std::fs::read(m.work().join(dir).join("index.json")).unwrap();
    assert_eq!(index("again"), index("image"));
    std::fs::remove_dir_all(m.work().join("again")).unwrap();
    m.spark(&["create", "web", "--base", "mine"]).ok();
    m.spark(&["exec", "web", "--", "true"]).ok();
    m.spark(&["delete", "-f", "--now", "web"]).ok();
}

#[test]
fn a_pull_that_fails_anywhere_makes_a_whole_base_or_none_and_only_whole_layers() {
    BASE_PULL.run();
}

#[test]
fn a_create_that_fails_while_the_image_begins_to_run_makes_all_of_it_or_nothing() {
    CREATE_RUN.run();
}

#[test]
fn a_stop_that_fails_after_what_the_image_runs_can_be_repeated() {
    STOP_RUN.run();
}
