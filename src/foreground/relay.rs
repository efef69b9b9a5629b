//! Bytes between our standard streams and the terminal of a command.
//!
//! The user's terminal is shared with their shell: `O_NONBLOCK` set on it would stay after us. So it is opened anew
//! where it can be, and else only touched when it is ready.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::SpecialCodeIndex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::ops::exec::Running;

/// At most this much is written at once to what may block: a pipe that is ready takes it (`PIPE_BUF`).
const CHUNK: usize = 4096;

/// The two ways between standard input and output and a terminal's master.
#[derive(Debug)]
pub(crate) struct Relay<'a> {
    running: &'a Running,
    master: AsyncFd<BorrowedFd<'a>>,
    stdin: Stream,
    stdout: Stream,
    /// Whether standard input is a terminal, whose end of input is a byte like any other.
    raw: bool,
    /// Bytes that came from the master.
    moved: Cell<u64>,
    /// Whether some are on their way to standard output.
    writing: Cell<bool>,
    ended: Cell<bool>,
}

impl<'a> Relay<'a> {
    /// For a command that has a terminal.
    pub(crate) fn new(running: &'a Running) -> io::Result<Option<Relay<'a>>> {
        let Some(master) = &running.master else {
            return Ok(None);
        };
        Ok(Some(Relay {
            running,
            master: watch_own(master.as_fd(), Interest::READABLE | Interest::WRITABLE)?,
            stdin: Stream::new(io::stdin().as_fd(), 0, Interest::READABLE)?,
            stdout: Stream::new(io::stdout().as_fd(), 1, Interest::WRITABLE)?,
            raw: rustix::termios::isatty(io::stdin()),
            moved: Cell::new(0),
            writing: Cell::new(false),
            ended: Cell::new(false),
        }))
    }

    /// How many bytes have come from the command.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.get()
    }

    /// Whether a reader of standard output keeps us waiting.
    pub(crate) fn writing(&self) -> bool {
        self.writing.get()
    }

    /// Whether the command's terminal has something to be read. Asking makes the kernel pass on what is on its way.
    pub(crate) fn has_more(&self) -> bool {
        is_ready(self.master.get_ref(), PollFlags::IN)
    }

    /// The command has ended: when its terminal says so too, nothing more comes.
    pub(crate) fn ended(&self) {
        self.ended.set(true);
    }

    /// From standard input to the command, until either end closes.
    pub(crate) async fn input(&self) {
        let mut buffer = [0; CHUNK];
        let mut last = b'\n';
        loop {
            let n = match self.stdin.read(&mut buffer).await {
                Ok(n) if n > 0 => n,
                _ => break,
            };
            last = buffer[n - 1];
            if send(&self.master, &buffer[..n]).await.is_err() {
                return;
            }
        }
        if !self.raw {
            let end = self.end_of_file();
            // In the middle of a line, the first one only sends the line.
            let times = if last == b'\n' { 1 } else { 2 };
            let _ = send(&self.master, &[end; 2][..times]).await;
        }
    }

    /// The character that ends input on the command's terminal.
    fn end_of_file(&self) -> u8 {
        const CTRL_D: u8 = 4;
        let settings = rustix::termios::tcgetattr(self.master.get_ref());
        settings.map_or(CTRL_D, |settings| settings.special_codes[SpecialCodeIndex::VEOF])
    }

    /// From the command to standard output, until the terminal is closed after the command's end.
    pub(crate) async fn output(&self) {
        let mut buffer = [0; 16 << 10];
        let mut reader_left = false;
        let mut pause = Duration::from_millis(1);
        loop {
            let n = match receive(&self.master, &mut buffer).await {
                Ok(n) if n > 0 => n,
                // Nobody has it open. While the command lives, it may open it again.
                _ if self.ended.get() => return,
                _ => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(REOPENED);
                    continue;
                }
            };
            pause = Duration::from_millis(1);
            self.moved.set(self.moved.get() + n as u64);
            if reader_left {
                continue;
            }
            self.writing.set(true);
            if self.stdout.write(&buffer[..n]).await.is_err() {
                // As if the window had been closed. What comes after is read and dropped.
                reader_left = true;
                let _ = self.running.signal(libc::SIGHUP);
            }
            self.writing.set(false);
        }
    }
}

/// How often a terminal that nobody has open is looked at.
const REOPENED: Duration = Duration::from_millis(50);

/// Registers a descriptor, which `T` keeps open, to be waited for.
#[expect(
    deprecated,
    reason = "the new constructor is unsafe for those T whose descriptor may change or close"
)]
pub(crate) fn watch<T: AsFd + AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, interest)
}

/// Makes a descriptor non-blocking and registers it. Its open file description must be ours alone: whoever shares it would
/// find it non-blocking too.
pub(super) fn watch_own<T: AsFd + AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    watch(fd, interest)
}

