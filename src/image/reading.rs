//! Archives are decompressed and parsed by processes that can do nothing else ([`isolated`]), and never by this one.
//!
//! One process decompresses, and another one parses what comes out. They are two, since a digest of what comes out is compared
//! with an image's configuration: this process computes it in between, so that no decompressor that was taken over can have
//! its output kept under a digest that it chose.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{ChildStdout, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use super::archive::{Archive, Kind};
use super::{compression, records};
use crate::domain::ids;
use crate::sys::isolated::{self, End, Isolated};

/// Where an archive comes from.
pub trait Source: Read + Send {
    /// The descriptor that a read may have to wait for. None if no read waits.
    fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The descriptor whose next bytes are those of the next read, unchanged. The kernel can move them without a copy. None if
    /// bytes were read ahead, or if this process has to see them.
    fn moves_from(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Counts bytes that the kernel has moved.
    fn moved(&mut self, _bytes: u64) {}
}

impl Source for File {
    fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn moves_from(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl Source for ChildStdout {
    fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn moves_from(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl<T: AsRef<[u8]> + Send> Source for io::Cursor<T> {}

impl<S: Source + ?Sized> Source for Box<S> {
    fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        (**self).waits_on()
    }

    fn moves_from(&self) -> Option<BorrowedFd<'_>> {
        (**self).moves_from()
    }

    fn moved(&mut self, bytes: u64) {
        (**self).moved(bytes);
    }
}

/// The task of a process.
#[derive(Debug)]
pub struct Role {
    pub name: &'static str,
    /// Most bytes of address space. The program itself takes some 40 MiB of it.
    pub memory: u64,
    /// Reads what is not trusted, and writes what it makes of that.
    pub work: fn(&mut dyn Read, &mut dyn Write) -> io::Result<()>,
}

/// Makes plain bytes of what is compressed.
pub(super) static DECOMPRESS: Role =
    Role { name: "decompress", memory: compression::MEMORY + (128 << 20), work: decompress };
/// Makes records of an archive.
pub(super) static ARCHIVE: Role = Role {
    name: "read-archive",
    memory: 256 << 20,
    work: |input, output| read_archive(input, output, false),
};
/// Makes records of a layer of an image, which may end without saying so.
pub(super) static LAYER: Role =
    Role { name: "read-layer", memory: 256 << 20, work: |input, output| read_archive(input, output, true) };

/// Runs this process in the role of that name: one for archives, or one of `others`. None if there is no such role.
#[must_use]
pub fn run(name: &str, others: &[&'static Role]) -> Option<ExitCode> {
    let mut all = [&DECOMPRESS, &ARCHIVE, &LAYER].into_iter().chain(others.iter().copied());
    let role = all.find(|role| role.name == name)?;
    Some(isolated::run(role.memory, |mut input, mut output| {
        (role.work)(&mut input, &mut output).or_else(unless_unwanted).map_err(|e| e.to_string())
    }))
}

/// If nobody reads the output any more, all is done.
fn unless_unwanted(e: io::Error) -> io::Result<()> {
    if e.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(e) }
}

fn decompress(input: &mut dyn Read, output: &mut dyn Write) -> io::Result<()> {
    let mut plain = compression::open(input)?;
    let mut buffer = vec![0; records::PIECE];
    loop {
        match plain.read(&mut buffer)? {
            0 => return Ok(()),
            n => output.write_all(&buffer[..n])?,
        }
    }
}

fn read_archive(input: &mut dyn Read, output: &mut dyn Write, open_end: bool) -> io::Result<()> {
    let mut archive = Archive::new(BufReader::with_capacity(records::PIECE, input));
    archive.open_end = open_end;
    let mut out = records::Writer::new(output);
    while let Some((entry, pieces)) = archive.next()? {
        out.entry(&entry)?;
        // A piece of nothing says only where the file ends, which its size says too.
        let pieces = pieces.into_iter().filter(|piece| entry.kind == Kind::File && piece.1 > 0);
        for (offset, length) in pieces {
            out.content(offset, length, |buffer| archive.read(buffer))?;
        }
    }
    out.end()
}

/// A process in a role, and what it writes.
#[derive(Debug)]
pub struct Flow {
    process: Process,
    output: Option<File>,
    feeder: Option<JoinHandle<io::Result<()>>>,
    /// The process whose output is the input.
    before: Option<Box<Flow>>,
    ended: bool,
    /// If this becomes readable, nobody wants the output any more.
    stop: Option<OwnedFd>,
}

/// The error of a read of what nobody wants any more.
pub(super) fn is_stop(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::ECANCELED)
}

impl Flow {
    /// Starts a process, and a thread that copies the input to it.
    /// # Errors
    /// Those of pipe(2), fork(2) and execve(2).
    pub fn start(program: &Path, role: &'static Role, source: impl Source + 'static) -> io::Result<Flow> {
        let (input, pipe) = isolated::pipe()?;
        let mut flow = Flow::on(program, role, input)?;
        let feeder = std::thread::Builder::new().name("feeder".into());
        flow.feeder = Some(feeder.spawn(move || feed(source, pipe.into()))?);
        Ok(flow)
    }

