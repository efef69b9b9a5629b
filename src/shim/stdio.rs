//! Standard input, output and error: fifos of containerd's on one side, pipes or a terminal on the other.
//!
//! A container never gets a fifo itself: it could not open `/dev/stderr` in it, and what it leaves running would
//! keep it open. So the shim copies.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::pipe::PipeFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use super::console::Terminal;
use super::helper::Streams;
use super::logger::{self, Logger, Source};
use crate::error::{Error, Result};

/// Bytes copied at once.
const CHUNK: usize = 32 << 10;
/// How long what was written last may take to be read, once the process has ended.
const DRAIN: Duration = Duration::from_secs(2);

/// What containerd asked for: paths of fifos, `file://` paths, `binary://` loggers, or nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) terminal: bool,
}

/// The copying of one process. It ends when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Copies {
    outputs: JoinSet<()>,
    input: Option<JoinHandle<()>>,
    close_input: Arc<Notify>,
    terminal: Option<Arc<Terminal>>,
    logger: Option<Logger>,
}

impl Copies {
    /// Opens what is wanted without a terminal, and starts to copy.
    ///
    /// # Errors
    /// If a fifo or file cannot be opened, or what is wanted is neither.
    pub(super) async fn of_pipes(wanted: &Wanted, source: Source<'_>) -> Result<(Copies, Streams)> {
        let mut copies = Copies::default();
        let stdin = match wanted.stdin.as_str() {
            "" => Stdio::null(),
            path => {
                let from = open_input(path)?;
                let (theirs, ours) = pair()?;
                let to = pipe::Sender::from_owned_fd(ours).map_err(Error::sys("use a pipe"))?;
                copies.input = Some(tokio::spawn(feed(from, to, Arc::clone(&copies.close_input))));
                Stdio::from(theirs)
            }
        };
        if logger::is_meant(&wanted.stdout) {
            let (logger, outputs) = Logger::start(&wanted.stdout, source).await?;
            copies.logger = Some(logger);
            let [stdout, stderr] = outputs.map(Stdio::from);
            return Ok((copies, [stdin, stdout, stderr]));
        }
        let stdout = copies.output(&wanted.stdout)?;
        let stderr = copies.output(&wanted.stderr)?;
        Ok((copies, [stdin, stdout, stderr]))
    }

    /// Starts to copy between what is wanted and a terminal.
    ///
    /// # Errors
    /// If a fifo or file cannot be opened, or what is wanted is neither.
    pub(super) async fn of_terminal(
        wanted: &Wanted,
        terminal: Terminal,
        source: Source<'_>,
    ) -> Result<Copies> {
        let mut copies = Copies::default();
        let terminal = Arc::new(terminal);
        if !wanted.stdin.is_empty() {
            let from = open_input(&wanted.stdin)?;
            let close = Arc::clone(&copies.close_input);
            copies.input = Some(tokio::spawn(feed_terminal(from, Arc::clone(&terminal), close)));
        }
        let from = Arc::clone(&terminal);
        let output = if logger::is_meant(&wanted.stdout) {
            let (logger, [out, _]) = Logger::start(&wanted.stdout, source).await?;
            copies.logger = Some(logger);
            Output::Fifo(pipe::Sender::from_owned_fd(out).map_err(Error::sys("use a pipe"))?)
        } else {
            Output::open(&wanted.stdout)?
        };
        match output {
            // Nobody reads it, but the terminal must not become full.
            Output::None => copies.outputs.spawn(async move { from.copy_to(&mut tokio::io::sink()).await }),
            Output::File(file) => {
                let mut to = tokio::fs::File::from_std(file);
                copies.outputs.spawn(async move { from.copy_to(&mut to).await })
            }
            Output::Fifo(mut to) => copies.outputs.spawn(async move { from.copy_to(&mut to).await }),
        };
        copies.terminal = Some(terminal);
        Ok(copies)
    }