/// Reads from a non-blocking descriptor, waiting until it has something. Returns 0 at its end.
pub(super) async fn receive(fd: &AsyncFd<impl AsFd + AsRawFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = fd.readable().await?;
        match rustix::io::read(fd.get_ref(), &mut *buffer) {
            Ok(n) => return Ok(n),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Writes all bytes to a non-blocking descriptor, waiting whenever it takes no more.
pub(super) async fn send(fd: &AsyncFd<impl AsFd + AsRawFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = fd.writable().await?;
        match rustix::io::write(fd.get_ref(), bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            // A terminal that is full, and that nobody has open. Epoll calls that ready for as long as nobody opens it.
            Err(Errno::AGAIN) if ready.ready().is_write_closed() => tokio::time::sleep(REOPENED).await,
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// One of our standard streams.
#[derive(Debug)]
pub(super) enum Stream {
    /// Can be waited for. `blocking`: it could not be opened anew.
    Waited { fd: AsyncFd<OwnedFd>, blocking: bool },
    /// A regular file or a device like /dev/null: never makes anybody wait.
    Ready(OwnedFd),
}

impl Stream {
    pub(super) fn new(fd: BorrowedFd<'_>, number: i32, interest: Interest) -> io::Result<Stream> {
        let (own, blocking) = match open_anew(fd, number, interest) {
            Some(own) => (own, false),
            None => (fd.try_clone_to_owned()?, true),
        };
        // epoll(7) refuses with EPERM what is always ready.
        let again = own.try_clone()?;
        match watch(own, interest) {
            Ok(fd) => Ok(Stream::Waited { fd, blocking }),
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(Stream::Ready(again)),
            Err(e) => Err(e),
        }
    }

    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let fd = match self {
            Stream::Waited { fd, .. } => fd,
            Stream::Ready(fd) => {
                // A long file must not keep signals and output waiting.
                tokio::task::yield_now().await;
                return Ok(rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *buffer))?);
            }
        };
        loop {
            let mut ready = fd.readable().await?;
            if !is_ready(fd.get_ref(), PollFlags::IN) {
                ready.clear_ready();
                continue;
            }
            match rustix::io::read(fd.get_ref(), &mut *buffer) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                other => return Ok(other?),
            }
        }
    }

    pub(super) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Stream::Ready(fd) => rustix::io::write(fd, bytes),
                Stream::Waited { fd, blocking } => {
                    let mut ready = fd.writable().await?;
                    if !is_ready(fd.get_ref(), PollFlags::OUT) {
                        ready.clear_ready();
                        continue;
                    }
                    let most = if *blocking { bytes.len().min(CHUNK) } else { bytes.len() };
                    let written = rustix::io::write(fd.get_ref(), &bytes[..most]);
                    if written == Err(Errno::AGAIN) {
                        ready.clear_ready();
                        continue;
                    }
                    written
                }
            };
            match written {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Opens a terminal or a pipe a second time, so that it can be non-blocking for us alone. A file opened anew would
/// lose its position.
fn open_anew(fd: BorrowedFd<'_>, number: i32, interest: Interest) -> Option<OwnedFd> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd).ok()?.st_mode);
    if kind != FileType::Fifo && !rustix::termios::isatty(fd) {
        return None;
    }
    let access = if interest.is_readable() { OFlags::RDONLY } else { OFlags::WRONLY };
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/fd/{number}"), flags, Mode::empty()).ok()
}

/// Whether a call would not block now. An error or a hangup does not block either.
pub(crate) fn is_ready(fd: impl AsFd, flags: PollFlags) -> bool {
    let mut fds = [PollFd::new(&fd, flags)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(0) | Err(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn a_file_and_dev_null_are_read_to_their_end_without_epoll() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        io::Seek::rewind(&mut file).unwrap();
        block_on(async {
            let stream = Stream::new(file.as_fd(), 0, Interest::READABLE).unwrap();
            let mut buffer = [0; 8];
            assert_eq!(stream.read(&mut buffer).await.unwrap(), 3);
            assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
            let null = std::fs::File::open("/dev/null").unwrap();
            let stream = Stream::new(null.as_fd(), 0, Interest::READABLE).unwrap();
            assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
        });
    }

    #[test]
    fn a_blocking_socket_is_only_touched_when_ready() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        block_on(async {
            let stream = Stream::new(ours.as_fd(), 0, Interest::READABLE).unwrap();
            assert!(matches!(stream, Stream::Waited { blocking: true, .. }));
            let mut buffer = [0; 8];
            let waiting = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut buffer)).await;
            assert!(waiting.is_err());
            (&theirs).write_all(b"x").unwrap();
            assert_eq!(stream.read(&mut buffer).await.unwrap(), 1);
            drop(theirs);
            assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
        });
        assert!(!rustix::fs::fcntl_getfl(&ours).unwrap().contains(OFlags::NONBLOCK));
    }
}
