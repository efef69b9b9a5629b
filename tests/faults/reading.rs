//! A process that reads an archive and was taken over by it tries what it likes, and the import fails.

use std::process::Stdio;

use sparks::sys::process::{pidfd_open, signal_number};

use crate::common::{Machine, is_running, wait_for};

/// What the process tries, as `sys::attack` knows it.
const ATTACKS: [&str; 10] =
    ["open", "execute", "socket", "socketpair", "trace", "kill", "user", "fork", "namespace", "code"];

#[test]
fn a_reader_that_was_taken_over_is_killed_whatever_it_tries() {
    let machine = Machine::new();
    std::fs::write(machine.work().join("file"), "content").unwrap();
    for (archive, flag) in [("plain.tar", "-c"), ("zipped.tar.gz", "-cz")] {
        let made = std::process::Command::new("tar")
            .args([flag, "-f", archive, "file"])
            .current_dir(machine.work())
            .status();
        assert!(made.unwrap().success());
        for attack in ATTACKS {
            let mut command = machine.command(&["--json", "base", "import", archive, "b"]);
            command.env("SPARK_FAULT", format!("isolated.{attack}=attack"));
            let text = crate::common::Output::of(attack, &mut command).fails_with("image");
            assert!(text.contains("did what no reader needs, and was killed for it"), "{attack}: {text}");
            assert!(machine.staged().is_empty(), "{attack}");
        }
    }
    // Without an attack nothing of that is so.
    let mut command = machine.command(&["base", "import", "zipped.tar.gz", "b"]);
    crate::common::Output::of("import", command.env("SPARK_FAULT", "isolated.nothing=attack")).ok();
}

/// It reads no more, so that the end of its pipes does not end it.
#[test]
fn a_reader_that_goes_on_for_ever_ends_with_its_command() {
    let machine = Machine::new();
    std::fs::write(machine.work().join("archive"), "no archive").unwrap();
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let mut command = machine.command(&["base", "import", "archive", "b"]);
        command.env("SPARK_FAULT", "isolated.spin=attack").stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let pid = child.id();
        let children = || std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let is_confined = |pid: &str| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.contains("Seccomp:\t2\n")
        };
        let is_there = || children().split_whitespace().filter(|pid| is_confined(pid)).count() == 1;
        let begun = wait_for(is_there);
        let readers: Vec<i32> = children().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        signal_number(pidfd_open(pid as i32).unwrap(), signal).unwrap();
        child.wait().unwrap();
        let ended = wait_for(|| !readers.iter().any(|pid| is_running(*pid)));
        for reader in readers.iter().filter_map(|pid| pidfd_open(*pid).ok()) {
            let _ = signal_number(&reader, libc::SIGKILL);
        }
        assert!(begun && ended, "signal {signal}: begun {begun}, ended {ended}");
    }
}

#[test]
fn a_parser_of_streams_that_was_taken_over_is_killed_whatever_it_tries() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--no-start"]).ok();
    let stream = machine.work().join("stream");
    let mut send = machine.command(&["send", "web"]);
    let sent =
        send.stdout(std::fs::File::create(&stream).unwrap()).stderr(std::process::Stdio::null()).status();
    assert!(sent.unwrap().success());
    let receive = |fault: &str, args: &[&str]| {
        let mut command = machine.command(args);
        command.env("SPARK_FAULT", fault).stdin(std::fs::File::open(&stream).unwrap());
        crate::common::Output::of(fault, &mut command)
    };
    for attack in ATTACKS {
        let fault = format!("isolated.{attack}=attack");
        let text = receive(&fault, &["--json", "receive", "copy"]).fails_with("corrupt");
        assert!(text.contains("and was killed for it"), "{attack}: {text}");
        assert!(machine.staged().is_empty(), "{attack}");
    }
    receive("isolated.nothing=attack", &["receive", "copy"]).ok();
}
