//! What the arguments of `spark` hold stays out of the sight of the host's other users.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::common::{Machine, wait_for};
use crate::inside::{bare, machine};

/// What no process of the host may show.
const VALUE: &str = "hidden-from-ps";

/// A file of a process, with its NULs as they are.
fn read(pid: u32, file: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{file}")).unwrap()).into_owned()
}

/// A process and all that it has started, directly or not.
fn tree(pid: u32) -> Vec<u32> {
    let children = read(pid, &format!("task/{pid}/children"));
    let below = children.split_whitespace().flat_map(|child| tree(child.parse().unwrap()));
    std::iter::once(pid).chain(below).collect()
}

/// Starts a command that says when its program in the spark runs.
fn started(command: &mut Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "running\n");
    child
}

/// Checks a command whose program runs in a spark: neither `spark` nor what it started shows the value, but for the
/// program itself, which was given it. Returns the command lines of those that are not in a spark.
fn lines_of_the_host(mut child: Child) -> Vec<String> {
    let inside = |pid: &u32| read(*pid, "uid_map") != read(1, "uid_map");
    let (in_spark, of_host): (Vec<u32>, Vec<u32>) = tree(child.id()).into_iter().partition(inside);
    // A process that executes a program has no environment for a moment.
    let has_arrived = || in_spark.iter().any(|pid| read(*pid, "environ").contains(VALUE));
    assert!(wait_for(has_arrived), "the value has arrived");
    for pid in &of_host {
        for file in ["cmdline", "environ"] {
            assert!(!read(*pid, file).contains(VALUE), "{file} of {pid}: {}", read(*pid, file));
        }
    }
    let lines = of_host.iter().map(|pid| read(*pid, "cmdline").trim_end_matches('\0').to_owned()).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    lines
}

fn shown(machine: &Machine, args: &[&str]) -> Vec<String> {
    let of = format!("KEY={VALUE}");
    let args: Vec<&str> = args.iter().map(|arg| if *arg == "KEY" { of.as_str() } else { arg }).collect();
    lines_of_the_host(started(&mut machine.command(&args)))
}

#[test]
fn values_and_commands_are_not_in_the_command_line_of_a_process_of_the_host() {
    let machine = machine();
    bare(&machine, "web", &[]);
    let run = "echo running; exec sleep 1000";
    let program = env!("CARGO_BIN_EXE_spark");
    let exec = shown(&machine, &["-P", "default", "exec", "-e", "KEY", "web", "--", "sh", "-c", run]);
    assert_eq!(exec, [format!("{program}\0exec")]);

    // A spark that is made for the command, and the helpers that make it.
    let ephemeral = shown(&machine, &["exec", "--base", "minimal", "-e", "KEY", "-", "--", "sh", "-c", run]);
    assert!(ephemeral.iter().all(|line| *line == format!("{program}\0exec")), "{ephemeral:?}");
    machine.spark(&["create", "new", "--base", "minimal", "-e", &format!("KEY={VALUE}")]).ok();
    let everybody =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let lines = everybody.filter_map(|pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).ok());
    let shown: Vec<_> = lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(VALUE))
        .collect();
    assert_eq!(shown, [""; 0], "what a start leaves running shows nothing either");
}