    /// The terminal, if there is one.
    pub(super) fn terminal(&self) -> Option<&Arc<Terminal>> {
        self.terminal.as_ref()
    }

    /// Closes standard input once what has been written to the fifo has been passed on.
    pub(super) fn close_input(&self) {
        self.close_input.notify_one();
    }

    /// Waits until all is read that an ended process wrote, for two seconds at most: what it left running may keep
    /// its output open for good.
    pub(super) async fn finish(mut self) {
        if let Some(input) = self.input.take() {
            input.abort();
        }
        let ended = async { while self.outputs.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, ended).await.is_err() {
            tracing::debug!("the output of an ended process is still open");
        }
        self.outputs.abort_all();
        if let Some(logger) = self.logger.take() {
            logger.finish().await;
        }
    }

    fn output(&mut self, path: &str) -> Result<Stdio> {
        Ok(match Output::open(path)? {
            Output::None => Stdio::null(),
            Output::File(file) => Stdio::from(file),
            Output::Fifo(to) => {
                let (ours, theirs) = pair()?;
                let from = pipe::Receiver::from_owned_fd(ours).map_err(Error::sys("use a pipe"))?;
                self.outputs.spawn(pass_on(from, to));
                Stdio::from(theirs)
            }
        })
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if let Some(input) = &self.input {
            input.abort();
        }
    }
}

/// Where output goes.
enum Output {
    None,
    File(File),
    Fifo(pipe::Sender),
}

impl Output {
    fn open(path: &str) -> Result<Output> {
        if path.is_empty() {
            return Ok(Output::None);
        }
        if let Some(path) = path.strip_prefix("file://") {
            let file = fs::OpenOptions::new().create(true).append(true).open(path);
            return file.map(Output::File).map_err(Error::io("open the log", path));
        }
        refuse_other_schemes(path)?;
        // For reading too: it stays open while containerd restarts, and opening it waits for nobody.
        let fifo = pipe::OpenOptions::new().read_write(true).open_sender(path);
        fifo.map(Output::Fifo).map_err(Error::io("open the fifo", path))
    }
}

fn open_input(path: &str) -> Result<pipe::Receiver> {
    refuse_other_schemes(path)?;
    pipe::OpenOptions::new().open_receiver(path).map_err(Error::io("open the fifo", path))
}

fn refuse_other_schemes(path: &str) -> Result<()> {
    if path.starts_with('/') {
        return Ok(());
    }
    let what = format!("cannot use `{path}` as a standard stream");
    Err(Error::NotSupported {
        what,
        hint: Some("give the path of a fifo, `file:///PATH`, or for output `binary:///PATH`".into()),
    })
}

/// A pipe: what is read from, and what is written to.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::sys("make a pipe")(e.into()))
}

async fn pass_on(mut from: pipe::Receiver, mut to: pipe::Sender) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn feed(mut from: pipe::Receiver, mut to: pipe::Sender, close: Arc<Notify>) {
    let mut buffer = vec![0; CHUNK];
    while let Some(read) = next(&mut from, &mut buffer, &close).await {
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn feed_terminal(mut from: pipe::Receiver, to: Arc<Terminal>, close: Arc<Notify>) {
    let mut buffer = vec![0; CHUNK];
    while let Some(read) = next(&mut from, &mut buffer, &close).await {
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// The next bytes of standard input: nothing at its end, or when it was to be closed and is empty.
async fn next(from: &mut pipe::Receiver, buffer: &mut [u8], close: &Notify) -> Option<usize> {
    let read = tokio::select! {
        biased;
        read = from.read(buffer) => read,
        () = close.notified() => {
            // Asks the kernel, not the readiness that the runtime knows of: that may be older than the close.
            let read = rustix::io::read(&*from, &mut *buffer).map_err(io::Error::from);
            close.notify_one();
            read
        }
    };
    read.ok().filter(|read| *read > 0)
}
