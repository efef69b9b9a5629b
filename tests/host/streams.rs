//! What a command has as its standard streams: never a terminal of the host, nor a file of the host's to write.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use crate::common::{Machine, Output, wait_for};
use crate::inside::{USER, bare, machine, root, spark};
use crate::terminal::Seat;

fn web() -> Machine {
    let machine = machine();
    bare(&machine, "web", &[]);
    machine
}

/// A shell of the host's, as a person at a terminal has it, that runs `line` with `spark` in its `PATH`.
fn shell(machine: &Machine, line: &str) -> Command {
    let spark = machine.command(&[]);
    let mut shell = Command::new("bash");
    shell.args(["--norc", "-c", line, "bash"]).arg(spark.get_program());
    for (key, value) in spark.get_envs() {
        value.map(|value| shell.env(key, value));
    }
    spark.get_current_dir().map(|dir| shell.current_dir(dir));
    shell
}

#[test]
fn output_into_a_file_can_be_opened_anew_and_is_whole_and_in_order() {
    let machine = web();
    let path = machine.work().join("out");
    let say = "echo old; echo new >/dev/stdout; echo error >&2; echo again >/dev/stderr; exit 3";
    for user in ["0", USER] {
        let (out, err) = (File::create(&path).unwrap(), File::create(path.with_extension("err")).unwrap());
        let mut exec = machine.command(&["exec", "-u", user, "web", "--", "sh", "-c", say]);
        assert_eq!(exec.stdout(out).stderr(err).status().unwrap().code(), Some(3));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old\nnew\n", "{user}");
        assert_eq!(std::fs::read_to_string(path.with_extension("err")).unwrap(), "error\nagain\n");
    }
    // Both into one, behind what is there.
    let mut both = File::options().append(true).open(&path).unwrap();
    both.write_all(b"--\n").unwrap();
    let mut exec = machine.command(&["exec", "web", "--", "sh", "-c", say]);
    exec.stdout(both.try_clone().unwrap()).stderr(both).status().unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old\nnew\n--\nold\nnew\nerror\nagain\n");
    // All of much, and what the command wrote last.
    let large = File::create(&path).unwrap();
    let mut exec =
        machine.command(&["exec", "web", "--", "sh", "-c", "head -c 50000000 /dev/zero; echo end"]);
    assert!(exec.stdout(large).status().unwrap().success());
    let content = std::fs::read(&path).unwrap();
    assert!(content.len() == 50_000_004 && content.ends_with(b"\0end\n"), "{}", content.len());
    // A file as input is the command's as it is, with its position.
    std::fs::write(&path, "first\nsecond\n").unwrap();
    let mut exec = machine.command(&["exec", "web", "--", "cat"]);
    let output = Output::of("exec", exec.stdin(File::open(&path).unwrap()));
    assert_eq!(output.ok(), "first\nsecond\n");
}

#[test]
fn a_file_that_everybody_may_write_is_read_as_input_and_not_written() {
    let machine = web();
    let closed = machine.work().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    let path = closed.join("file");
    std::fs::write(&path, "skipped\nfirst\nsecond\n").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    for user in ["0", USER] {
        let script = "cat; echo planted >>/dev/stdin || : >/proc/self/fd/0; true";
        let mut exec = machine.command(&["exec", "-u", user, "web", "--", "sh", "-c", script]);
        let mut file = File::open(&path).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(8)).unwrap();
        assert_eq!(Output::of("exec", exec.stdin(file)).stdout(), "first\nsecond\n", "{user}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "skipped\nfirst\nsecond\n", "{user}");
    }
}

/// Who shares an open file description shares its locks, and the caller keeps it open.
#[test]
fn a_lock_on_the_input_ends_with_the_command_and_the_caller_goes_on_reading_where_that_has_come() {
    let machine = machine();
    spark(&machine, "web", &[]);
    let path = machine.work().join("input");
    std::fs::write(&path, "first\nsecond\nthird\n").unwrap();
    let mut input = File::open(&path).unwrap();
    for line in ["first\n", "second\n"] {
        let mut exec =
            machine.command(&["exec", "web", "--", "sh", "-c", "probe lock && read -r a && echo $a"]);
        let output = Output::of("exec", exec.stdin(input.try_clone().unwrap()));
        assert_eq!(output.ok(), line);
        let other = File::open(&path).unwrap();
        rustix::fs::flock(&other, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    }
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut input, &mut rest).unwrap();
    assert_eq!(rest, "third\n");
}

