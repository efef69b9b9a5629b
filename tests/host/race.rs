//! One command in many forks, and the best of them in the place of their origin.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Machine, wait_for};

fn machine() -> Machine {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    inside(&machine, "web", "echo origin > /f");
    machine
}

fn inside(machine: &Machine, spark: &str, line: &str) -> String {
    machine.spark(&["exec", spark, "--", "sh", "-c", line]).ok().trim().to_owned()
}

#[test]
fn a_race_runs_its_command_in_every_fork_and_tells_how_each_ended() {
    let machine = machine();
    let line = "hostname; hostname > /f; test $(hostname) != try-2 || exit 7; test $(hostname) != try-3 || kill -9 $$";
    let out = machine.spark(&["--json", "fork", "web", "try", "-n", "3", "--", "sh", "-c", line]);
    assert_eq!(out.status(), 1);
    let rows: serde_json::Value = serde_json::from_str(&out.stdout()).unwrap();
    let of = |field: &str| rows.as_array().unwrap().iter().map(|r| r[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("name"), ["try-1", "try-2", "try-3"]);
    assert_eq!(of("status"), [0, 7, 137]);
    assert!(of("seconds").iter().all(|s| s.as_f64().unwrap() >= 0.0));
    assert_eq!(machine.spark(&["logs", "try-2"]).ok(), "try-2\n");
    assert_eq!(inside(&machine, "web", "cat /f"), "origin");
    let out = machine.spark(&["--json", "fork", "web", "no", "-n", "2", "--", "no-such-command"]);
    assert_eq!(out.status(), 1);
    let rows: serde_json::Value = serde_json::from_str(&out.stdout()).unwrap();
    assert!(rows[0]["status"].is_null() && rows[1]["error"].as_str().unwrap().contains("no-such-command"));
}

/// Each waits until the others have begun: they would wait for good if one ran after another.
#[test]
fn runners_run_at_once() {
    let machine = machine();
    let line = "mkdir -p /spark/proj/begun; touch /spark/proj/begun/$(hostname)
        while [ $(ls /spark/proj/begun | wc -l) -lt 3 ]; do :; done";
    machine.spark(&["fork", "web", "try", "-n", "3", "--", "sh", "-c", line]).ok();
}

/// As the user's Ctrl-C, and the end of the terminal.
#[test]
fn a_signal_goes_to_every_runner_and_the_race_still_tells_how_they_ended() {
    let machine = machine();
    let line =
        "trap 'echo > /told; exit 3' INT; trap 'echo > /told; exit 4' HUP; trap 'echo > /told; exit 5' USR1
        echo > /ready; while :; do sleep 0.05; done";
    for (race, signal, status) in [("a", Signal::INT, 3), ("b", Signal::HUP, 4), ("c", Signal::USR1, 5)] {
        let args = ["--json", "fork", "web", race, "-n", "2", "--", "sh", "-c", line];
        let fork = machine.command(&args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let all_have = |file: &str| {
            [1, 2].iter().all(|n| {
                machine.pool().join(format!("projects/default/sparks/{race}-{n}/root/{file}")).exists()
            })
        };
        assert!(wait_for(|| all_have("ready")));
        kill_process(Pid::from_child(&fork), signal).unwrap();
        let out = fork.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{:?}", out.status);
        let rows: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!([&rows[0]["status"], &rows[1]["status"]], [status, status], "{rows}");
        assert!(all_have("told"));
    }
}

#[test]
fn the_winner_takes_its_origins_place_and_that_can_be_undone() {
    let machine = machine();
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    let id = machine.spark(&["--json", "info", "web"]).json()["id"].clone();
    machine.spark(&["fork", "web", "try", "-n", "3", "--", "sh", "-c", "hostname > /f"]).ok();
    machine.spark(&["fork", "web", "other"]).ok();
    let picked = machine.spark(&["--json", "pick", "try-2", "--as", "web"]).json();
    assert_eq!(picked["state"], "running");
    let gone: Vec<_> = picked["deleted"].as_array().unwrap().iter().map(|s| s["name"].clone()).collect();
    assert_eq!(gone, ["try-2", "try-1", "try-3"]);
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "other\nweb\n");
    assert_eq!(machine.spark(&["--json", "info", "web"]).json()["id"], id);
    assert_eq!(inside(&machine, "web", "cat /f; hostname"), "try-2\nweb");
    machine.spark(&["undo", "web"]).ok();
    assert_eq!(inside(&machine, "web", "cat /f"), "origin");
    // The runners are in the trash, and the snapshots of the origin are its own still.
    machine.spark(&["undelete", "try-1"]).ok();
    assert_eq!(inside(&machine, "try-1", "cat /f"), "try-1");
    machine.spark(&["snapshot", "restore", "web", "s"]).ok();
}

#[test]
fn only_a_fork_of_a_spark_takes_its_place() {
    let machine = machine();
    machine.spark(&["create", "app", "--no-start"]).ok();
    let said = machine.spark(&["--json", "pick", "app", "--as", "web"]).fails_with("wrong_state");
    assert!(said.contains("not a fork of `web`"), "{said}");
    machine.spark(&["--json", "pick", "web", "--as", "web"]).fails_with("usage");
    machine.spark(&["--json", "pick", "nobody", "--as", "web"]).fails_with("not_found");
    assert_eq!(inside(&machine, "web", "cat /f"), "origin");
    // One that was forked alone takes nobody along, and a stopped origin stays stopped.
    machine.spark(&["fork", "web", "one"]).ok();
    machine.spark(&["fork", "web", "two"]).ok();
    inside(&machine, "one", "echo one > /f");
    machine.spark(&["stop", "web"]).ok();
    machine.spark(&["pick", "one", "--as", "web"]).ok();
    assert_eq!(machine.spark(&["--json", "info", "web"]).json()["state"], "stopped");
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "app\ntwo\nweb\n");
    assert_eq!(inside(&machine, "web", "cat /f"), "one");
}

#[test]
fn what_a_winner_wrote_to_its_copies_of_volumes_is_picked_too() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "other", "--no-start", "-v", "common:/common"]).ok();
    machine.spark(&["create", "web", "-v", "own:/own", "-v", "common:/common"]).ok();
    inside(&machine, "web", "echo origin | tee /f /own/f > /common/f");
    let line = "hostname | tee /f /own/f; hostname >> /common/all";
    machine.spark(&["fork", "web", "try", "-n", "2", "--", "sh", "-c", line]).ok();
    let picked = machine.spark(&["--json", "pick", "try-2", "--as", "web"]).json();
    assert_eq!(
        (&picked["volumes"], &picked["copies"]),
        (&["own"][..].into(), &["own-try-2", "own-try-1"][..].into())
    );
    let now = |machine: &Machine| inside(machine, "web", "cat /f /own/f /common/f; wc -l < /common/all");
    assert_eq!(now(&machine), "try-2\ntry-2\norigin\n2");
    machine.spark(&["undo", "web"]).ok();
    assert_eq!(now(&machine), "origin\norigin\norigin\n2");
    machine.spark(&["data", "delete", "own-try-1", "own-try-2"]).ok();
}
