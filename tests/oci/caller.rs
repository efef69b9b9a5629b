//! What a caller passes on without meaning to: a terminal, a working directory that is gone, a log that others read.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::bundle::Host;
use crate::common::wait_for;

/// A command with a terminal as some of its streams. Returns what it says on standard error, if that is none of them.
fn with_terminal(host: &Host, args: &[&str], streams: [bool; 3]) -> (String, i32) {
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
    let stream = |number: usize| match streams[number] {
        true => Stdio::from(slave.try_clone().unwrap()),
        false if number == 0 => Stdio::null(),
        false => Stdio::piped(),
    };
    let mut command = host.command(args);
    let child = command.stdin(stream(0)).stdout(stream(1)).stderr(stream(2)).spawn().unwrap();
    let out = child.wait_with_output().unwrap();
    (String::from_utf8(out.stderr).unwrap(), out.status.code().unwrap())
}

#[test]
fn a_terminal_that_goes_into_a_container_is_passed_on_and_warned_of() {
    let host = Host::new();
    host.configure(&["sh", "-c", "test -t 0; exit $?"], |_| {});
    let warning = "warning: standard input is a terminal of the host";
    let (said, status) = with_terminal(&host, &["run", "c"], [true, false, false]);
    assert!(status == 0 && said.starts_with(warning), "{status}: {said}");
    let (said, _) = with_terminal(&host, &["run", "c"], [true, true, false]);
    assert!(said.starts_with("warning: standard input and standard output are a terminal"), "{said}");
    assert_eq!(with_terminal(&host, &["run", "c"], [false; 3]), (String::new(), 1));

    let log = host.dir().join("log");
    let logged = ["--log", log.to_str().unwrap(), "--log-format", "json", "run", "c"];
    with_terminal(&host, &logged, [true, false, true]);
    let text = std::fs::read_to_string(&log).unwrap();
    let line: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(line["level"], "warning");
    assert!(line["msg"].as_str().unwrap().starts_with("standard input and standard error"), "{line}");

    host.configure(&["sleep", "1000"], |_| {});
    host.start("c");
    let exec = |args: &[&str], streams| {
        let args = [&["exec"][..], args, &["c", "sh", "-c", "test -t 0"]].concat();
        with_terminal(&host, &args, streams)
    };
    let (said, status) = exec(&[], [true, false, false]);
    assert!(status == 0 && said.starts_with(warning), "{status}: {said}");
    assert_eq!(exec(&[], [false; 3]), (String::new(), 1));
    // With one of its own, the host's stays outside.
    assert_eq!(exec(&["--tty"], [true, false, false]), (String::new(), 0));
    assert_eq!(with_terminal(&host, &["state", "c"], [true, true, false]), (String::new(), 0));
}

/// podman reads the whole log as one object, containerd its last line.
#[test]
fn a_log_holds_the_error_with_its_reason_and_no_line_of_a_library() {
    let host = Host::new();
    host.configure(&["true"], |c| {
        let mount = json!({"destination": "/x", "type": "nosuchfs", "source": "x", "options": ["ro"]});
        c["mounts"].as_array_mut().unwrap().push(mount);
    });
    let log = host.dir().join("log");
    let path = log.to_str().unwrap();
    for (format, debug) in [("json", false), ("text", false), ("json", true), ("text", true)] {
        let _ = std::fs::remove_file(&log);
        let debugging: &[&str] = if debug { &["--debug"] } else { &[] };
        let args = [debugging, &["--log", path, "--log-format", format, "create", "c"]].concat();
        assert_eq!(host.oci(&args).status(), 1);
        let text = std::fs::read_to_string(&log).unwrap();
        let last = text.lines().last().unwrap();
        let is_error = match format {
            "json" => serde_json::from_str::<Value>(last).unwrap()["level"] == "error",
            _ => last.contains(" level=error msg="),
        };
        assert!(is_error && last.contains("cannot create"), "{text}");
        if debug {
            assert!(text.lines().count() > 10, "{text}");
        } else {
            assert!(text.lines().count() == 1 && last.contains("ENODEV"), "{text}");
        }
    }
}

#[test]
fn commands_work_in_a_working_directory_that_was_deleted() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |_| {});
    let (bundle, run) = (host.bundle(), host.run().to_owned());
    let in_deleted = |args: &[&str]| {
        let script = "mkdir gone && cd gone && rmdir ../gone && exec \"$0\" \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_spark-oci"), "--root"]).arg(host.root()).args(args);
        command.current_dir(host.dir()).env("SPARK_RUN", &run).stdin(Stdio::null()).stdout(Stdio::null());
        let said = host.dir().join("said");
        let status = command.stderr(std::fs::File::create(&said).unwrap()).process_group(0).status().unwrap();
        (status.code().unwrap(), std::fs::read_to_string(said).unwrap())
    };
    let works = |args: &[&str]| assert_eq!(in_deleted(args), (0, String::new()), "{args:?}");
    works(&["create", "--bundle", bundle.to_str().unwrap(), "c"]);
    works(&["start", "c"]);
    works(&["exec", "c", "true"]);
    works(&["pause", "c"]);
    works(&["resume", "c"]);
    works(&["kill", "c", "KILL"]);
    assert!(wait_for(|| host.state("c")["status"] == "stopped"));
    works(&["delete", "c"]);
    // What is named by the directory is not there any more.
    let (status, said) = in_deleted(&["create", "c"]);
    assert!(status == 1 && said.contains("cannot find the bundle"), "{said}");
    let pid_file = ["create", "--bundle", bundle.to_str().unwrap(), "--pid-file", "pid", "c"];
    let (status, said) = in_deleted(&pid_file);
    assert!(status == 1 && said.contains("cannot find pid"), "{said}");
    assert!(!std::path::Path::new("/pid").exists());
    assert_eq!(host.oci(&["list", "-q"]).ok(), "");
}
