//! `exec` as its callers lean on it: streams, signals, many at once, and nothing that waits for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Killed, Machine, Output, PATIENCE, wait_for};

/// A machine with a running spark `web`.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.spark(&["base", "bootstrap", "minimal"]).ok();
    machine.spark(&["create", "web"]).ok();
    machine
}

/// A shell line on the host in which `$spark` is the program.
pub(crate) fn host(machine: &Machine, line: &str) -> Output {
    let spark = machine.command(&[]);
    let mut bash = Command::new("bash");
    bash.args(["-c", line]).current_dir(machine.work()).stdin(Stdio::null());
    bash.env("spark", spark.get_program());
    crate::common::default_signals(&mut bash);
    for (key, value) in spark.get_envs() {
        match value {
            Some(value) => bash.env(key, value),
            None => bash.env_remove(key),
        };
    }
    Output::of(line, &mut bash)
}

/// A command under way. Killed with this.
pub(crate) struct Background {
    child: Killed,
    lines: BufReader<std::process::ChildStdout>,
}

impl Background {
    /// Starts a command and waits until it says `ready`.
    pub(crate) fn ready(machine: &Machine, args: &[&str]) -> Background {
        let mut child = machine.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut background =
            Background { lines: BufReader::new(child.stdout.take().unwrap()), child: Killed(child) };
        assert_eq!(background.line(), "ready", "{args:?}");
        background
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// How it ends, which it has to do soon.
    #[track_caller]
    pub(crate) fn status(&mut self) -> i32 {
        let mut status = None;
        let deadline = std::time::Instant::now() + PATIENCE;
        while status.is_none() && std::time::Instant::now() < deadline {
            status = self.child.try_wait().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        status.expect("the command did not end").code().expect("spark itself was killed")
    }
}

/// What runs inside under a name, PID 1 apart.
fn inside(machine: &Machine, name: &str) -> usize {
    let list = machine.spark(&["exec", "web", "ps", "-o", "args"]).ok();
    list.lines().filter(|l| l.split(' ').next() == Some(name)).count()
}

#[test]
fn the_standard_streams_of_a_command_are_the_callers_own() {
    let machine = machine();
    let (input, _keep) = std::io::pipe().unwrap();
    let (mut output, to) = std::io::pipe().unwrap();
    let (mut errors, err_to) = std::io::pipe().unwrap();
    let inode = |fd: &dyn std::os::fd::AsFd| rustix::fs::fstat(fd.as_fd()).unwrap().st_ino;
    let expected = [inode(&input), inode(&output), inode(&errors)].map(|i| format!("pipe:[{i}]")).join("\n");
    let script = "for fd in 0 1 2; do readlink /proc/$$/fd/$fd; done; echo error >&2";
    let mut child = machine
        .command(&["exec", "web", "--", "sh", "-c", script])
        .stdin(input)
        .stdout(to)
        .stderr(err_to)
        .spawn()
        .unwrap();
    let (mut said, mut told) = (String::new(), String::new());
    output.read_to_string(&mut said).unwrap();
    errors.read_to_string(&mut told).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!((said.trim(), told.trim()), (expected.as_str(), "error"));

    // A file stays the host's: its position moves, its owner does not change.
    let path = machine.work().join("file");
    let line = "{ echo before; $spark exec web -- cat; echo after; } < /etc/hostname > file";
    host(&machine, line).ok();
    let hostname = std::fs::read_to_string("/etc/hostname").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("before\n{hostname}after\n"));
    assert_eq!(path.metadata().unwrap().uid(), 0);
}

#[test]
fn streams_are_opened_anew_by_their_names_also_by_a_user_who_is_not_root() {
    let machine = machine();
    let errors = host(&machine, "$spark exec web -- sh -c 'echo x >/dev/stderr' 2>&1 | cat");
    assert_eq!(errors.ok(), "x\n");
    for user in ["0", "nobody", "4711:4711"] {
        let line = format!(
            "echo in | $spark exec -u {user} web -- sh -c 'cat /dev/stdin; echo out >/dev/stdout; id -u' | cat"
        );
        let id = user.split(':').next().unwrap().replace("nobody", "65534");
        assert_eq!(host(&machine, &line).ok(), format!("in\nout\n{id}\n"), "{user}");
    }
}

#[test]
fn a_reader_that_leaves_ends_a_command_quietly() {
    let machine = machine();
    let line = "$spark exec web yes | head -n 1; echo ${PIPESTATUS[0]}";
    let output = host(&machine, line);
    assert_eq!((output.stdout().as_str(), output.stderr().as_str()), ("y\n141\n", ""));
    let line = "$spark exec - yes | head -n 1; echo ${PIPESTATUS[0]}; $spark list -q";
    let output = host(&machine, line);
    assert_eq!((output.stdout().as_str(), output.stderr().as_str()), ("y\n141\nweb\n", ""));
}

/// Blocks of noise, each another.
struct Noise(Vec<u8>);

impl Noise {
    const BLOCK: usize = 1 << 20;