    /// Starts a process that reads what this one writes.
    pub(super) fn then(mut self, program: &Path, role: &'static Role) -> io::Result<Flow> {
        let input = self.output.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut flow = Flow::on(program, role, input.into())?;
        flow.before = Some(Box::new(self));
        Ok(flow)
    }

    fn on(program: &Path, role: &'static Role, input: OwnedFd) -> io::Result<Flow> {
        let (output, pipe) = isolated::pipe()?;
        let process = Process::start(program, role, input, pipe)?;
        Ok(Flow {
            process,
            output: Some(output.into()),
            feeder: None,
            before: None,
            ended: false,
            stop: None,
        })
    }

    /// Has reads fail when a descriptor becomes readable.
    pub(super) fn unless(mut self, stop: Option<BorrowedFd<'_>>) -> io::Result<Flow> {
        self.stop = stop.map(|fd| fd.try_clone_to_owned()).transpose()?;
        Ok(self)
    }

    /// Waits until the process has ended, when all of its output was read.
    ///
    /// # Errors
    /// `InvalidData` if the input is refused; what kept the input from being read.
    fn end(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        match self.process.end()? {
            End::Done => self.fed(),
            // What cut the input off is the reason.
            End::Refused { why, cut: true } => self.fed().and_then(|()| Err(refused(why))),
            End::Refused { why, cut: false } => Err(refused(why)),
            End::Unconfined(why) => Err(refused(format!(
                "the process that reads it cannot give up its rights ({why}): `spark doctor` tells what this host lacks"
            ))),
            End::Killed(signal) => Err(refused(killed(signal))),
        }
    }

