//! The life of a spark by the command line: made, used, stopped, renamed, deleted, brought back.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Machine, PATIENCE, cgroups, containers, processes, wait_for};

fn state(machine: &Machine, spark: &str) -> String {
    machine.spark(&["--json", "info", spark]).json()["state"].as_str().unwrap().to_owned()
}

fn sh(machine: &Machine, spark: &str, script: &str) -> String {
    machine.spark(&["exec", spark, "--", "sh", "-c", script]).ok()
}

/// A grace in seconds, which a stop that waits for it would exceed [`PATIENCE`] with.
const ENDLESS: &str = "3600";

fn id(machine: &Machine, spark: &str) -> String {
    machine.spark(&["--json", "info", spark]).json()["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_spark_is_made_used_stopped_and_resumed_with_its_files() {
    let machine = Machine::new().with_base();
    assert_eq!(machine.spark(&["create", "web"]).ok(), "web\n");
    assert_eq!(machine.spark(&["create", "quiet", "-q"]).ok(), "");
    assert_eq!(state(&machine, "web"), "running");
    machine.spark(&["--json", "create", "web"]).fails_with("exists");
    sh(&machine, "web", "echo kept > /root/file; echo x > /tmp/t; echo x > /dev/shm/s");
    let before = machine.spark(&["--json", "info", "web"]).json();
    assert!(processes(&id(&machine, "web")).contains(&(before["pid"].as_i64().unwrap() as i32)));

    machine.spark(&["stop", "web"]).ok();
    assert_eq!(machine.spark(&["stop", "web"]).status(), 0, "a stopped one is left as it is");
    let stopped = machine.spark(&["--json", "info", "web"]).json();
    assert_eq!((&stopped["state"], &stopped["pid"]), (&"stopped".into(), &serde_json::Value::Null));
    assert!(cgroups(before["id"].as_str().unwrap()).is_empty());

    machine.spark(&["resume", "web"]).ok();
    machine.spark(&["resume", "web"]).ok();
    assert_eq!(sh(&machine, "web", "cat /root/file /tmp/t; ls /dev/shm"), "kept\nx\n");
    machine.spark(&["stop", "web"]).ok();
    assert_eq!(sh(&machine, "web", "cat /root/file"), "kept\n", "exec resumes");
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "quiet\nweb\n");
}

#[test]
fn what_does_not_exist_cannot_be_stopped_or_deleted_and_a_near_name_is_suggested() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--no-start"]).ok();
    for verb in ["stop", "resume", "pause", "delete", "info", "logs"] {
        let out = machine.spark(&[verb, "wbe"]);
        assert_eq!(out.status(), 1, "{verb}");
        assert!(out.stderr().contains("did you mean `web`?"), "{}", out.stderr());
        machine.spark(&["--json", verb, "wbe"]).fails_with("not_found");
    }
    assert_eq!(machine.spark(&["exec", "wbe", "true"]).status(), 125);
    assert_eq!(
        machine.spark(&["delete", "nobody", "web"]).status(),
        1,
        "the others are deleted all the same"
    );
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "");
}

#[test]
fn a_paused_spark_stands_still_until_it_is_thawed() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    machine
        .spark(&[
            "exec",
            "-d",
            "web",
            "--",
            "sh",
            "-c",
            "while :; do date +%s%N > /t.new; mv /t.new /t; sleep 0.01; done",
        ])
        .ok();
    let file = machine.pool().join("projects/default/sparks/web/root/t");
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    assert!(wait_for(|| !read().is_empty()));
    machine.spark(&["pause", "web"]).ok();
    machine.spark(&["pause", "web"]).ok();
    assert_eq!(state(&machine, "web"), "paused");
    let (then, watch) = (read(), Instant::now());
    while watch.elapsed() < Duration::from_millis(200) {
        assert_eq!(read(), then);
    }
    machine.spark(&["resume", "web"]).ok();
    assert_eq!(state(&machine, "web"), "running");
    assert!(wait_for(|| read() != then));
    machine.spark(&["pause", "web"]).ok();
    assert_eq!(sh(&machine, "web", "echo thawed"), "thawed\n");
    machine.spark(&["pause", "web"]).ok();
    machine.spark(&["--json", "delete", "web"]).fails_with("wrong_state");
    machine.spark(&["stop", "web"]).ok();
    machine.spark(&["--json", "pause", "web"]).fails_with("wrong_state");
}