    fn new() -> Noise {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        Noise(words.take(Self::BLOCK / 8).flatten().collect())
    }

    fn block(&mut self, number: u64) -> &[u8] {
        self.0[..8].copy_from_slice(&number.to_le_bytes());
        // Every byte stands somewhere else in each block, so none can be lost unseen at their borders.
        let at = 1 + (number as usize * 4093) % (Self::BLOCK - 9);
        self.0.swap(8, 8 + at - at % 2);
        &self.0
    }
}

#[test]
fn a_gibibyte_goes_through_a_command_unchanged() {
    const BLOCKS: u64 = 1024;
    let machine = machine();
    let mut command = machine.command(&["exec", "web", "--", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let writer = std::thread::spawn(move || {
        let mut noise = Noise::new();
        for number in 0..BLOCKS {
            input.write_all(noise.block(number)).unwrap();
        }
    });
    let (mut noise, mut got) = (Noise::new(), vec![0; Noise::BLOCK]);
    for number in 0..BLOCKS {
        output.read_exact(&mut got).unwrap();
        assert!(noise.block(number) == got, "block {number} differs");
    }
    assert_eq!(output.read(&mut got).unwrap(), 0);
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn fifty_commands_at_once_each_get_their_own_input_output_and_status() {
    let machine = machine();
    std::thread::scope(|scope| {
        for number in 0..50 {
            let machine = &machine;
            scope.spawn(move || {
                let script = format!("read x; echo $x-{number}; exit {number}");
                let mut command = machine.command(&["exec", "web", "--", "sh", "-c", &script]);
                let mut child = command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                child.stdin.take().unwrap().write_all(format!("in{number}\n").as_bytes()).unwrap();
                let output = child.wait_with_output().unwrap();
                let errors = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(number), "{errors}");
                assert_eq!(String::from_utf8_lossy(&output.stdout), format!("in{number}-{number}\n"));
                assert_eq!(errors, "");
            });
        }
    });
    assert_eq!(inside(&machine, "sh"), 0);
}

#[test]
fn nothing_waits_for_a_command_that_runs_on() {
    let machine = machine();
    let long = ["exec", "web", "--", "sh", "-c", "echo ready; exec sleep 1000"];
    let mut command = Background::ready(&machine, &long);
    assert_eq!(machine.spark(&["info", "web", "--json"]).json()["state"], "running");
    machine.spark(&["exec", "web", "true"]).ok();
    machine.spark(&["rename", "web", "shop"]).ok();
    machine.spark(&["rename", "shop", "web"]).ok();
    machine.spark(&["pause", "web"]).ok();
    machine.spark(&["resume", "web"]).ok();
    assert!(command.runs(), "all of that is done, and the command is not");
    machine.spark(&["stop", "web"]).ok();
    assert_eq!(command.status(), 128 + 15);

    machine.spark(&["resume", "web"]).ok();
    let mut command = Background::ready(&machine, &long);
    machine.spark(&["delete", "-f", "web"]).ok();
    assert_eq!(command.status(), 128 + 9);
}

#[test]
fn signals_reach_the_command_and_its_answer_comes_back() {
    let machine = machine();
    let script = |answer: &str| {
        format!("trap '{answer}' INT TERM HUP QUIT USR1; echo ready; while :; do sleep 0.02; done")
    };
    for (signal, answer, expected) in [
        (Signal::TERM, "exit 42", 42),
        (Signal::INT, "exit 43", 43),
        (Signal::HUP, "exit 44", 44),
        (Signal::USR1, "exit 45", 45),
        (Signal::QUIT, "exit 46", 46),
    ] {
        let mut command = Background::ready(&machine, &["exec", "web", "--", "sh", "-c", &script(answer)]);
        command.signal(signal);
        assert_eq!(command.status(), expected, "{signal:?}");
    }
    for (signal, expected) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        for target in ["web", "-"] {
            let args = ["exec", target, "--", "sh", "-c", "echo ready; exec sleep 1000"];
            let mut command = Background::ready(&machine, &args);
            command.signal(signal);
            assert_eq!(command.status(), expected, "{signal:?}");
        }
    }
    // One that answers and goes on is left alone.
    let args = ["exec", "web", "--", "sh", "-c", &script("trap - TERM; echo caught")];
    let mut command = Background::ready(&machine, &args);
    command.signal(Signal::TERM);
    assert_eq!(command.line(), "caught");
    assert!(command.runs());
    command.signal(Signal::TERM);
    assert_eq!(command.status(), 143);
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "web\n");
}

/// What `exec --help` says of a client that is killed.
#[test]
fn a_command_ends_with_its_client_but_for_a_sigkill_after_which_it_goes_on() {
    let machine = machine();
    let args = ["exec", "web", "--", "sh", "-c", "echo ready; exec sleep 1007"];
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut command = Background::ready(&machine, &args);
        command.signal(signal);
        assert_eq!(command.status(), 128 + signal.as_raw());
        assert!(wait_for(|| !processes_of_the_host("1007")), "{signal:?}");
    }
    let mut command = Background::ready(&machine, &args);
    command.signal(Signal::KILL);
    command.child.wait().unwrap();
    assert!(wait_for(|| processes_of_the_host("1007")));
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    assert!(wait_for(|| !processes_of_the_host("1007")));
}

