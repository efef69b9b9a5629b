//! Terminals: pairs, raw mode that is always undone, and window sizes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, Winsize};

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS: i64 = 0x1cd1;

/// Opens a new terminal in a spark: its outer side and its inner.
///
/// # Errors
/// `ENOTTY` if what the spark has at `/dev/ptmx` is something else.
pub fn open_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    // Nonblocking, because it may be a fifo.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/ptmx", flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&master)?;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let is_ptmx = FileType::from_raw_mode(stat.st_mode).is_char_device() && device == (5, 2);
    if !is_ptmx || rustix::fs::fstatfs(&master)?.f_type != DEVPTS {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, slave))
}

/// A terminal in raw mode. Dropping it puts the old mode back.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Sets a terminal to raw mode.
    pub fn enter(terminal: impl AsFd) -> io::Result<RawMode> {
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = rustix::termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(RawMode { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// Whether a descriptor is a terminal.
pub fn is_terminal(fd: impl AsFd) -> bool {
    rustix::termios::isatty(fd)
}

/// The size of the window that this process is in: of the first of its standard streams that is a terminal.
pub fn window() -> Option<Winsize> {
    (0..3).find_map(|fd| rustix::termios::tcgetwinsize(super::exec::standard_stream(fd)).ok())
}

/// Sets the size of a terminal's window.
pub fn set_window(terminal: impl AsFd, size: Winsize) -> io::Result<()> {
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}