#[test]
fn deleting_needs_force_when_running_and_the_trash_gives_back() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    sh(&machine, "web", "echo kept > /file");
    machine.spark(&["--json", "delete", "web"]).fails_with("wrong_state");
    machine.spark(&["delete", "-f", "web"]).ok();
    assert!(containers(&machine.place().run).is_empty());
    machine.spark(&["create", "web"]).ok();
    machine.spark(&["--json", "undelete", "web"]).fails_with("wrong_state");
    assert_eq!(machine.spark(&["undelete", "web", "--as", "old"]).ok(), "old\n");
    assert_eq!(sh(&machine, "old", "cat /file"), "kept\n");
    machine.spark(&["--json", "undelete", "web"]).fails_with("not_found");
    assert!(!machine.pool().join("projects/default/sparks/old/trash.json").exists());

    machine.spark(&["delete", "-f", "old"]).ok();
    let list = machine.spark(&["--json", "list", "--deleted"]).json();
    let entry = list[0]["id"].as_str().unwrap();
    assert_eq!(machine.spark(&["undelete", entry]).ok(), "old\n", "by its id");
    machine.spark(&["delete", "-f", "--now", "old"]).ok();
    assert_eq!(machine.spark(&["--json", "list", "--deleted"]).json(), serde_json::json!([]));
    assert!(machine.staged().is_empty());
}

#[test]
fn of_several_deleted_sparks_of_a_name_the_newest_comes_back() {
    let machine = Machine::new().with_base();
    for n in ["1", "2"] {
        machine.spark(&["create", "web"]).ok();
        sh(&machine, "web", &format!("echo {n} > /n"));
        machine.spark(&["delete", "-f", "web"]).ok();
    }
    machine.spark(&["undelete", "web"]).ok();
    assert_eq!(sh(&machine, "web", "cat /n"), "2\n");
    machine.spark(&["undelete", "web", "--as", "first"]).ok();
    assert_eq!(sh(&machine, "first", "cat /n"), "1\n");
}

#[test]
fn a_running_spark_is_renamed_and_goes_on() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    machine.spark(&["create", "taken", "--no-start"]).ok();
    machine.spark(&["exec", "-d", "web", "--", "sleep", "1000"]).ok();
    let (before, pid) =
        (id(&machine, "web"), machine.spark(&["--json", "info", "web"]).json()["pid"].clone());
    machine.spark(&["--json", "rename", "web", "taken"]).fails_with("exists");
    machine.spark(&["rename", "web", "app"]).ok();
    let info = machine.spark(&["--json", "info", "app"]).json();
    assert_eq!((info["id"].as_str().unwrap(), &info["pid"]), (before.as_str(), &pid));
    assert_eq!(processes(&before).len(), 3, "its first process, the command and the keeper of its log");
    sh(&machine, "app", "echo x > /after");
    assert_eq!(sh(&machine, "app", "hostname"), "web\n", "until its next start");
    machine.spark(&["exec", "-d", "app", "--", "echo", "logged"]).ok();
    assert!(wait_for(|| machine.spark(&["logs", "app"]).ok().contains("logged")));
    machine.spark(&["create", "web"]).ok();
    machine.spark(&["stop", "app"]).ok();
    assert_eq!(sh(&machine, "app", "hostname; cat /after"), "app\nx\n");
    assert_eq!(state(&machine, "web"), "running", "the new one of the old name was not stopped");
}

#[test]
fn detached_commands_write_to_the_log() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    assert_eq!(machine.spark(&["logs", "web"]).ok(), "");
    machine
        .spark(&["exec", "-d", "web", "--", "sh", "-c", "echo out; echo err >&2; echo again >>/dev/stdout"])
        .ok();
    let log = || machine.spark(&["logs", "web"]).ok();
    assert!(wait_for(|| log().contains("again")), "{}", log());
    assert_eq!(log(), "out\nerr\nagain\n");
    assert_eq!(machine.spark(&["logs", "web", "--tail", "1"]).ok(), "again\n");
}