#[test]
fn a_time_limit_of_nothing_is_none_and_what_a_command_leaves_behind_is_not_waited_for() {
    let machine = machine();
    assert_eq!(
        machine.spark(&["exec", "--timeout", "0", "web", "sh", "-c", "sleep 0.1; exit 7"]).status(),
        7
    );
    let script = "sleep 1008 >/dev/null 2>&1 & exit 3";
    assert_eq!(machine.spark(&["exec", "--timeout", "1h", "web", "sh", "-c", script]).status(), 3);
    assert!(processes_of_the_host("1008"), "it goes on");
}

#[test]
fn a_time_limit_ends_all_that_the_command_began() {
    let machine = machine();
    let within = |time: &str, script: &str| {
        machine.spark(&["exec", "--timeout", time, "web", "--", "sh", "-c", script])
    };
    let run = |script: &str| within("300ms", script);
    let output = run("sleep 1001 & sleep 1001");
    assert_eq!((output.status(), output.stderr().as_str()), (124, ""));
    assert!(wait_for(|| inside(&machine, "sleep") == 0));
    // One that will not hear is killed.
    let output = run("trap '' TERM; while :; do sleep 1; done");
    assert_eq!(output.status(), 124);
    assert!(wait_for(|| inside(&machine, "sh") == 0));
    // One that cleans up may do so, and the answer is still that the time was up.
    // On a machine that is so busy that the shell has not come that far, again.
    let cleaned_up = || {
        let output = within("3s", "trap 'echo bye; exit 0' TERM; while :; do sleep 0.02; done");
        assert_eq!(output.status(), 124);
        output.stdout() == "bye\n"
    };
    assert!(wait_for(cleaned_up));
    // And one that is quick is not touched.
    assert_eq!(within("10m", "exit 7").status(), 7);
}

