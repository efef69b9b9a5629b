//! Processes that join a container.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use serde_json::{Value, json};

use crate::bundle::Host;

fn running() -> Host {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |c| c["process"]["env"] = json!(["PATH=/bin", "A=spec"]));
    host.start("c");
    host
}

#[test]
fn a_command_has_its_words_status_streams_and_environment() {
    let host = running();
    let out = host.oci(&[
        "exec",
        "-e",
        "A=cli",
        "-e",
        "B=2",
        "--cwd",
        "/tmp",
        "-u",
        "1000:7",
        "c",
        "sh",
        "-c",
        "echo $A $B $HOME; pwd; id -u; id -g; echo err >/dev/stderr; exit 9",
    ]);
    assert_eq!(out.stdout(), "cli 2 /home/ann\n/tmp\n1000\n7\n");
    assert_eq!((out.status(), out.stderr().as_str()), (9, "err\n"));
}

#[test]
fn what_cannot_be_executed_is_told_as_runc_does() {
    let host = running();
    let log = host.dir().join("log");
    let out = host.oci(&["--log", log.to_str().unwrap(), "--log-format", "json", "exec", "c", "nosuch"]);
    assert_eq!(out.status(), 255);
    let text = std::fs::read_to_string(&log).unwrap();
    let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("No such file or directory"), "{line}");
    assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
    assert_eq!(host.oci(&["exec", "c", "/etc"]).status(), 255);
    assert_eq!(host.oci(&["exec", "--cwd", "/nosuch", "c", "true"]).status(), 255);
    assert_eq!(host.oci(&["exec", "c"]).status(), 255);
}

