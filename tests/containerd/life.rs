//! One container from `run` to `delete`.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::daemon::{Daemon, IMAGE, RUNTIME, children, eventually, text};

/// `ctr run` of the image with options, a name, and a command.
pub fn run<'a>(options: &[&'a str], id: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["run", "--runtime", RUNTIME];
    words.extend(options);
    words.extend([IMAGE, id]);
    words.extend(command);
    words
}

fn sleeper(daemon: &Daemon, id: &str) {
    daemon.ok(run(&["-d"], id, &["sleep", "1000"]));
}

fn end(daemon: &Daemon, id: &str) {
    daemon.say(&format!("task kill --signal KILL {id}"));
    eventually("it has ended", || daemon.state(id).as_deref() == Some("STOPPED"));
    // It ends with the status of the task.
    daemon.ctr(["task", "delete", id]);
    daemon.say(&format!("container delete {id}"));
}

#[test]
fn what_a_container_writes_and_its_status_come_out() {
    let daemon = Daemon::new();
    let output = daemon.ctr(run(&["--rm"], "a", &["sh", "-c", "echo out; echo err >/dev/stderr; exit 7"]));
    assert_eq!(text(&output.stdout), "out\n");
    assert_eq!(text(&output.stderr), "err\n");
    assert_eq!(output.status.code(), Some(7));
    daemon.nothing_is_left();
}