#[test]
fn a_detached_command_goes_on_and_writes_to_the_log() {
    let machine = machine();
    let script = "echo out; echo err >&2; echo by name >>/dev/stdout; cat; exec sleep 1002";
    let pid = machine.spark(&["exec", "-d", "-u", "nobody", "web", "--", "sh", "-c", script]).ok();
    let cmdline = || std::fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
    assert!(wait_for(|| cmdline() == b"sleep\x001002\0"), "its pid on the host is told");
    assert_eq!(machine.spark(&["logs", "web"]).ok(), "out\nerr\nby name\n");
    machine.spark(&["stop", "web", "-t", "0"]).ok();
    assert_eq!(machine.spark(&["logs", "web"]).ok(), "out\nerr\nby name\n", "the log outlives it");

    // A follower sees what comes later.
    let mut follow = machine.command(&["logs", "-f", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let first: Vec<String> = lines.by_ref().take(3).map(Result::unwrap).collect();
    machine.spark(&["exec", "-d", "web", "echo", "later"]).ok();
    let last = lines.next().unwrap().unwrap();
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert_eq!((first.len(), last.as_str()), (3, "later"));
}

#[test]
fn environment_directory_and_user_are_as_told() {
    let machine = machine();
    let show = "echo $A:$B:$HOME:$USER:$PWD:$(id -u):$(id -g):$(hostname)";
    let exec = |options: &[&str], spark: &str| {
        let args = [&["exec"], options, &[spark, "--", "sh", "-c", show]].concat();
        machine.spark(&args).ok().trim_end().to_owned()
    };
    std::fs::write(machine.work().join("env"), "# comment\nA=file\nB=file\n").unwrap();
    assert_eq!(exec(&[], "web"), "::/root:root:/root:0:0:web");
    assert_eq!(exec(&["-e", "A=1", "-e", "B=x=y", "-e", "A=2"], "web"), "2:x=y:/root:root:/root:0:0:web");
    assert_eq!(exec(&["--env-file", "env", "-e", "A=1"], "web"), "1:file:/root:root:/root:0:0:web");
    assert_eq!(exec(&["-u", "nobody", "-w", "/tmp"], "web"), "::/:nobody:/tmp:65534:65534:web");
    assert_eq!(
        exec(&["-u", "12:34", "-w", "/"], "web").rsplit_once(':').unwrap().0.rsplit_once(":/:").unwrap().1,
        "12:34"
    );
    // A spark has its own, and a command may have others.
    let made = [
        "create",
        "own",
        "-e",
        "A=spark",
        "-e",
        "B=spark",
        "-u",
        "daemon",
        "-w",
        "/var",
        "--hostname",
        "box",
    ];
    machine.spark(&made).ok();
    assert!(exec(&[], "own").starts_with("spark:spark:"), "{}", exec(&[], "own"));
    assert!(exec(&[], "own").ends_with(":daemon:/var:1:1:box"), "{}", exec(&[], "own"));
    assert!(exec(&["-e", "A=mine", "-u", "0", "-w", "/tmp"], "own").ends_with(":root:/tmp:0:0:box"));
    assert!(exec(&["-e", "A=mine"], "own").starts_with("mine:spark:"));
    // Nothing of the caller's environment goes along.
    let mut command = machine.command(&["exec", "web", "env"]);
    let environment = Output::of("env", command.env("SECRET_OF_THE_HOST", "1")).ok();
    assert!(!environment.contains("SECRET_OF_THE_HOST") && environment.contains("PATH="), "{environment}");
}

#[test]
fn a_stopped_or_paused_spark_is_resumed_first() {
    let machine = machine();
    let state = || machine.spark(&["info", "web", "--json"]).json()["state"].as_str().unwrap().to_owned();
    for (verb, there) in [(&["stop", "web", "-t", "0"][..], "stopped"), (&["pause", "web"], "paused")] {
        machine.spark(verb).ok();
        assert_eq!(state(), there);
        assert_eq!(machine.spark(&["exec", "web", "echo", "here"]).ok(), "here\n");
        assert_eq!(state(), "running");
    }
    machine.spark(&["stop", "web", "-t", "0"]).ok();
    assert!(machine.spark(&["exec", "-d", "web", "true"]).ok().trim().parse::<u32>().is_ok());
    assert_eq!(state(), "running");
    // Many at once resume it once.
    machine.spark(&["stop", "web", "-t", "0"]).ok();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(machine.spark(&["exec", "web", "echo", "here"]).ok(), "here\n"));
        }
    });
}

/// Their owner may be killed at any moment: the next command clears up.
#[test]
fn an_ephemeral_spark_goes_with_its_command_also_after_a_sigkill() {
    let machine = machine();
    let mut command =
        Background::ready(&machine, &["exec", "-", "--", "sh", "-c", "echo ready; exec sleep 1003"]);
    assert_eq!(machine.spark(&["list", "-q"]).ok().lines().count(), 2);
    command.signal(Signal::KILL);
    command.child.wait().unwrap();
    let left = machine.spark(&["gc", "--dry-run", "--json"]).ok();
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "web\n", "{left}");
    assert_eq!(machine.spark(&["list", "--deleted", "--json"]).json(), serde_json::json!([]));
    assert!(wait_for(|| !processes_of_the_host("1003")), "what ran in it has ended");
}

fn processes_of_the_host(argument: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|p| std::fs::read(p.path().join("cmdline")).ok())
        .any(|line| line == format!("sleep\0{argument}\0").as_bytes())
}
