//! Exit statuses.

use crate::common::Machine;

fn machine() -> Machine {
    let machine = Machine::new();
    machine.spark(&["base", "bootstrap", "minimal"]).ok();
    machine
}

#[test]
fn exec_ends_as_its_command_did() {
    let machine = machine();
    machine.spark(&["create", "web"]).ok();
    for target in ["web", "-"] {
        for (expected, command) in [
            (0, "true"),
            (1, "exit 1"),
            (2, "exit 2"),
            (42, "exit 42"),
            (255, "exit 255"),
            (128 + 9, "kill -9 $$"),
            (128 + 15, "kill -15 $$"),
            (128 + 11, "kill -11 $$"),
            (128 + 13, "kill -13 $$"),
        ] {
            let output = machine.spark(&["exec", target, "--", "sh", "-c", command]);
            assert_eq!(output.status(), expected, "{target}: {command}: {}", output.stderr());
            assert_eq!(output.stderr(), "", "{target}: {command}");
        }
    }
    let left = machine.spark(&["list", "-q"]).ok();
    assert_eq!(left, "web\n");
}

#[test]
fn exec_and_console_tell_their_own_failures_from_the_commands() {
    let machine = machine();
    machine.spark(&["create", "web"]).ok();
    machine
        .spark(&[
            "exec",
            "web",
            "--",
            "sh",
            "-c",
            "echo x > /root/file; mkdir /root/dir; echo '#!/nope' > /root/script; chmod +x /root/script",
        ])
        .ok();
    for (expected, line) in [
        (124, "exec web --timeout 100ms sleep 1000"),
        (124, "exec - --timeout 100ms sleep 1000"),
        (125, "exec nope true"),
        (125, "console nope"),
        (125, "exec - --base nope true"),
        (125, "exec -P elsewhere web true"),
        (125, "exec web -w /nope true"),
        (125, "exec web -u nobody2 true"),
        (126, "exec web /root/file"),
        (126, "exec web /root/dir"),
        (127, "exec web -- /root/file/x"),
        (127, "exec web nope"),
        (127, "exec web /nope"),
        (127, "exec web /root/script"),
        (127, "console web -- nope"),
        (127, "exec - nope"),
        (127, "exec -d web nope"),
        (2, "exec web"),
        (2, "exec"),
        (2, "exec web --nonsense true"),
        (2, "exec Web true"),
        (2, "exec web --pids 64 true"),
        (2, "console Web"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let output = machine.spark(&words);
        assert_eq!(output.status(), expected, "{line}: {}", output.stderr());
        assert_eq!(output.stderr().is_empty(), expected == 124, "{line}: {}", output.stderr());
    }
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "web\n", "no spark of a command that failed is left");
}

#[test]
fn what_is_so_already_is_done_and_what_is_not_there_is_not() {
    let machine = machine();
    machine.spark(&["create", "web"]).ok();
    for (expected, line) in [
        (0, "resume web"),
        (0, "pause web"),
        (0, "pause web"),
        (0, "stop web -t 0"),
        (0, "stop web"),
        (0, "delete web"),
        (1, "delete web"),
        (1, "stop web"),
        (1, "base delete nope"),
        (1, "project delete nope"),
        (2, "stop"),
        (2, "delete Web"),
        (2, ""),
        (0, "help"),
        (0, "stop --help"),
        (0, "--version"),
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = machine.spark(&words);
        assert_eq!(output.status(), expected, "{line}: {}", output.stderr());
    }
}

#[test]
fn a_reader_that_leaves_ends_us_quietly_and_a_full_disk_does_not() {
    let machine = machine();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = machine.command(&["help"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(141), 0));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = machine.command(&["base", "list", "--json"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("no_space") && error.contains("standard output"), "{error}");
}
