//! The passphrase of the store's key, typed at a real pty.

use std::fs::File;

use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::LocalModes;

use crate::common::{Machine, Output, default_signals, without_terminal};
use crate::terminal::Seat;

const OLD: &str = "correct horse";
const NEW: &str = "battery st\u{e4}ple";

struct User {
    machine: Machine,
}

impl User {
    fn new() -> User {
        let user = User { machine: Machine::new() };
        std::fs::write(user.value(), "hunter2").unwrap();
        user
    }

    fn value(&self) -> std::path::PathBuf {
        self.machine.home().join("value")
    }

    fn identity(&self) -> Vec<u8> {
        std::fs::read(self.machine.home().join(".config/spark/identity.txt")).unwrap()
    }

    /// At a terminal, which the value is not typed at, and which a shell stays at: whoever leads a session takes the
    /// terminal's mode along when they end.
    fn seat(&self, args: &[&str]) -> Seat {
        let script = "trap : INT QUIT; \"$0\" \"$@\" < ~/value; s=$?; stty -a | grep -q -- '-echo ' && echo quiet; echo status-$s";
        self.shell("sh", &["-c", script], args)
    }

    /// What a shell does with a command.
    fn shell(&self, shell: &str, script: &[&str], args: &[&str]) -> Seat {
        let spark = self.machine.command(args);
        let mut command = std::process::Command::new(shell);
        command.args(script).arg(spark.get_program()).args(args).current_dir(self.machine.work());
        command.env_remove("SPARK_AGE_PASSPHRASE");
        default_signals(&mut command);
        command.envs(spark.get_envs().filter_map(|(key, value)| Some((key, value?))));
        Seat::of(command, None)
    }

    /// Without one.
    fn alone(&self, args: &[&str], phrase: Option<&str>) -> Output {
        let mut command = self.machine.command(args);
        command.stdin(File::open(self.value()).unwrap());
        command.envs(phrase.map(|phrase| ("SPARK_AGE_PASSPHRASE", phrase)));
        without_terminal(&mut command);
        Output::of(&args.join(" "), &mut command)
    }
}

/// Answers a question, for which the terminal has to be quiet. Returns what it showed.
#[track_caller]
fn answer(seat: &Seat, question: &str, text: &str) -> String {
    let shown = seat.shows(question);
    assert!(!echoes(seat), "the answer would be seen");
    seat.types(&format!("{text}\n"));
    shown
}

/// The shell's command.
fn child_of(seat: &Seat) -> i32 {
    let shell = seat.child.id();
    let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
    children.trim().parse().unwrap()
}

fn echoes(seat: &Seat) -> bool {
    rustix::termios::tcgetattr(&seat.master).unwrap().local_modes.contains(LocalModes::ECHO)
}

/// The exit status of `spark`, and what it said at the end.
#[track_caller]
fn ends(seat: Seat, status: i32) -> String {
    let shown = seat.shows(&format!("status-{status}\r"));
    for unseen in [OLD, NEW, "quiet"] {
        assert!(!shown.contains(unseen), "{shown}");
    }
    shown
}

#[test]
fn a_passphrase_is_typed_twice_when_it_is_set_and_once_when_it_is_used() {
    let user = User::new();
    user.alone(&["secrets", "set", "K"], None).ok();
    assert!(user.identity().starts_with(b"# made by spark"), "nobody is asked before they ask for it");
    let seat = user.seat(&["secrets", "passphrase"]);
    answer(&seat, "New passphrase of", OLD);
    answer(&seat, "The same again: ", "another");
    answer(&seat, "They differ.\r\nNew passphrase of", OLD);
    answer(&seat, "The same again: ", OLD);
    let shown = ends(seat, 0);
    assert!(shown.contains("identity.txt has a passphrase"), "{shown}");
    assert!(user.identity().starts_with(b"age-encryption.org/v1"));

    // Once for all that a command does, and what is typed is compared with nothing but the key.
    user.alone(&["secrets", "set", "GONE", "env://NOT_SET"], None).ok();
    let seat = user.seat(&["secrets", "check"]);
    answer(&seat, "Passphrase of", "wrong");
    answer(&seat, "That is not it.\r\nPassphrase of", OLD);
    let shown = ends(seat, 1);
    assert!(shown.contains("the variable is not set") && !shown.contains("Passphrase"), "{shown}");
    user.alone(&["secrets", "delete", "GONE"], None).ok();

    // The variable goes first, and is not asked about.
    user.alone(&["secrets", "check"], Some(OLD)).ok();
    let seat = user.seat(&["secrets", "set", "MORE"]);
    answer(&seat, "Passphrase of", OLD);
    ends(seat, 0);

    // Another one, with the same key.
    let seat = user.seat(&["secrets", "passphrase"]);
    answer(&seat, ": ", OLD);
    answer(&seat, "New passphrase of", NEW);
    answer(&seat, "The same again: ", NEW);
    ends(seat, 0);
    user.alone(&["secrets", "check"], Some(NEW)).ok();
    user.alone(&["secrets", "check"], Some(OLD)).fails_with_text("cannot decrypt the identity file");

    // And none.
    let seat = user.seat(&["secrets", "passphrase"]);
    answer(&seat, ": ", NEW);
    answer(&seat, "New passphrase of", "");
    answer(&seat, "The same again: ", "");
    let shown = ends(seat, 0);
    assert!(shown.contains("has no passphrase"), "{shown}");
    user.alone(&["secrets", "check"], None).ok();
}