#[test]
fn output_that_the_host_has_no_room_for_is_an_error() {
    let machine = web();
    let full = machine.work().join("full");
    std::fs::create_dir(&full).unwrap();
    let mount =
        |args: &[&str]| assert!(Command::new("mount").args(args).arg(&full).status().unwrap().success());
    mount(&["-t", "tmpfs", "-o", "size=64k", "none"]);
    let out = File::create(full.join("out")).unwrap();
    // What writes on is told by a signal, as by a reader that has gone.
    let mut exec = machine.command(&["exec", "web", "--", "sh", "-c", "head -c 100000 /dev/zero; yes"]);
    let output = exec.stdout(out).stderr(Stdio::piped()).output().unwrap();
    // It has the file open still.
    drop(exec);
    let said = String::from_utf8_lossy(&output.stderr);
    let unmounted = Command::new("umount").arg(&full).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("what the command wrote") && said.contains("No space left"), "{said}");
}

/// Whoever reads from a terminal once reads from it again, when its user types at the next prompt.
#[test]
fn no_terminal_of_the_host_is_in_reach_of_a_command_or_of_what_it_leaves_behind() {
    let machine = web();
    // Reads for ever from what it was given, and from all that it can find.
    let thief = "for fd in $*; do test -t $fd && echo terminal $fd >> /stolen; done
        steal() { while [ \"$(dd bs=1 count=1 2>/dev/null | tee -a /stolen | wc -c)\" = 1 ]; do :; done; }
        for fd in $*; do ( eval \"exec <&$fd\"; exec >/dev/null 2>&1; steal ) & done
        ( exec >/dev/null 2>&1; exec </dev/tty && steal ) &
        echo done";
    std::fs::write(root(&machine, "web").join("thief"), thief).unwrap();
    let ways = [
        "exec web -- sh /thief 0 2 | cat",
        "exec web -- sh /thief 1 2 </dev/null",
        "exec -T web -- sh /thief 0 1 2",
    ];
    for redirected in ways {
        let exec = format!("\"$1\" {redirected}");
        let line = format!("{exec}; echo back; read -r typed; echo \"got $typed\"");
        let seat = Seat::of(shell(&machine, &line), None);
        seat.shows("back");
        seat.types("correct horse\n");
        seat.shows("got correct horse");
        let stolen = std::fs::read_to_string(root(&machine, "web").join("stolen")).unwrap_or_default();
        assert_eq!(stolen, "", "{redirected}");
    }
}

#[test]
fn what_is_typed_at_a_terminal_reaches_a_command_without_one() {
    let machine = web();
    let seat = Seat::of(
        shell(&machine, "\"$1\" exec -T web -- sh -c 'read -r a; echo \"<$a>\"; cat' | tr a-z A-Z"),
        None,
    );
    seat.types("hello\n");
    seat.shows("<HELLO>");
    seat.types("more\n");
    seat.shows("MORE");
    // The end of the input, as a terminal says it.
    seat.types("\u{4}");
    let mut seat = seat;
    assert!(wait_for(|| seat.child.try_wait().unwrap().is_some()));
}

/// An open file description has one set of flags for all who share it.
#[test]
fn flags_that_a_command_sets_on_a_pipe_or_a_socket_do_not_stay_for_the_caller() {
    let machine = machine();
    spark(&machine, "web", &[]);
    let flags = |fd: &OwnedFd| rustix::fs::fcntl_getfl(fd).unwrap();
    let pipe = || rustix::pipe::pipe().unwrap();
    let socket = || UnixStream::pair().map(|(a, b)| (OwnedFd::from(a), OwnedFd::from(b))).unwrap();
    for pair in [&pipe as &dyn Fn() -> (OwnedFd, OwnedFd), &socket] {
        for (line, status) in [("probe flags", 0), ("probe flags && kill -9 $$", 137)] {
            let ((input, _to), (_from, output), (_errors, error)) = (pair(), pair(), pair());
            let given = [input, output, error];
            let before = given.each_ref().map(flags);
            let [input, output, error] = given.each_ref().map(|fd| fd.try_clone().unwrap());
            let mut exec = machine.command(&["exec", "web", "--", "sh", "-c", line]);
            let ended = exec.stdin(input).stdout(output).stderr(error).status().unwrap();
            assert_eq!((ended.code(), given.each_ref().map(flags)), (Some(status), before), "{line}");
        }
    }
}
