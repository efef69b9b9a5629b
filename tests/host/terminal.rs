//! Terminals: `console` and `exec -t` on a real pty.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::common::{Killed, Machine, wait_for};
use crate::inside::{USER, machine, spark};

/// A user at a terminal.
pub(crate) struct Seat {
    pub(crate) master: OwnedFd,
    pub(crate) child: Killed,
    screen: Arc<Mutex<String>>,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Seat {
    fn new(machine: &Machine, args: &[&str]) -> Seat {
        Seat::of(machine.command(args), None)
    }

    /// With a standard input that is not the terminal.
    pub(crate) fn of(mut command: Command, input: Option<std::fs::File>) -> Seat {
        let master =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        rustix::termios::tcsetwinsize(&master, size(30, 90)).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let stream = || slave.as_fd().try_clone_to_owned().unwrap();
        command.stdin(input.map_or_else(stream, OwnedFd::from)).stdout(stream()).stderr(stream());
        // SAFETY: setsid(2) and ioctl(2) are safe between fork and exec.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(1, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut reader, shown) = (std::fs::File::from(master.try_clone().unwrap()), screen.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Seat { master, child: Killed(child), screen }
    }

    pub(crate) fn types(&self, text: &str) {
        rustix::io::write(&self.master, text.as_bytes()).unwrap();
    }

    /// Waits until the screen has shown something since it was last cleared, and clears it.
    #[track_caller]
    pub(crate) fn shows(&self, text: &str) -> String {
        let there = wait_for(|| self.screen.lock().unwrap().contains(text));
        let screen = std::mem::take(&mut *self.screen.lock().unwrap());
        assert!(there, "`{text}` does not appear: {screen}");
        screen
    }
}

#[test]
fn a_console_has_a_terminal_of_its_own_with_job_control_interrupt_and_resize() {
    let machine = machine();
    spark(&machine, "web", &[]);
    for user in ["0", USER] {
        let mut seat = Seat::new(&machine, &["exec", "-u", user, "web", "--", "/bin/sh", "-i"]);
        seat.types("tty; stat -c %u:%g $(tty); echo 'rea'dy\n");
        let shown = seat.shows("ready\r");
        let id = user.split(':').next().unwrap();
        assert!(shown.contains("/dev/pts/0") && shown.contains(&format!("{id}:5")), "{shown}");
        assert!(!shown.contains("job control turned off"), "{shown}");
        seat.types("echo tty > /dev/tty; stty size; echo siz'e'd\n");
        assert!(seat.shows("sized\r").contains("30 90"));
        rustix::termios::tcsetwinsize(&seat.master, size(41, 121)).unwrap();
        assert!(wait_for(|| {
            seat.types("stty size\n");
            seat.screen.lock().unwrap().contains("41 121\r")
        }));
        // ^C ends the command, and not the shell or us.
        seat.types("sleep 100; echo status-$?\n");
        assert!(wait_for(|| runs(&machine, "sleep")));
        seat.types("\x03");
        assert!(wait_for(|| !runs(&machine, "sleep")));
        // ^Z stops it, and it is there still.
        seat.types("cat\n");
        assert!(wait_for(|| runs(&machine, "cat")));
        seat.types("echoed\n");
        seat.shows("echoed\r\nechoed");
        seat.types("\x1a");
        seat.shows("Stopped");
        seat.types("fg\n");
        // What is typed before belongs to the shell.
        seat.shows("fg\r\ncat\r");
        seat.types("again\n");
        seat.shows("again\r\nagain");
        seat.types("\x04");
        seat.types("exit 7\n");
        assert_eq!(seat.child.wait().unwrap().code(), Some(7));
    }
}

/// Whether a command of this name runs in the spark.
fn runs(machine: &Machine, name: &str) -> bool {
    let pids = std::fs::read_to_string(cgroup(machine)).unwrap();
    let line = |pid: &str| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    pids.split_whitespace().any(|pid| line(pid).starts_with(name.as_bytes()))
}

fn cgroup(machine: &Machine) -> std::path::PathBuf {
    let info = machine.spark(&["info", "web", "--json"]).json();
    let below = info["oci"]["cgroup"].as_str().unwrap().trim_start_matches('/').to_owned();
    let fs = std::path::Path::new("/sys/fs/cgroup");
    let v1 = fs.join("pids").join(&below);
    if v1.exists() { v1 } else { fs.join(below) }.join("cgroup.procs")
}

#[test]
fn the_callers_terminal_is_out_of_reach_without_one_of_its_own() {
    let machine = machine();
    spark(&machine, "web", &[]);
    let script = "(echo x > /dev/tty) 2>&1; stty -F /dev/tty size 2>&1; cut -d' ' -f7 /proc/self/stat";
    let mut seat = Seat::new(&machine, &["exec", "-T", "web", "--", "/bin/sh", "-c", script]);
    assert!(seat.child.wait().unwrap().success());
    let shown = seat.shows("\n0\r");
    assert_eq!(shown.matches("No such device or address").count(), 2, "{shown}");
}

#[test]
fn a_terminal_hangs_up_when_its_client_is_killed() {
    let machine = machine();
    spark(&machine, "web", &[]);
    let mut seat =
        Seat::new(&machine, &["exec", "-t", "web", "--", "sh", "-c", "echo rea'dy'; exec sleep 1010"]);
    seat.shows("ready\r");
    assert!(wait_for(|| runs(&machine, "sleep")));
    seat.child.kill().unwrap();
    assert!(wait_for(|| !runs(&machine, "sleep")));
}

/// Its terminal takes some kilobytes, and what is typed after them stays at the user's.
#[test]
fn a_shell_that_never_reads_its_terminal_ends_on_signals_and_by_itself() {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let machine = machine();
    spark(&machine, "web", &[]);
    let full = |seat: &Seat| {
        let quiet = Timespec { tv_sec: 1, tv_nsec: 0 };
        for _ in 0..4096 {
            let mut fds = [PollFd::new(&seat.master, PollFlags::OUT)];
            if rustix::event::poll(&mut fds, Some(&quiet)).unwrap() == 0 {
                return;
            }
            rustix::io::write(&seat.master, &[b'x'; 255]).unwrap();
        }
        panic!("a megabyte was taken from a terminal that nobody reads");
    };
    let script = "stty raw -echo; trap 'exit 7' TERM; echo rea'dy'; while :; do sleep 0.05; done";
    let mut seat = Seat::new(&machine, &["console", "web", "--", "sh", "-c", script]);
    seat.shows("ready");
    full(&seat);
    let pid = rustix::process::Pid::from_raw(seat.child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(seat.child.wait().unwrap().code(), Some(7));

    let script = "stty raw -echo; echo rea'dy'; while [ ! -e /go ]; do sleep 0.05; done; exit 9";
    let mut seat = Seat::new(&machine, &["console", "web", "--", "sh", "-c", script]);
    seat.shows("ready");
    full(&seat);
    machine.spark(&["exec", "web", "--", "touch", "/go"]).ok();
    assert_eq!(seat.child.wait().unwrap().code(), Some(9));
}

/// Often enough that a size that comes after the start is seen to be missing.
const ROUNDS: u32 = 20;

#[test]
fn a_command_finds_the_window_with_its_size() {
    let machine = machine();
    spark(&machine, "web", &[]);
    for round in 0..ROUNDS {
        for args in [
            &["exec", "-t", "-", "--base", "minimal", "--network", "none", "--", "stty", "size"][..],
            &["exec", "-t", "web", "--", "stty", "size"],
            &["console", "web", "--", "stty", "size"],
        ] {
            let mut seat = Seat::new(&machine, args);
            assert!(seat.child.wait().unwrap().success());
            let shown = seat.shows("\r\n");
            assert!(shown.contains("30 90\r"), "{args:?}, round {round}: {shown}");
        }
    }
    // Where only the output is a terminal, that has the size.
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut seat = Seat::of(machine.command(&["exec", "-t", "web", "--", "stty", "size"]), Some(null));
    assert!(seat.child.wait().unwrap().success());
    assert!(seat.shows("\r\n").contains("30 90\r"));
}