/// All projects of an installation have one store.
#[test]
fn who_is_asked_for_a_passphrase_keeps_no_other_command_waiting() {
    let user = User::new();
    user.alone(&["secrets", "set", "K"], Some(OLD)).ok();
    let seat = user.seat(&["secrets", "set", "SLOW"]);
    seat.shows("Passphrase of");
    user.alone(&["secrets", "set", "OTHER"], Some(OLD)).ok();
    user.alone(&["secrets", "delete", "OTHER"], Some(OLD)).ok();
    seat.types(&format!("{OLD}\n"));
    ends(seat, 0);
    user.alone(&["secrets", "check"], Some(OLD)).ok();
}

#[test]
fn without_a_terminal_the_error_says_what_to_do() {
    let user = User::new();
    user.alone(&["secrets", "set", "K"], Some(OLD)).ok();
    let refused = user.alone(&["--json", "secrets", "check"], None);
    assert!(refused.stdout().contains("is encrypted"), "{}", refused.stdout());
    assert!(refused.stdout().contains("give its passphrase in SPARK_AGE_PASSPHRASE"), "{}", refused.stdout());
    let refused = user.alone(&["--json", "secrets", "passphrase"], Some(OLD));
    assert_eq!(
        refused.fails_with("secret"),
        "a new passphrase is asked for at a terminal, and there is none"
    );
}

#[test]
fn whatever_ends_a_question_leaves_the_terminal_as_it_was() {
    let user = User::new();
    user.alone(&["secrets", "set", "K"], Some(OLD)).ok();
    let before = user.identity();
    for (signal, typed) in
        [(Signal::INT, Some("\x03")), (Signal::QUIT, Some("\x1c")), (Signal::TERM, None), (Signal::HUP, None)]
    {
        let seat = user.seat(&["secrets", "check"]);
        seat.shows("Passphrase of");
        assert!(!echoes(&seat));
        match typed {
            Some(key) => seat.types(key),
            None => kill_process(Pid::from_raw(child_of(&seat)).unwrap(), signal).unwrap(),
        }
        ends(seat, 128 + signal.as_raw());
    }
    // A terminal that ends the line with nothing, and one who does not know.
    let seat = user.seat(&["secrets", "check"]);
    seat.shows("Passphrase of");
    seat.types("\x04");
    let shown = ends(seat, 1);
    assert!(shown.contains("no passphrase was given"), "{shown}");
    let seat = user.seat(&["secrets", "check"]);
    for _ in 0..3 {
        answer(&seat, "Passphrase of", "wrong");
    }
    let shown = ends(seat, 1);
    assert!(shown.contains("cannot decrypt the identity file"), "{shown}");
    assert!(!shown.contains("Passphrase of"), "{shown}");
    assert_eq!(user.identity(), before);
}

#[test]
fn a_question_that_is_stopped_is_asked_again() {
    let user = User::new();
    user.alone(&["secrets", "set", "K"], Some(OLD)).ok();
    let script = "\"$0\" \"$@\"; echo; stty -a | grep -o -- '-*echo '; fg; echo status-$?";
    let seat = user.shell("bash", &["--norc", "-i", "-c", script], &["secrets", "check"]);
    seat.shows("Passphrase of");
    assert!(!echoes(&seat));
    seat.types("\x1a");
    // The shell says which command goes on.
    let shown = answer(&seat, "\"$@\"\r\nPassphrase of", OLD);
    assert!(shown.contains("\r\necho \r\n"), "the terminal stays quiet: {shown}");
    ends(seat, 0);
}

#[test]
fn a_value_is_typed_where_nothing_else_gives_it() {
    let user = User::new();
    let script = "\"$0\" \"$@\"; echo status-$?";
    let set = || user.shell("sh", &["-c", script], &["secrets", "set", "K:file"]);
    let seat = set();
    answer(&seat, "Value of K: ", NEW);
    ends(seat, 0);
    user.alone(&["base", "bootstrap", "minimal"], None).ok();
    assert_eq!(
        user.alone(&["exec", "-", "cat", "/run/secrets/K"], None).ok(),
        NEW,
        "without the end of the line"
    );
    let seat = set();
    answer(&seat, "Value of K: ", "");
    assert!(ends(seat, 1).contains("the value of K is empty"));
}
