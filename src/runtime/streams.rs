//! The standard streams of a command: which of them it gets as they are, and for which it gets a pipe.
//!
//! A terminal of the host would be in the hands of the spark for as long as any process there keeps it open: what is typed
//! at the next prompt could be read inside. A regular file of the host belongs to somebody whom nobody inside is, so
//! that `/dev/stdout` could not be opened. A file that everybody may write would be opened anew and written, though it was
//! given to be read, and though nobody else may reach it in its directory. Another file is opened anew for the command: who shares an
//! open file description shares its locks and its position, and the caller may keep it open for long after the command.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};

use crate::sys;

/// Bytes that a pipe holds: as many as anybody may ask for, so that a command seldom waits for its reader.
const CAPACITY: usize = 1 << 20;

/// Streams that a command gets in place of this process's own, by their numbers.
pub type Replaced = [Option<OwnedFd>; 3];

/// Our ends of the pipes that stand for standard streams. Whoever waits for the command copies between them and the
/// streams, and not longer than the command lives.
#[derive(Debug, Default)]
pub struct Pipes {
    /// Takes what standard input says.
    pub input: Option<OwnedFd>,
    /// Says what standard output, and what standard error is to be told. Where both are one file, the first has both.
    pub outputs: [Option<OwnedFd>; 2],
    /// Which standard streams, by their numbers, the command does not have as they are.
    pub replaced: [bool; 3],
    /// The file that standard input is, opened anew for the command.
    pub opened: Option<Opened>,
}

/// A file that was opened anew. Its position is its own.
#[derive(Debug)]
pub struct Opened(OwnedFd);

impl Opened {
    /// Takes this process's standard input to where the command has come: the caller may go on reading there.
    pub fn move_input(&self) {
        let position = rustix::fs::tell(&self.0);
        let moved =
            position.and_then(|at| rustix::fs::seek(sys::exec::standard_stream(0), SeekFrom::Start(at)));
        if let Err(e) = moved {
            tracing::debug!("the position in standard input stays: {e}");
        }
    }
}

impl Pipes {
    /// Whether there is anything to copy.
    pub fn is_empty(&self) -> bool {
        self.input.is_none() && self.outputs.iter().all(Option::is_none)
    }
}

/// Makes a pipe for each standard stream that a command must not get.
pub fn make() -> io::Result<(Replaced, Pipes)> {
    let (mut replaced, mut pipes) = (Replaced::default(), Pipes::default());
    let [input, output, error] = [0, 1, 2].map(sys::exec::standard_stream);
    if is_terminal(input) || can_be_written_inside(input) {
        let (from, to) = pipe()?;
        replaced[0] = Some(from);
        pipes.input = Some(to);
    } else if let Some(file) = opened_anew(input) {
        pipes.opened = Some(Opened(file.try_clone()?));
        replaced[0] = Some(file);
    }
    let (output, error) = (refused(output), refused(error));
    if output.is_some() {
        let (from, to) = pipe()?;
        pipes.outputs[0] = Some(from);
        replaced[1] = Some(to);
    }
    match (&output, &error, &replaced[1]) {
        // One pipe, so that what comes first is first.
        (Some(output), Some(error), Some(to)) if is_same(output, error) => {
            replaced[2] = Some(to.try_clone()?);
        }
        (_, Some(_), _) => {
            let (from, to) = pipe()?;
            pipes.outputs[1] = Some(from);
            replaced[2] = Some(to);
        }
        (_, None, _) => {}
    }
    pipes.replaced = replaced.each_ref().map(Option::is_some);
    Ok((replaced, pipes))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (from, to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // A smaller one is as good, and slower.
    let _ = rustix::pipe::fcntl_setpipe_size(&to, CAPACITY);
    Ok((from, to))
}

fn is_terminal(stream: BorrowedFd<'_>) -> bool {
    rustix::termios::isatty(stream)
}

/// Whether an input is a regular file that was opened to be read alone, and that everybody may write. The rights of its owner
/// and group are nobody's inside.
fn can_be_written_inside(stream: BorrowedFd<'_>) -> bool {
    let is_read_only =
        rustix::fs::fcntl_getfl(stream).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDONLY);
    is_read_only
        && rustix::fs::fstat(stream).is_ok_and(|stat| {
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            is_file && Mode::from_raw_mode(stat.st_mode).contains(Mode::WOTH)
        })
}

/// Opens an input anew that is a regular file, at the same position. `None` for another one, and if it cannot be opened: on some network
/// filesystems root may not, and the command gets the input as it is.
fn opened_anew(stream: BorrowedFd<'_>) -> Option<OwnedFd> {
    let stat = rustix::fs::fstat(stream).ok()?;
    let flags = rustix::fs::fcntl_getfl(stream).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || flags.contains(OFlags::PATH) {
        return None;
    }
    let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
    let kept = OFlags::RWMODE | OFlags::APPEND | OFlags::NONBLOCK | OFlags::DIRECT;
    let file = rustix::fs::open(path, (flags & kept) | OFlags::CLOEXEC, Mode::empty()).ok()?;
    rustix::fs::seek(&file, SeekFrom::Start(rustix::fs::tell(stream).ok()?)).ok()?;
    Some(file)
}

/// The status of an output that a command must not get.
fn refused(stream: BorrowedFd<'_>) -> Option<Stat> {
    let stat = rustix::fs::fstat(stream.as_fd()).ok()?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    (is_file || is_terminal(stream)).then_some(stat)
}

fn is_same(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}
