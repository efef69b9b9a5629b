//! Commands that make one thing at the same time: one makes it, and the others wait and take it.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::common::{Killed, Machine, Output, wait_for};

/// A command in the background, ended with the test.
pub(crate) struct Running {
    child: Killed,
    errors: BufReader<std::process::ChildStderr>,
    said: String,
}

impl Running {
    pub(crate) fn of(machine: &Machine, args: &[&str], env: &[(&str, &str)]) -> Running {
        let mut command = machine.command(args);
        command.envs(env.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        Running { child: Killed(child), errors, said: String::new() }
    }

    /// One that stops at a fault point until it is told to go on.
    pub(crate) fn stopped(machine: &Machine, args: &[&str], point: &str) -> Running {
        let mut running = Running::of(machine, args, &[("SPARK_FAULT", &format!("{point}=stop"))]);
        let stat = format!("/proc/{}/stat", running.child.id());
        let state = || std::fs::read_to_string(&stat).unwrap_or_default();
        assert!(wait_for(|| state().contains(") T ") || running.child.try_wait().unwrap().is_some()));
        assert!(state().contains(") T "), "{}", running.end().stderr());
        running
    }

    /// Reads lines of standard error until one has these words.
    pub(crate) fn says(&mut self, words: &str) {
        while !self.said.contains(words) {
            assert_ne!(self.errors.read_line(&mut self.said).unwrap(), 0, "{}", self.said);
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// What it said, and how it ended.
    pub(crate) fn end(mut self) -> Output {
        let mut stdout = Vec::new();
        self.child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        self.errors.read_to_string(&mut self.said).unwrap();
        let status = self.child.wait().unwrap();
        let stderr = std::mem::take(&mut self.said).into_bytes();
        Output::from("command in the background", std::process::Output { status, stdout, stderr })
    }
}

const BOOTSTRAP: [&str; 4] = ["--json", "base", "bootstrap", "minimal"];
const WAITING: &str = "another command makes base `minimal`: waiting for it";

fn bases(machine: &Machine) -> Vec<Value> {
    let list = machine.spark(&["base", "list", "--json"]).json();
    list.as_array().unwrap().iter().map(|base| base["name"].clone()).collect()
}

#[test]
fn a_base_that_another_command_makes_is_waited_for_and_used() {
    let machine = Machine::new();
    std::fs::write(machine.work().join("x.tar"), [0; 10240]).unwrap();
    let first = Running::stopped(&machine, &BOOTSTRAP, "base-import.after-unpack");
    let create = ["create", "web", "--network", "none", "--no-start"];
    let mut create = Running::of(&machine, &create, &[("SPARK_BASE", "minimal")]);
    let mut same = Running::of(&machine, &BOOTSTRAP, &[]);
    let mut other = Running::of(&machine, &["--json", "base", "import", "x.tar", "minimal"], &[]);
    for waiting in [&mut create, &mut same, &mut other] {
        waiting.says(WAITING);
    }
    first.signal(Signal::CONT);
    let made = first.end().json();
    create.end().ok();
    assert_eq!(same.end().json()["id"], made["id"]);
    // That is not the same thing.
    let other = other.end();
    assert!(other.stderr().contains("\"exists\""), "{}", other.stderr());
    // Afterwards the name is taken, as it always was.
    machine.spark(&BOOTSTRAP).fails_with("exists");
    assert_eq!(bases(&machine), [json!("minimal")]);
    assert!(machine.staged().is_empty());
    assert_eq!(machine.spark(&["gc", "--dry-run", "--json"]).json(), json!([]));
}

#[test]
fn what_a_killed_command_made_is_made_by_who_waited() {
    let machine = Machine::new();
    let first = Running::stopped(&machine, &BOOTSTRAP, "base-import.after-unpack");
    let mut second = Running::of(&machine, &BOOTSTRAP, &[]);
    second.says(WAITING);
    first.signal(Signal::KILL);
    second.end().ok();
    assert_eq!(first.end().status(), 128 + 9);
    machine.spark(&["base", "default"]).ok();

    // Where nobody waited, `gc` removes the sign.
    let args = ["base", "import", "/etc/ssl", "third"];
    let third = Running::stopped(&machine, &args, "base-import.after-unpack");
    third.signal(Signal::KILL);
    third.end();
    let sign = machine.place().making().join("base-third");
    assert!(sign.is_dir());
    let items = machine.spark(&["gc", "--json"]).json();
    assert!(items.as_array().unwrap().iter().any(|item| item["path"] == sign.to_str().unwrap()), "{items}");
    assert!(!sign.exists() && machine.staged().is_empty());
}

#[test]
fn first_commands_on_a_host_without_a_pool_all_succeed_at_once() {
    let machine = Machine::without_pool();
    let init: &[&str] = &["pool", "init", "--size", "1G"];
    let create = |name| ["create", name, "--network", "none"];
    let (a, b) = (create("a"), create("b"));
    // Made first, so that the pool has this size whoever is first of the others.
    let first = Running::of(&machine, init, &[]);
    assert!(wait_for(|| machine.place().root.join(".new-pool.btrfs").exists() || machine.pool().exists()));
    let lines: [&[&str]; 7] = [init, init, init, &a, &b, &["list"], &BOOTSTRAP];
    let others: Vec<_> =
        lines.iter().map(|args| Running::of(&machine, args, &[("SPARK_BASE", "minimal")])).collect();
    first.end().ok();
    for (other, args) in others.into_iter().zip(lines) {
        let output = other.end();
        // A `create` that came before `bootstrap` has made the base, and then that name is taken.
        if args == BOOTSTRAP && output.status() != 0 {
            assert!(output.stderr().contains("\"exists\""), "{}", output.stderr());
            continue;
        }
        assert_eq!(output.status(), 0, "{args:?}: {}", output.stderr());
    }
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "a\nb\n");
    assert_eq!(bases(&machine), [json!("minimal")]);
    assert_eq!(machine.spark(&["gc", "--dry-run", "--json"]).json(), json!([]));
}
