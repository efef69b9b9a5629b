//! Images of a process that holds values: what the kernel writes when it crashes, and what a debugger saves of it.
//!
//! `gcore` leaves out what the kernel would, so its images say what is kept of a value beside the pages that are made for
//! it, where it could be swapped. With `-a` it leaves out nothing, which shows that the process did hold the value.

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Resource, Signal};
use serde_json::json;

use crate::canary::Forms;
use crate::common::vault::{Connect, PassStore, TOKEN, Vault};
use crate::common::{Machine, Output, PATIENCE, wait_for};

const PARTS: usize = 100;

/// A value through every source that is not the environment, and what each of them needs.
struct Sources {
    machine: Machine,
    /// What the value is made of, many times: memory that was given back loses its beginning, and may keep the rest.
    part: String,
    vault: Vault,
    pass: PassStore,
}

impl Sources {
    fn new() -> Sources {
        let machine = Machine::new().with_base();
        let part = format!("DUMPED-{}", sparks::domain::spark::Id::generate());
        let value = part.repeat(PARTS);
        let file = machine.home().join("value");
        std::fs::write(&file, &value).unwrap();
        let vault = Vault::new(&machine, json!({"v": {"i": {"f": value, "g": value}}}));
        let pass = PassStore::new("entry", &value);
        machine.configure(&format!("[secret-commands]\nvalue = [\"cat\", \"{}\"]\n", file.display()));
        let sources = Sources { machine, part, vault, pass };
        for (key, reference) in [
            ("OP", Some("op://v/i/f")),
            ("OTHER", Some("op://v/i/g")),
            ("PASS", Some("pass://entry")),
            ("CMD", Some("cmd://value")),
            ("FILE", Some(&*format!("file://{}", file.display()))),
            ("STORED", None),
        ] {
            let args: Vec<&str> = ["secrets", "set", key].into_iter().chain(reference).collect();
            assert!(sources.command(&args).status().unwrap().success());
        }
        sources
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.vault.command(&self.machine, args);
        self.pass.environment(&mut command);
        command.stdin(std::fs::File::open(self.machine.home().join("value")).unwrap());
        command.env("CONTROL", control()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Starts a command that stops at a fault point, itself or a helper of it.
    fn stopped(&self, args: &[&str], point: &str) -> Stopped {
        Stopped::at(self.command(args).env("SPARK_FAULT", format!("{point}=stop")))
    }
}

/// What is in every image that deserves the name: a variable.
fn control() -> String {
    format!("CONTROL-{}", std::process::id())
}

/// A command that has stopped.
pub(crate) struct Stopped {
    child: Child,
    /// The process of it that has.
    pid: i32,
}

impl Stopped {
    pub(crate) fn at(command: &mut Command) -> Stopped {
        let child = raise_core_limit(command).spawn().unwrap();
        let command = child.id() as i32;
        let mut stopped = Stopped { child, pid: command };
        let find = || family(command).into_iter().find(|pid| state(*pid) == Some('T'));
        assert!(wait_for(|| find().is_some()), "nothing stops there");
        stopped.pid = find().unwrap();
        if stopped.pid != command {
            // It would give up a helper that has been stopped, and end it.
            send(command, Signal::STOP);
        }
        stopped
    }

    /// Has it go on to its end.
    pub(crate) fn goes_on(mut self) {
        for pid in [self.pid, self.child.id() as i32] {
            send(pid, Signal::CONT);
        }
        let ended = self.child.wait().unwrap();
        assert!(ended.success(), "{ended:?}");
    }

    fn image(&self, all: bool) -> Vec<u8> {
        image(self.pid, all)
    }

    /// Has it crash where it stands. Whether the kernel wrote an image of it.
    fn crashes(mut self) -> bool {
        assert_eq!(self.pid, self.child.id() as i32, "a helper's end is not seen here");
        for signal in [Signal::ABORT, Signal::CONT] {
            send(self.pid, signal);
        }
        let ended = self.child.wait().unwrap();
        assert_eq!(ended.signal(), Some(libc::SIGABRT), "{ended:?}");
        ended.core_dumped()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // The helper before who waits for it: its number is nobody else's as long as it stands there.
        if self.pid != self.child.id() as i32 && state(self.pid) == Some('T') {
            send(self.pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(pid: i32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn raise_core_limit(command: &mut Command) -> &mut Command {
    let limit = rustix::process::Rlimit { current: None, maximum: None };
    // SAFETY: setrlimit(2) is safe between fork and exec.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || Ok(rustix::process::setrlimit(Resource::Core, limit)?))
    }
}

/// A process and those that it started.
fn family(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    [pid].into_iter().chain(children.flat_map(family)).collect()
}

fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

/// What a debugger saves of a process. Root may do that; nobody else may.
fn image(pid: i32, all: bool) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("gcore");
    command.arg("-o").arg(dir.path().join("image")).args(all.then_some("-a")).arg(pid.to_string());
    let output = command.output().expect("this test needs gcore: `apt-get install gdb`");
    let file = dir.path().join(format!("image.{pid}"));
    let image =
        std::fs::read(file).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    memory(&image)
}

/// The segments of an ELF file of 64 bits that are memory. The notes have the registers, which hold what was copied last.
fn memory(elf: &[u8]) -> Vec<u8> {
    let number = |at: usize, size: usize| {
        elf[at..at + size].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    assert_eq!((&elf[..4], elf[4], elf[5]), (&b"\x7fELF"[..], 2, 1));
    let headers = (0..number(56, 2)).map(|n| number(32, 8) + n * number(54, 2));
    let loaded = headers.filter(|at| number(*at, 4) == 1).map(|at| (number(at + 8, 8), number(at + 32, 8)));
    loaded.flat_map(|(from, size)| elf[from..from + size].iter().copied()).collect()
}

#[track_caller]
fn holds_without_a_trace(sources: &Sources, stopped: &Stopped) {
    let line = std::fs::read(format!("/proc/{}/cmdline", stopped.pid)).unwrap();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    let (forms, control) = (Forms::of(&sources.part), Forms::of(&control()));
    let (image, all) = (stopped.image(false), stopped.image(true));
    let identity =
        std::fs::read_to_string(sources.machine.home().join(".config/spark/identity.txt")).unwrap();
    // Without its first letters, which all keys have.
    let key = identity.lines().find_map(|line| line.strip_prefix("AGE-SECRET-KEY-1")).unwrap();
    assert_eq!(Forms::of(key).count(&image), 0, "the key of the store is in the image of {line}");
    assert!(forms.count(&all) > 0, "{line} does not hold the value there");
    assert!(control.count(&image) > 0, "there is nothing in the image");
    assert_eq!(forms.count(&image), 0, "the value is in the image of {line}");
}

#[test]
fn no_image_of_a_process_that_holds_values_has_one() {
    let sources = Sources::new();
    for (args, point) in [
        (&["create", "one"][..], "create.staged"),
        (&["create", "two"], "secrets-start.filled"),
        (&["secrets", "set", "STORED"], "secrets-set.stored"),
    ] {
        holds_without_a_trace(&sources, &sources.stopped(args, point));
    }
}

#[test]
fn of_a_variable_of_the_caller_there_is_no_second_copy() {
    let sources = Sources::new();
    let value = "VARIABLE-0a9d3f5c17";
    let mut command = sources.command(&["create", "web", "--secret", "V=env://SOURCE"]);
    let stopped =
        Stopped::at(command.env("SOURCE", value.repeat(PARTS)).env("SPARK_FAULT", "create.staged=stop"));
    // Its own environment has it, as those of all have that the caller runs.
    assert_eq!(Forms::of(value).count(&stopped.image(false)), PARTS);
    assert_eq!(Forms::of(value).count(&stopped.image(true)), 2 * PARTS);
}

/// Passes connections on to a server, the first few of them.
fn hold_after(most: usize, address: &str) -> (String, std::sync::mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = format!("http://{}", listener.local_addr().unwrap());
    let to = address.trim_start_matches("http://").to_owned();
    let (held_to, held) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().flatten().enumerate() {
            if n >= most {
                let _ = held_to.send(stream);
                continue;
            }
            let server = TcpStream::connect(&to).unwrap();
            let (mut request, mut answer) = (stream.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut request, &mut answer));
            let _ = std::io::copy(&mut &server, &mut &stream);
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    });
    (own, held)
}

#[test]
fn who_asks_a_connect_server_is_a_process_of_its_own_that_is_not_swapped() {
    let machine = Machine::new();
    let value = format!("FETCHED-{}", sparks::domain::spark::Id::generate());
    let item = json!({"fields": [{"id": "f", "label": "f", "value": value}]});
    let server = Connect::serve(vec![("v", "a", item.clone()), ("v", "b", item)]);
    // A vault, and an item by name and id: it has the first value when it asks for the second.
    let (address, held) = hold_after(3, &server.address);
    let mut command =
        machine.command(&["exec", "-", "--secret", "A=op://v/a/f", "--secret", "B=op://v/b/f", "true"]);
    command.env("PATH", machine.work()).env("OP_CONNECT_HOST", address).env("OP_CONNECT_TOKEN", TOKEN);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let request = held.recv_timeout(PATIENCE).unwrap();
    let of_it = family(child.id() as i32);
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", of_it[1])).unwrap();
    let (here, there) = (image(of_it[0], true), image(of_it[1], false));
    drop(request);
    child.kill().unwrap();
    child.wait().unwrap();
    let forms = Forms::of(&value);
    assert_eq!((forms.count(&here), forms.count(&there) > 0), (0, true), "only who asks has it yet");
    // All that it can write to.
    let mut writable = false;
    let mut locked = 0;
    for line in maps.lines() {
        match line.strip_prefix("VmFlags:") {
            Some(flags) if writable => {
                assert!(flags.contains(" lo"), "{maps}");
                locked += 1;
            }
            None if line.split(' ').nth(1).is_some_and(|may| may.ends_with('p')) => {
                writable = line.contains(" rw")
            }
            _ => {}
        }
    }
    assert!(locked > 2, "{maps}");
}

#[test]
fn who_waits_for_a_command_with_secrets_has_forgotten_them() {
    let sources = Sources::new();
    sources.machine.spark(&["create", "web", "-P", "none"]).ok();
    let file = format!("X=file://{}", sources.machine.home().join("value").display());
    let mut command =
        sources.command(&["exec", "-P", "none", "web", "--secret", &file, "--", "sleep", "1000"]);
    let mut child = command.spawn().unwrap();
    let pid = child.id() as i32;
    let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let runs = wait_for(|| family(pid).iter().any(|pid| name(pid) == "sleep\n"));
    let (image, all) = (image(pid, false), image(pid, true));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(runs);
    assert!(Forms::of(&control()).count(&image) > 0, "there is nothing in the image");
    assert_eq!(Forms::of(&sources.part).count(&all), 0);
}

#[test]
fn a_crash_inside_writes_no_variable_into_the_root_filesystem() {
    let sources = Sources::new();
    sources.command(&["create", "web"]).status().unwrap();
    let exec = |script: &str| {
        let mut command = sources.machine.command(&["exec", "-w", "/root", "web", "--", "sh", "-c", script]);
        Output::of("exec", raise_core_limit(&mut command))
    };
    // In bytes: with 0 the kernel would run the program that a `core_pattern` names (core(5)), and a shell shows both as 0.
    let limits = exec("grep 'core file size' /proc/self/limits").ok();
    let soft_and_hard: Vec<&str> = limits.split_whitespace().skip(4).take(2).collect();
    assert_eq!(soft_and_hard[0], "1", "{limits}");
    assert!(!["0", "1"].contains(&soft_and_hard[1]), "{limits}: it may have one that asks for it");
    // The process has what it would write.
    assert_eq!(exec("test -n \"$FILE\" && kill -ABRT $$").status(), 128 + libc::SIGABRT);
    let root = sources.machine.pool().join("projects/default/sparks/web/root/root");
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    // Where one is wanted, and the host has it written to the working directory, it is there.
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if !pattern.contains(['/', '|']) {
        exec("ulimit -c unlimited; kill -ABRT $$");
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1, "this host writes none there anyway");
    }
}

#[test]
fn the_kernel_writes_no_image_of_a_process_that_holds_a_value() {
    let sources = Sources::new();
    // What another project's spark lacks is all that is different.
    let without = sources.stopped(&["create", "web", "-P", "none"], "create.staged");
    assert!(without.crashes(), "this host writes no image of anything");
    for (args, point) in
        [(&["create", "web"][..], "create.staged"), (&["secrets", "set", "STORED"], "secrets-set.stored")]
    {
        assert!(!sources.stopped(args, point).crashes(), "{args:?}");
    }
}
