//! Terminals: the user's is one made here, and a person is played who types and reads.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use crate::common::{Killed, Machine, PATIENCE};

fn machine() -> Machine {
    let machine = Machine::new();
    machine.spark(&["base", "bootstrap", "minimal"]).ok();
    machine.spark(&["create", "web"]).ok();
    machine
}

/// A terminal with a `spark` on it.
pub(crate) struct Screen {
    keyboard: File,
    /// The side that programs have: kept, to look at its modes when they have gone.
    terminal: OwnedFd,
    child: Killed,
    /// All that was shown so far.
    shown: String,
    /// Up to where it was read.
    read: usize,
    before: String,
}

impl Screen {
    pub(crate) fn new(machine: &Machine, args: &[&str]) -> Screen {
        Screen::with(machine, args, None, None)
    }

    /// With another standard input or output than the terminal.
    fn with(
        machine: &Machine,
        args: &[&str],
        input: Option<PipeReader>,
        output: Option<PipeWriter>,
    ) -> Screen {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let path = ptsname(&keyboard, Vec::new()).unwrap().into_string().unwrap();
        // O_NOCTTY: this process has none, and wants none.
        let terminal = File::options().read(true).write(true).custom_flags(0o400).open(path).unwrap();
        resize(&keyboard, 30, 100);
        let before = modes(&terminal);
        let spark = machine.command(args);
        // The leader of a session on this terminal, as a shell would have made it.
        let mut command = Command::new("setsid");
        command
            .args(["--wait"].iter().chain(input.is_none().then_some(&"--ctty")))
            .arg(spark.get_program())
            .args(spark.get_args());
        for (key, value) in spark.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command.current_dir(machine.work()).env("TERM", "vt220");
        let stream = || terminal.try_clone().unwrap();
        command.stdin(stream()).stdout(stream()).stderr(stream());
        if let Some(input) = input {
            command.stdin(input);
        }
        if let Some(output) = output {
            command.stdout(output);
        }
        crate::common::default_signals(&mut command);
        let child = command.spawn().unwrap();
        Screen {
            keyboard: keyboard.into(),
            terminal: terminal.into(),
            child: Killed(child),
            shown: String::new(),
            read: 0,
            before,
        }
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until a text is shown, after what was waited for before.
    #[track_caller]
    pub(crate) fn sees(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.shown[self.read..].contains(text) {
            assert!(Instant::now() < deadline, "`{text}` is not shown:\n{}", &self.shown[self.read..]);
            self.look();
        }
        self.read += self.shown[self.read..].find(text).unwrap() + text.len();
    }

    /// Gives the terminal another size.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        resize(&self.keyboard, rows, columns);
    }

    /// Reads what there is, and says whether there was something.
    fn look(&mut self) -> bool {
        let moment = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let ready = rustix::event::poll(&mut [PollFd::new(&self.keyboard, PollFlags::IN)], Some(&moment));
        let mut buffer = [0; 4096];
        if ready.unwrap() > 0
            && let Ok(n) = rustix::io::read(&self.keyboard, &mut buffer)
        {
            self.shown += &String::from_utf8_lossy(&buffer[..n]);
            return n > 0;
        }
        false
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// How it ends, which it has to do soon; the terminal's modes are what they were.
    #[track_caller]
    pub(crate) fn ends(mut self) -> (i32, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            self.look();
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.shown);
        };
        // The kernel may be passing on the last of it still.
        let mut silent = 0;
        while silent < 5 {
            silent = if self.look() { 0 } else { silent + 1 };
        }
        assert_eq!(modes(&self.terminal), self.before, "the terminal is left in another mode");
        let flags = rustix::fs::fcntl_getfl(&self.terminal).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "the terminal is left non-blocking");
        (status.code().expect("spark itself was killed"), std::mem::take(&mut self.shown))
    }
}

fn modes(terminal: impl AsFd) -> String {
    format!("{:?}", tcgetattr(terminal).unwrap())
}

fn resize(terminal: impl AsFd, rows: u16, columns: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

const PROMPT: &str = "web:~# ";

#[test]
fn a_console_is_a_login_shell_on_a_terminal_of_its_own() {
    let machine = machine();
    let mut screen = Screen::new(&machine, &["console", "web"]);
    screen.sees(PROMPT);
    screen.type_in("tty; echo $0 $TERM $HOME $PWD; exit 7\r");
    screen.sees("/dev/pts/0");
    screen.sees("-sh vt220 /root /root");
    assert_eq!(screen.ends().0, 7);
    // Another shell, with arguments.
    let (status, shown) =
        Screen::new(&machine, &["console", "web", "--", "sh", "-c", "echo $0; exit 3"]).ends();
    assert_eq!((status, shown.contains("-sh")), (3, false), "{shown}");
    // In a spark of its own.
    let mut screen = Screen::new(&machine, &["console", "-"]);
    screen.sees("# ");
    screen.type_in("exit 4\r");
    assert_eq!(screen.ends().0, 4);
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "web\n");
}

#[test]
fn exec_has_a_terminal_where_the_caller_has_one_or_where_told() {
    let machine = machine();
    let tty = |args: &[&str]| Screen::new(&machine, &[&["exec"], args].concat()).ends().1;
    assert!(tty(&["web", "tty"]).contains("/dev/pts/"));
    assert!(tty(&["-t", "web", "tty"]).contains("/dev/pts/"));
    assert!(tty(&["-T", "web", "--", "sh", "-c", "tty -s || echo none"]).contains("none"));
    // Output that goes elsewhere is none, unless told.
    let to_pipe = |args: &[&str]| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let screen = Screen::with(&machine, &[&["exec"], args].concat(), None, Some(writer));
        let status = screen.ends().0;
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        (status, text)
    };
    assert_eq!(to_pipe(&["web", "--", "sh", "-c", "test -t 1 || echo none"]), (0, "none\n".into()));
    assert_eq!(to_pipe(&["-t", "web", "--", "sh", "-c", "test -t 1 && echo one"]), (0, "one\r\n".into()));
}