/// When a process of the host gets a processor and a disk, as util-linux says it.
fn priorities(pid: &str) -> [String; 3] {
    let say = |program: &str, args: &[&str]| {
        let out = std::process::Command::new(program).args(args).arg(pid).output().unwrap();
        assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    let policy = say("chrt", &["-p"]);
    let policy = policy.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned();
    [policy, say("ps", &["-o", "ni=", "-p"]), say("ionice", &["-p"])]
}

#[test]
fn the_first_process_and_others_have_the_priorities_that_they_ask_for() {
    let host = Host::new();
    let first = json!({"policy": "SCHED_BATCH", "nice": 3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    host.configure(&["sleep", "1000"], |c| {
        c["process"]["scheduler"] = first;
        c["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    });
    host.start("c");
    let of_first = ["SCHED_BATCH|SCHED_RESET_ON_FORK", "3", "best-effort: prio 6"].map(str::to_owned);
    assert_eq!(priorities(&host.pid("c").to_string()), of_first);

    let pid_file = host.dir().join("pid");
    let exec = |args: &[&str]| {
        let pid_file = ["exec", "-d", "--pid-file", pid_file.to_str().unwrap()];
        assert_eq!(host.quietly(&[&pid_file[..], args].concat()), 0);
        std::fs::read_to_string(host.dir().join("pid")).unwrap()
    };
    // What is given as words is as the first process; what is given as an object is as that says.
    assert_eq!(priorities(&exec(&["c", "sleep", "1000"])), of_first);
    let process = host.dir().join("process.json");
    let mut object = json!({"cwd": "/", "user": {"uid": 1000, "gid": 1000}, "args": ["sleep", "1000"], "env": ["PATH=/bin"]});
    std::fs::write(&process, object.to_string()).unwrap();
    let plain = exec(&["--process", process.to_str().unwrap(), "c"]);
    assert_eq!(priorities(&plain)[..2], ["SCHED_OTHER", "0"]);
    object["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": 9});
    object["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    std::fs::write(&process, object.to_string()).unwrap();
    let asking = exec(&["--process", process.to_str().unwrap(), "c"]);
    assert_eq!(priorities(&asking), ["SCHED_OTHER", "9", "idle"]);
    object["scheduler"]["nice"] = json!(20);
    std::fs::write(&process, object.to_string()).unwrap();
    let refused = host.oci(&["exec", "--process", process.to_str().unwrap(), "c"]);
    assert!(refused.stderr().contains("nice is from -20 to 19"), "{}", refused.stderr());
}

#[test]
fn a_terminal_goes_to_the_console_socket() {
    let host = running();
    let socket = host.dir().join("console");
    let listener = sparks::sys::net::listen_unix(&socket).unwrap();
    let process = host.dir().join("process.json");
    let script = "tty; stty size; read line; echo got $line";
    std::fs::write(&process, json!({
        "terminal": true, "consoleSize": {"height": 31, "width": 41}, "cwd": "/", "user": {"uid": 1000, "gid": 1000},
        "args": ["sh", "-c", script], "env": ["PATH=/bin"],
    }).to_string()).unwrap();
    let pid_file = host.dir().join("pid");
    let args = [
        "exec",
        "-d",
        "--console-socket",
        socket.to_str().unwrap(),
        "--process",
        process.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
        "c",
    ];
    assert_eq!(host.quietly(&args), 0);
    let mut terminal = std::fs::File::from(sparks::sys::net::receive_descriptor(listener.as_fd()).unwrap());
    terminal.write_all(b"word\n").unwrap();
    let mut text = Vec::new();
    // The end of a terminal whose other side is closed is an error.
    let _ = terminal.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    assert!(text.starts_with("/dev/pts/0\n") || text.starts_with("word\n"), "{text:?}");
    assert!(text.contains("31 41\n") && text.contains("got word\n"), "{text:?}");
    assert!(std::fs::read_to_string(pid_file).unwrap().parse::<i32>().is_ok());
}

#[test]
fn descriptors_are_passed_on_that_were_promised_and_no_others() {
    let host = running();
    let oci = format!("{} --root {}", env!("CARGO_BIN_EXE_spark-oci"), host.root().display());
    let both = format!(
        "exec 3</dev/zero 4</dev/null; {oci} exec --preserve-fds 1 c sh -c 'test -e /proc/self/fd/3 && ! test -e /proc/self/fd/4'"
    );
    let mut shell = std::process::Command::new("sh");
    let out = shell.args(["-c", &both]).env("SPARK_RUN", host.run()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn a_signal_reaches_the_command() {
    let host = running();
    let mut child = host
        .command(&["exec", "c", "sh", "-c", "trap 'exit 33' TERM; echo ready; while :; do sleep 0.05; done"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(33));
}

#[test]
fn a_command_that_enters_a_paused_container_runs_when_it_is_thawed() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |_| {});
    host.start("held");
    host.oci(&["pause", "held"]).ok();
    let mut command = host.command(&["exec", "--ignore-paused", "held", "echo", "thawed"]);
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let entered = |dir: std::path::PathBuf| {
        std::fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|text| text.lines().count() == 2)
    };
    assert!(crate::common::wait_for(|| crate::bundle::cgroups("held").into_iter().any(entered)));
    host.oci(&["resume", "held"]).ok();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"thawed\n");
}

/// A fifo without a writer, a device without an end and links without an end: who reads `/etc/passwd` of a container must not
/// wait for any of them.
#[test]
fn whatever_the_container_has_as_etc_passwd_nobody_waits_for_it() {
    let host = running();
    let passwd = host.rootfs().join("etc/passwd");
    let make = |script: &str| {
        std::fs::remove_file(&passwd).unwrap();
        let at = passwd.to_str().unwrap();
        let made = std::process::Command::new("sh").args(["-c", script, at]).status().unwrap();
        assert!(made.success(), "{script}");
    };
    for script in [
        "mkfifo $0",
        "ln -s passwd $0",
        "mknod $0 c 1 5",
        "mkdir $0.d; ln -s passwd.d $0",
        "truncate -s 1T $0",
    ] {
        make(script);
        let out = host.oci(&["exec", "c", "sh", "-c", "echo $HOME"]);
        assert_eq!((out.stdout(), out.status()), ("/\n".into(), 0), "{script}");
    }
    make("mkfifo $0");
    assert_eq!(host.quietly(&["exec", "-d", "c", "sleep", "1000"]), 0);
    for command in [&["pause", "c"][..], &["resume", "c"], &["delete", "--force", "c"]] {
        host.oci(command).ok();
    }
    // So does the first process of a container.
    host.configure(&["sh", "-c", "echo $HOME > /out/home"], |_| ());
    host.oci(&["run", "--bundle", host.bundle().to_str().unwrap(), "d"]).ok();
    assert_eq!(std::fs::read_to_string(host.out("home")).unwrap(), "/\n");
}

#[test]
fn values_and_commands_are_not_in_the_command_line_of_the_runtime() {
    let host = running();
    let secret = "A=hidden-from-ps";
    let line = |pid: u32| {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        String::from_utf8(bytes).unwrap().trim_end_matches('\0').to_owned()
    };
    let program = env!("CARGO_BIN_EXE_spark-oci");
    let run = "echo $A; exec sleep 1000";
    let mut exec = host.command(&["exec", "-e", secret, "c", "sh", "-c", run]);
    let mut exec = exec.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = [0; 15];
    exec.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hidden-from-ps\n", "the value has arrived");
    assert_eq!(line(exec.id()), format!("{program}\0exec"));
    exec.kill().unwrap();
    exec.wait().unwrap();
}