#[test]
fn standard_input_goes_in_whole_and_ends() {
    let daemon = Daemon::new();
    let mut child = daemon
        .command(run(&["--rm"], "a", &["sh", "-c", "cat | md5sum"]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // More than any pipe on the way holds.
    let line = [b'x'; 1000];
    let mut input = child.stdin.take().unwrap();
    for _ in 0..1000 {
        input.write_all(&line).unwrap();
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    // md5sum of a million times `x`.
    let mut wanted = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wanted.stdin.take().unwrap().write_all(&vec![b'x'; 1_000_000]).unwrap();
    assert_eq!(text(&output.stdout), text(&wanted.wait_with_output().unwrap().stdout));
    daemon.nothing_is_left();
}

#[test]
fn a_command_that_is_not_there_is_an_error_and_leaves_nothing() {
    let daemon = Daemon::new();
    let output = daemon.ctr(run(&["--rm"], "a", &["no-such-program"]));
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("no-such-program"), "{}", text(&output.stderr));
    daemon.nothing_is_left();
}

#[test]
fn terminals_have_the_size_of_the_callers() {
    let daemon = Daemon::new();
    sleeper(&daemon, "a");
    let ctr = format!("ctr --address {} --namespace {}", daemon.socket().display(), daemon.namespace);
    // ctr tells the size when it runs.
    let inside = "sh -c 'until test \"$(stty size)\" = \"33 77\"; do sleep 0.1; done; test -t 0 && test -t 1 && stty size'";
    let in_terminal = |command: String| {
        let whole = format!("stty rows 33 cols 77; {command}");
        let output = Command::new("timeout")
            .args(["-k", "2", "600", "script", "-qec", &whole, "/dev/null"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        text(&output.stdout)
    };
    let executed = in_terminal(format!("{ctr} task exec -t --exec-id e a {inside}"));
    assert!(executed.contains("33 77"), "{executed}");
    let ran = in_terminal(format!("{ctr} run --rm -t --runtime {RUNTIME} {IMAGE} b {inside}"));
    assert!(ran.contains("33 77"), "{ran}");
    end(&daemon, "a");
    daemon.nothing_is_left();
}

#[test]
fn commands_are_executed_in_it_with_their_own_status() {
    let daemon = Daemon::new();
    sleeper(&daemon, "a");
    let output =
        daemon.ctr(["task", "exec", "--exec-id", "e1", "a", "sh", "-c", "echo $$ $0; hostname; exit 3"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let missing = daemon.refused("task exec --exec-id e2 a no-such-program");
    assert!(missing.contains("no-such-program"), "{missing}");
    // The same name again: it was deleted.
    daemon.say("task exec --exec-id e1 a true");
    let mut long =
        daemon.command(["task", "exec", "--exec-id", "long", "a", "sleep", "1000"]).spawn().unwrap();
    eventually("it is listed", || daemon.say("task ps a").contains("long"));
    daemon.say("task kill --signal TERM --exec-id long a");
    assert_eq!(long.wait().unwrap().code(), Some(143));
    assert_eq!(daemon.state("a").as_deref(), Some("RUNNING"));
    end(&daemon, "a");
    daemon.nothing_is_left();
}

#[test]
fn it_is_frozen_and_thawed_and_a_checkpoint_is_refused() {
    let daemon = Daemon::new();
    sleeper(&daemon, "a");
    daemon.say("task pause a");
    assert_eq!(daemon.state("a").as_deref(), Some("PAUSED"));
    daemon.say("task resume a");
    assert_eq!(daemon.state("a").as_deref(), Some("RUNNING"));
    let refused = daemon.refused("task checkpoint a");
    assert!(refused.contains("cannot checkpoint"), "{refused}");
    assert!(refused.contains("not implemented"), "{refused}");
    assert!(daemon.refused("task delete a").contains("running"));
    let metrics = daemon.say("task metrics a");
    let used = metrics.lines().find(|l| l.starts_with("memory.usage")).unwrap();
    assert!(used.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() > 4096, "{metrics}");
    end(&daemon, "a");
    daemon.nothing_is_left();
}

#[test]
fn real_time_signals_reach_a_task_and_what_was_executed_in_it() {
    let daemon = Daemon::new();
    let script = "trap 'exit 7' 37; echo ready >/ready; while :; do sleep 0.05; done";
    let mut task = daemon.command(run(&["--rm"], "a", &["sh", "-c", script])).spawn().unwrap();
    let is_there = |file: &str| {
        daemon.ctr(["task", "exec", "--exec-id", "look", "a", "test", "-e", file]).status.success()
    };
    eventually("its trap is set", || is_there("/ready"));
    let script = script.replace("/ready", "/ready-too");
    let exec = ["task", "exec", "--exec-id", "other", "a", "sh", "-c", &script];
    let mut other = daemon.command(exec).spawn().unwrap();
    eventually("its trap is set", || is_there("/ready-too"));
    daemon.say("task kill --signal 37 --exec-id other a");
    assert_eq!(other.wait().unwrap().code(), Some(7));
    daemon.say("task kill --signal 37 a");
    assert_eq!(task.wait().unwrap().code(), Some(7));
    daemon.nothing_is_left();
}

#[test]
fn a_paused_container_is_killed() {
    let daemon = Daemon::new();
    sleeper(&daemon, "a");
    daemon.say("task pause a");
    end(&daemon, "a");
    daemon.nothing_is_left();
}

/// The lines of `ctr events`, as they come.
struct Events {
    lines: Arc<Mutex<Vec<String>>>,
    child: std::process::Child,
}

impl Events {
    fn listen(daemon: &Daemon) -> Events {
        let mut child = daemon.command(["events"]).stdout(Stdio::piped()).spawn().unwrap();
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let (out, into) = (child.stdout.take().unwrap(), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                into.lock().unwrap().push(line);
            }
        });
        let events = Events { lines, child };
        // It listens once it hears something.
        eventually("events come", || {
            daemon.say("namespace label nobody-asks-for-this x=y");
            events.count("/namespaces/") > 0
        });
        events
    }

    fn count(&self, what: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }

    fn topics(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let topic =
            |line: &String| line.split_whitespace().find(|w| w.starts_with("/tasks/")).map(str::to_owned);
        lines.iter().filter_map(topic).collect()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn each_thing_that_happens_is_told_once_and_in_order() {
    let daemon = Daemon::new();
    let events = Events::listen(&daemon);
    sleeper(&daemon, "a");
    daemon.say("task exec --exec-id e a true");
    daemon.say("task pause a");
    daemon.say("task resume a");
    end(&daemon, "a");
    eventually("the last is told", || events.count("/tasks/delete") > 0);
    daemon.nothing_is_left();
    let wanted =
        ["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "delete"];
    assert_eq!(events.topics(), wanted.map(|t| format!("/tasks/{t}")));
}

#[test]
fn want_of_memory_is_told() {
    let daemon = Daemon::new();
    let events = Events::listen(&daemon);
    let output = daemon.ctr(run(&["--rm", "--memory-limit", "33554432"], "a", &["tail", "/dev/zero"]));
    assert_eq!(output.status.code(), Some(137), "{}", text(&output.stderr));
    eventually("it is told", || events.count("/tasks/oom") > 0);
    daemon.nothing_is_left();
}

#[test]
fn when_a_shim_is_killed_nothing_of_its_container_stays() {
    let daemon = Daemon::new();
    sleeper(&daemon, "a");
    let pid = daemon.pid("a");
    let [shim] = daemon.shims()[..] else { panic!("not one shim") };
    assert!(children(shim).contains(&pid));
    let line = fs::read_to_string(format!("/proc/{shim}/cmdline")).unwrap();
    let socket = line.split('\0').find_map(|word| word.strip_prefix("unix://")).unwrap();
    Command::new("kill").args(["-9", &shim.to_string()]).status().unwrap();
    eventually("its process is gone", || !fs::exists(format!("/proc/{pid}")).unwrap());
    eventually("its task is gone", || {
        matches!(daemon.state("a").as_deref(), None | Some("STOPPED" | "UNKNOWN"))
    });
    daemon.ctr(["task", "delete", "a"]);
    daemon.say("container delete a");
    // These are of `ctr`, which finds no task any more that would say where they are.
    fs::remove_dir_all(daemon.fifos()).unwrap();
    daemon.nothing_is_left();
    assert!(!fs::exists(socket).unwrap());
}

#[test]
fn containers_survive_a_restart_of_containerd() {
    let mut daemon = Daemon::new();
    sleeper(&daemon, "a");
    let pid = daemon.pid("a");
    daemon.stop();
    daemon.start();
    assert_eq!((daemon.pid("a"), daemon.state("a").as_deref()), (pid, Some("RUNNING")));
    daemon.say("task exec --exec-id e a true");
    end(&daemon, "a");
    daemon.nothing_is_left();
}

#[test]
fn what_the_runtime_can_do_is_told_before_it_is_used() {
    let shim = env!("CARGO_BIN_EXE_containerd-shim-spark-v1");
    let info = Command::new(shim).arg("-info").stdin(Stdio::null()).output().unwrap();
    assert!(info.status.success(), "{}", text(&info.stderr));
    let told = text(&info.stdout);
    assert!(told.contains("io.containerd.spark.v1") && told.contains("ociVersionMin"), "{told}");
    let version = Command::new(shim).arg("-v").output().unwrap();
    assert!(text(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}
