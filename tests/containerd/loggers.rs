//! Programs that get what containers write, as containerd's own shim runs them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::daemon::{Daemon, eventually, text};
use crate::life::run;

/// Writes who it is for, its arguments and its environment, then what it reads, each to a file; then that it has ended.
const LOGGER: &str = r#"#!/bin/sh
dir=$2
tr '\0' '\n' </proc/$$/environ | grep CONTAINER | sort >"$dir/who"
echo "$#: $*" >>"$dir/who"
readlink /proc/self/fd/0 >>"$dir/who"
exec 5>&-
cat <&3 >"$dir/out" &
exec 3<&-
cat <&4 >"$dir/err"
wait
touch "$dir/ended"
"#;

fn logger(daemon: &Daemon, name: &str) -> (String, PathBuf) {
    let program = daemon.path().join("my logger");
    fs::write(&program, LOGGER).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let dir = daemon.path().join(name);
    fs::create_dir(&dir).unwrap();
    let uri = format!("binary://{}/my%20logger?dir={}&last", daemon.path().display(), dir.display());
    (uri, dir)
}

fn stop_and_delete(daemon: &Daemon, id: &str) {
    eventually("it has ended", || daemon.state(id).as_deref() == Some("STOPPED"));
    daemon.ctr(["task", "delete", id]);
    daemon.say(&format!("container delete {id}"));
}

#[test]
fn a_logger_gets_all_that_a_container_writes_and_knows_whose_it_is() {
    let daemon = Daemon::new();
    let (uri, dir) = logger(&daemon, "logged");
    let script = "head -c 1000000 /dev/zero; echo err >/dev/stderr";
    daemon.ok(run(&["-d", "--log-uri", &uri], "a", &["sh", "-c", script]));
    stop_and_delete(&daemon, "a");
    // Deleted means that all of it is there, and that the logger is not.
    assert!(dir.join("ended").exists());
    assert_eq!(fs::metadata(dir.join("out")).unwrap().len(), 1_000_000);
    assert_eq!(fs::read_to_string(dir.join("err")).unwrap(), "err\n");
    let who = format!(
        "CONTAINER_ID=a\nCONTAINER_NAMESPACE={}\n4: dir {} last \n/dev/null\n",
        daemon.namespace,
        dir.display()
    );
    assert_eq!(fs::read_to_string(dir.join("who")).unwrap(), who);
    daemon.nothing_is_left();
}

#[test]
fn a_logger_has_lines_when_they_are_written_and_what_is_executed_has_its_own() {
    let daemon = Daemon::new();
    let (uri, dir) = logger(&daemon, "first");
    let script = "echo first; sleep 1000";
    daemon.ok(run(&["-d", "--log-uri", &uri], "a", &["sh", "-c", script]));
    let out = |dir: &Path| fs::read_to_string(dir.join("out")).unwrap_or_default();
    eventually("the first line is there", || out(&dir) == "first\n");
    let (uri, second) = logger(&daemon, "second");
    daemon.ok(["task", "exec", "--exec-id", "e", "--log-uri", &uri, "a", "echo", "more"]);
    eventually("its logger has ended", || second.join("ended").exists());
    assert_eq!(out(&second), "more\n");
    assert!(fs::read_to_string(second.join("who")).unwrap().starts_with("CONTAINER_ID=e\n"));
    daemon.say("task kill --signal KILL a");
    stop_and_delete(&daemon, "a");
    assert!(dir.join("ended").exists());
    daemon.nothing_is_left();
}

#[test]
fn a_logger_that_is_not_there_is_an_error_and_leaves_nothing() {
    let daemon = Daemon::new();
    let output = daemon.ctr(run(&["-d", "--log-uri", "binary:///no/such/logger"], "a", &["true"]));
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("/no/such/logger"), "{}", text(&output.stderr));
    assert!(daemon.state("a").is_none());
    daemon.ctr(["container", "delete", "a"]);
    daemon.nothing_is_left();
}
