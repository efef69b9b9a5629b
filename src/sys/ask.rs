//! Questions at the terminal whose answers are not shown.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::termios::{LocalModes, OptionalActions, Termios};

use super::held::Held;
use super::locked::Locked;

/// More than a terminal gives as one line.
const LINE: usize = 4096;
/// What would end or stop this process.
const SIGNALS: [i32; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGTSTP];

/// The terminal that this process was started at, whatever its standard streams are. `None` if there is none, or somebody
/// else is at it: a job in the background does not ask.
pub fn terminal() -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
    let terminal = rustix::fs::open("/dev/tty", flags, Mode::empty()).ok()?;
    let at_it = rustix::termios::tcgetpgrp(&terminal).ok()?;
    (at_it == rustix::process::getpgrp()).then_some(terminal)
}

/// Shows something.
pub fn tell(terminal: &OwnedFd, text: &str) -> io::Result<()> {
    let mut left = text.as_bytes();
    while !left.is_empty() {
        left = &left[rustix::io::retry_on_intr(|| rustix::io::write(terminal, left))?..];
    }
    Ok(())
}

/// Asks for a line, which the terminal does not show while it is typed.
///
/// # Errors
/// `Interrupted` if a signal came instead that does not end this process, `UnexpectedEof` if the terminal ended. It shows
/// again what is typed then, and also when the signal does end the process.
pub fn ask(terminal: &OwnedFd, question: &str) -> io::Result<Locked> {
    loop {
        let signals = Held::new(&SIGNALS)?;
        let quiet = Quiet::new(terminal)?;
        tell(terminal, question)?;
        let answer = line(terminal, &signals);
        drop(quiet);
        drop(signals);
        match answer? {
            Answer::Line(line) => return Ok(line),
            Answer::Signal(signal) => {
                tell(terminal, "\n")?;
                // What it would have done before there was a question.
                let own = rustix::process::getpid();
                if let Some(signal) = rustix::process::Signal::from_named_raw(signal) {
                    rustix::process::kill_process(own, signal)?;
                }
                if signal != libc::SIGTSTP {
                    return Err(io::ErrorKind::Interrupted.into());
                }
            }
        }
    }
}

enum Answer {
    Line(Locked),
    Signal(i32),
}

fn line(terminal: &OwnedFd, signals: &Held) -> io::Result<Answer> {
    let mut typed = Locked::with_room(LINE)?;
    loop {
        let mut fds = [PollFd::new(signals, PollFlags::IN), PollFd::new(terminal, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None))?;
        if !fds[0].revents().is_empty() {
            return signals.next().map(Answer::Signal);
        }
        // The terminal gives whole lines, which it lets the user edit.
        let n = rustix::io::retry_on_intr(|| rustix::io::read(terminal, typed.rest()))?;
        typed.grow(n);
        match (n, typed.bytes().strip_suffix(b"\n")) {
            (_, Some(line)) => return Locked::of(&[line]).map(Answer::Line),
            (0, None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
    }
}

/// A terminal that does not show what is typed, but for the end of the line. Dropping it puts the old mode back.
struct Quiet<'a> {
    terminal: &'a OwnedFd,
    before: Termios,
}

impl Quiet<'_> {
    fn new(terminal: &OwnedFd) -> io::Result<Quiet<'_>> {
        let before = rustix::termios::tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        // What was typed before the question is no answer to it.
        rustix::termios::tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Quiet { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}