    /// Whether all of the input came. A process that has ended reads no more, so that nobody writes for long.
    fn fed(&mut self) -> io::Result<()> {
        if let Some(feeder) = self.feeder.take() {
            feeder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        self.before.as_mut().map_or(Ok(()), |before| before.end())
    }
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn killed(signal: Option<i32>) -> String {
    match signal {
        Some(libc::SIGSYS) => "the process that reads it did what no reader needs, and was killed for it: what it reads is damaged, or an attack".into(),
        Some(libc::SIGKILL) => "the process that reads it was killed: if that was for want of memory, try again with more of it free".into(),
        Some(signal) => format!("the process that reads it broke down (signal {signal}): what it reads is damaged, or an attack"),
        None => "the process that reads it ended without a reason: try again, and report it if that happens again".into(),
    }
}

impl Read for Flow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(output) = &mut self.output else { return Ok(0) };
        if let Some(stop) = &self.stop
            && !isolated::goes_on(&*output, stop)?
        {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        let n = output.read(buffer)?;
        if n == 0 && !buffer.is_empty() {
            self.end()?;
        }
        Ok(n)
    }
}

impl Source for Flow {
    fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(File::as_fd)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        // In this order: nobody reads any more, so that whoever writes ends.
        self.output = None;
        self.process.kill();
        self.before = None;
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
    }
}

/// Copies all of a source into a pipe. Ends early if nobody reads that.
fn feed(mut source: impl Source, mut pipe: File) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut can_move = true;
    loop {
        if let Some(fd) = source.waits_on()
            && !isolated::is_wanted(fd, &pipe)?
        {
            return Ok(());
        }
        let fed = match source.moves_from().filter(|_| can_move) {
            Some(fd) => isolated::move_bytes(fd, &pipe, records::PIECE).inspect(|n| source.moved(*n as u64)),
            None => copy_some(&mut source, &mut pipe, &mut buffer),
        };
        match fed {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // Files of some kinds, such as terminals, do not take part in this. A source that does not wait has the pipe not wait
            // either when it is full.
            Err(e) if can_move && matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EAGAIN)) => {
                can_move = false;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

/// Copies what one read of a source gives into a pipe. Returns how much that was.
fn copy_some(source: &mut impl Source, pipe: &mut File, buffer: &mut Vec<u8>) -> io::Result<usize> {
    buffer.resize(records::PIECE, 0);
    let n = source.read(buffer)?;
    pipe.write_all(&buffer[..n])?;
    Ok(n)
}

/// Whoever works in a role. The unit tests have no program to execute, so that a thread does the work there.
#[derive(Debug)]
enum Process {
    Isolated(Isolated),
    #[cfg(test)]
    Thread(Option<JoinHandle<io::Result<()>>>),
}

impl Process {
    fn start(program: &Path, role: &'static Role, input: OwnedFd, output: OwnedFd) -> io::Result<Process> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        #[cfg(test)]
        if program.as_os_str().is_empty() {
            let work =
                move || (role.work)(&mut File::from(input), &mut File::from(output)).or_else(unless_unwanted);
            return Ok(Process::Thread(Some(std::thread::spawn(work))));
        }
        let id = ids::reader(std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        isolated::start(program, role.name, id, input, output).map(Process::Isolated)
    }

    fn end(&mut self) -> io::Result<End> {
        match self {
            Process::Isolated(process) => process.end(),
            #[cfg(test)]
            Process::Thread(thread) => Ok(match thread.take().unwrap().join().unwrap() {
                Ok(()) => End::Done,
                Err(e) => End::Refused { why: e.to_string(), cut: true },
            }),
        }
    }

    fn kill(&mut self) {
        match self {
            Process::Isolated(process) => process.kill(),
            #[cfg(test)]
            Process::Thread(thread) => drop(thread.take().map(JoinHandle::join)),
        }
    }
}

/// A source of which the first bytes were read.
pub(super) struct Begun<S> {
    start: io::Cursor<Vec<u8>>,
    rest: S,
}

impl<S> Begun<S> {
    /// Whether bytes of the start are still to be read.
    fn is_at_start(&self) -> bool {
        self.start.position() < self.start.get_ref().len() as u64
    }
}

impl<S: Source> Read for Begun<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.start.read(buffer)? {
            0 => self.rest.read(buffer),
            n => Ok(n),
        }
    }
}

impl<S: Source> Source for Begun<S> {
    fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        if self.is_at_start() { None } else { self.rest.waits_on() }
    }

    fn moves_from(&self) -> Option<BorrowedFd<'_>> {
        if self.is_at_start() { None } else { self.rest.moves_from() }
    }

    fn moved(&mut self, bytes: u64) {
        self.rest.moved(bytes);
    }
}

/// The bytes of an archive without its compression.
pub(super) enum Plain<S> {
    AsItIs(Begun<S>),
    Decompressed(Flow),
}

impl<S: Source + 'static> Plain<S> {
    /// Has an archive decompressed if it is compressed.
    ///
    /// # Errors
    /// Those of the archive's first read, and of starting a process.
    pub(super) fn of(program: &Path, mut archive: S) -> io::Result<Plain<S>> {
        let mut start = Vec::new();
        archive.by_ref().take(compression::MAGIC).read_to_end(&mut start)?;
        let compressed = compression::is_compressed(&start);
        let begun = Begun { start: io::Cursor::new(start), rest: archive };
        if !compressed {
            return Ok(Plain::AsItIs(begun));
        }
        Flow::start(program, &DECOMPRESS, begun).map(Plain::Decompressed)
    }

    /// Has the bytes parsed.
    pub(super) fn then(self, program: &Path, role: &'static Role) -> io::Result<Flow> {
        match self {
            Plain::AsItIs(source) => Flow::start(program, role, source),
            Plain::Decompressed(flow) => flow.then(program, role),
        }
    }
}

impl<S: Source> Read for Plain<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Plain::AsItIs(source) => source.read(buffer),
            Plain::Decompressed(flow) => flow.read(buffer),
        }
    }
}

impl<S: Source> Source for Plain<S> {
    fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Plain::AsItIs(source) => source.waits_on(),
            Plain::Decompressed(flow) => flow.waits_on(),
        }
    }
}

#[cfg(test)]
#[path = "reading_tests.rs"]
#[allow(clippy::unwrap_used)]
mod tests;