#[test]
fn an_ephemeral_spark_ends_with_its_command_and_returns_its_status() {
    let machine = Machine::new().with_base();
    assert_eq!(machine.spark(&["exec", "-", "--", "echo", "hello"]).ok(), "hello\n");
    for (script, status) in [("exit 7", 7), ("kill -9 $$", 137), ("exit 0", 0)] {
        assert_eq!(machine.spark(&["exec", "-", "--", "sh", "-c", script]).status(), status);
    }
    assert_eq!(machine.spark(&["exec", "-", "--", "nowhere"]).status(), 127);
    assert_eq!(machine.spark(&["exec", "-", "--", "/etc/passwd"]).status(), 126);
    assert_eq!(machine.spark(&["exec", "--timeout", "100ms", "-", "--", "sleep", "100"]).status(), 124);
    assert_eq!(machine.spark(&["create", "-"]).status(), 2);
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "");
    assert_eq!(machine.spark(&["--json", "list", "--deleted"]).json(), serde_json::json!([]));
    assert!(containers(&machine.place().run).is_empty());
}

#[test]
fn an_ephemeral_spark_whose_command_was_killed_is_removed_by_the_next_command() {
    let machine = Machine::new().with_base();
    for next in [&["list"][..], &["gc"]] {
        let mut child =
            machine.command(&["exec", "-", "--", "sleep", "1000"]).stdout(Stdio::null()).spawn().unwrap();
        let sleeps = |pid: &i32| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x001000\0")
        };
        let run = machine.place().run;
        assert!(wait_for(|| containers(&run).iter().flat_map(|id| processes(id)).any(|pid| sleeps(&pid))));
        let ids = containers(&machine.place().run);
        let name = std::fs::read_dir(machine.pool().join("projects/default/sparks")).unwrap().next().unwrap();
        let name = name.unwrap().file_name().into_string().unwrap();
        // Whatever it is called by then.
        machine.spark(&["rename", &name, "other"]).ok();
        child.kill().unwrap();
        child.wait().unwrap();
        let said = machine.spark(next).ok();
        assert_eq!(next[0] == "gc", said.contains("ephemeral"), "{said}");
        assert_eq!(machine.spark(&["list", "-aq"]).ok(), "");
        assert_eq!(machine.spark(&["--json", "list", "--deleted"]).json(), serde_json::json!([]));
        assert!(ids.iter().all(|id| processes(id).is_empty() && cgroups(id).is_empty()));
    }
}

#[test]
fn a_pause_waits_for_who_waits_for_a_disk() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--io", "256K"]).ok();
    // Four seconds for each block, and nothing can stop it in one.
    let write =
        ["exec", "-d", "web", "--", "dd", "if=/dev/zero", "of=/file", "bs=1M", "count=1000", "oflag=direct"];
    machine.spark(&write).ok();
    let id = id(&machine, "web");
    let waits = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") D "))
    };
    assert!(wait_for(|| processes(&id).iter().any(waits)));
    machine.spark(&["pause", "web"]).ok();
    assert_eq!(state(&machine, "web"), "paused");
    machine.spark(&["stop", "web", "-t", "0"]).ok();
}