#[test]
fn the_window_size_is_the_callers_and_follows_it() {
    let machine = machine();
    let mut screen = Screen::new(&machine, &["console", "web"]);
    screen.sees(PROMPT);
    screen.type_in("stty size\r");
    screen.sees("\r\n30 100\r\n");
    screen.sees(PROMPT);
    // A program that draws is told.
    screen.type_in("sh -c 'trap \"stty size; exit\" WINCH; echo set; while :; do sleep 0.02; done'\r");
    screen.sees("\r\nset\r\n");
    resize(&screen.keyboard, 44, 132);
    screen.sees("44 132");
    screen.sees(PROMPT);
    screen.type_in("exit 0\r");
    assert_eq!(screen.ends().0, 0);
}

#[test]
fn keys_interrupt_suspend_and_end() {
    let machine = machine();
    let mut screen = Screen::new(&machine, &["console", "web"]);
    screen.sees(PROMPT);
    screen.type_in("sh -c 'echo go; exec sleep 1000'\r");
    screen.sees("\r\ngo\r\n");
    screen.type_in("\x03");
    screen.sees(PROMPT);
    screen.type_in("echo status=$?\r");
    screen.sees("\r\nstatus=130\r\n");
    screen.sees(PROMPT);
    screen.type_in("sh -c 'echo go; exec sleep 1000'\r");
    screen.sees("\r\ngo\r\n");
    screen.type_in("\x1a");
    screen.sees("Stopped");
    screen.sees(PROMPT);
    screen.type_in("bg; jobs; kill %1; wait; echo over\r");
    screen.sees("Running");
    screen.sees("\r\nover\r\n");
    screen.sees(PROMPT);
    screen.type_in("\x04");
    screen.ends();
}

#[test]
fn a_terminal_is_put_back_however_it_ends() {
    let machine = machine();
    // The inner shell is killed.
    let mut screen = Screen::new(&machine, &["console", "web"]);
    screen.sees(PROMPT);
    screen.type_in("kill -9 $$\r");
    assert_eq!(screen.ends().0, 128 + 9);
    // It leaves the terminal in a mess.
    let mut screen =
        Screen::new(&machine, &["exec", "web", "--", "sh", "-c", "stty raw -echo; echo ready; exit 5"]);
    screen.sees("ready");
    assert_eq!(screen.ends().0, 5);
    // Spark is told to end.
    for (signal, expected) in [(Signal::TERM, 128 + 15), (Signal::HUP, 128 + 1), (Signal::INT, 128 + 2)] {
        let mut screen =
            Screen::new(&machine, &["exec", "web", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
        screen.sees("ready");
        screen.signal(signal);
        assert_eq!(screen.ends().0, expected, "{signal:?}");
    }
    // A shell ends when its window is closed.
    let mut screen = Screen::new(&machine, &["console", "web"]);
    screen.sees(PROMPT);
    screen.signal(Signal::HUP);
    assert_eq!(screen.ends().0, 128 + 1);
    // The spark is stopped, or goes altogether.
    for end in [&["stop", "web"][..], &["delete", "-f", "web"]] {
        let mut screen = Screen::new(&machine, &["console", "web"]);
        screen.sees(PROMPT);
        machine.spark(end).ok();
        assert!(screen.ends().0 > 128);
    }
    // The command is not there at all, and the message is a whole line.
    machine.spark(&["create", "web"]).ok();
    let (status, shown) = Screen::new(&machine, &["exec", "-t", "web", "nope"]).ends();
    assert_eq!(status, 127);
    assert!(
        shown.contains("error: cannot run `nope` in spark `web`") && shown.ends_with("\r\n"),
        "{shown:?}"
    );
}

#[test]
fn much_output_comes_whole_before_the_end() {
    let machine = machine();
    let screen = Screen::new(&machine, &["exec", "-t", "web", "--", "sh", "-c", "seq 1 20000; echo end"]);
    let (status, shown) = screen.ends();
    assert_eq!(status, 0);
    let lines: Vec<&str> = shown.split("\r\n").collect();
    assert_eq!(lines.len(), 20_002, "{:?}", &lines[lines.len().saturating_sub(3)..]);
    assert_eq!(lines[19_999..], ["20000", "end", ""]);
}

#[test]
fn input_from_a_pipe_reaches_a_terminal_and_ends_there() {
    let machine = machine();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let screen = Screen::with(
        &machine,
        &["exec", "-t", "web", "--", "sh", "-c", "cat; echo done"],
        Some(reader),
        None,
    );
    writer.write_all(b"one\ntwo").unwrap();
    drop(writer);
    let (status, shown) = screen.ends();
    assert_eq!(status, 0);
    // The terminal outside stays as it is, for its keys are not the command's: it adds its own carriage returns.
    assert!(shown.contains("one\r") && shown.contains("two") && shown.contains("done\r"), "{shown:?}");
}

/// Text of another's on a terminal of ours could paint over what is there.
#[test]
fn what_came_from_inside_is_escaped_on_a_terminal_outside_of_its_own() {
    let machine = machine();
    machine.spark(&["exec", "-d", "web", "--", "printf", "\\033[2Jred\\n"]).ok();
    assert!(crate::common::wait_for(|| machine.spark(&["logs", "web"]).ok() == "\x1b[2Jred\n"));
    let shown = Screen::new(&machine, &["logs", "web"]).ends().1;
    assert_eq!(shown, "\\u{1b}[2Jred\r\n");
}