#[test]
fn a_stop_takes_as_long_as_the_processes_do_and_no_longer_than_it_is_told() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    let ready = machine.pool().join("projects/default/sparks/web/root/ready");
    let start = |script: &str| {
        let _ = std::fs::remove_file(&ready);
        machine.spark(&["exec", "-d", "web", "--", "sh", "-c", script]).ok();
        assert!(wait_for(|| ready.exists()));
    };
    let stop = |args: &[&str]| {
        let begun = Instant::now();
        machine.spark(args).ok();
        begun.elapsed()
    };
    start("echo > /ready; sleep 1000");
    assert!(stop(&["stop", "-t", ENDLESS, "web"]) < PATIENCE, "nothing is waited for");
    start("trap 'sleep 1; echo done > /done; exit' TERM; echo > /ready; while :; do sleep 0.05; done");
    let took = stop(&["stop", "-t", ENDLESS, "web"]);
    assert!((Duration::from_secs(1)..PATIENCE).contains(&took), "{took:?}");
    let done = machine.pool().join("projects/default/sparks/web/root/done");
    assert_eq!(std::fs::read_to_string(done).unwrap(), "done\n", "it was let to finish");
    start("trap '' TERM HUP; echo > /ready; while :; do sleep 0.05; done");
    let took = stop(&["stop", "-t", "1", "web"]);
    assert!((Duration::from_secs(1)..PATIENCE).contains(&took), "{took:?}");
    start("trap '' TERM HUP; echo > /ready; while :; do sleep 0.05; done");
    assert!(stop(&["stop", "-t", "0", "web"]) < PATIENCE);
    assert_eq!(state(&machine, "web"), "stopped");
}

#[test]
fn several_are_stopped_at_once() {
    let machine = Machine::new().with_base();
    let names = ["one", "two", "three"];
    // Each ends when all have been told to: one after another they would be killed for it.
    let script = "trap 'echo > /meet/$HOSTNAME; while [ $(ls /meet | wc -l) -lt 3 ]; do sleep 0.05; done; echo > /met; exit' TERM
        echo > /ready; while :; do sleep 0.05; done";
    let file =
        |name: &str, file: &str| machine.pool().join(format!("projects/default/sparks/{name}/root/{file}"));
    for name in names {
        machine.spark(&["create", name, "-v", "meet:/meet"]).ok();
        let hostname = format!("HOSTNAME={name}");
        machine.spark(&["exec", "-d", "-e", &hostname, name, "--", "sh", "-c", script]).ok();
        assert!(wait_for(|| file(name, "ready").exists()), "{name}");
    }
    let stopped = machine.spark(&["stop", "-t", "300", "one", "nobody", "two", "three", "one"]);
    stopped.fails_with_text("nobody");
    assert_eq!(stopped.stderr().matches("error").count(), 1, "{}", stopped.stderr());
    for name in names {
        assert!(file(name, "met").exists(), "{name} was alone: {}", stopped.stderr());
        assert_eq!(state(&machine, name), "stopped");
    }
}

#[test]
fn an_interactive_shell_that_ignores_sigterm_does_not_hold_a_stop_up() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    let mut shell = machine.command(&["exec", "-t", "web", "--", "sh", "-i"]);
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let id = id(&machine, "web");
    assert!(wait_for(|| processes(&id).len() == 2));
    let begun = Instant::now();
    machine.spark(&["stop", "-t", ENDLESS, "web"]).ok();
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert!(wait_for(|| processes(&id).is_empty()));
    shell.wait().unwrap();
}

#[test]
fn a_stop_finds_a_container_that_a_crash_left_between_create_and_start() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    let id = id(&machine, "web");
    // As if PID 1 had started and nobody had come to write it down.
    std::fs::remove_file(machine.place().run.join("bundles").join(&id).join("init.json")).unwrap();
    assert_eq!(state(&machine, "web"), "stopped");
    assert_eq!(processes(&id).len(), 1);
    machine.spark(&["stop", "web"]).ok();
    assert!(processes(&id).is_empty() && cgroups(&id).is_empty());
    assert_eq!(sh(&machine, "web", "echo well"), "well\n");
}

#[test]
fn two_commands_on_one_spark_wait_for_each_other() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--no-start"]).ok();
    let children: Vec<_> = (0..6)
        .map(|n| {
            let mark = format!("echo x > /mark{n}");
            machine.command(&["exec", "web", "--", "sh", "-c", &mark]).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    assert_eq!(sh(&machine, "web", "cat /mark* | wc -l").trim(), "6");
    let creators: Vec<_> = (0..4)
        .map(|_| {
            machine.command(&["create", "one"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let made =
        creators.into_iter().filter(|_| true).map(|mut c| c.wait().unwrap().success()).filter(|s| *s).count();
    assert_eq!(made, 1);
    assert!(machine.staged().is_empty());
}
