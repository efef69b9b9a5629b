//! Bytes between our standard streams and the pipes that a command has in their place.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use rustix::event::PollFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::relay::{Stream, is_ready, receive, send, watch_own};
use super::{Signals, Status, stand_by};
use crate::ops::exec::{Pipes, Running};

/// How much is read from a pipe at once.
const CHUNK: usize = 64 << 10;
/// How often it is looked whether a command that has ended left something in a pipe.
const LOOK: Duration = Duration::from_millis(1);

/// Stands by a command while copying between its pipes and our streams, then passes on what it had written until its end.
/// Why one of our streams did not take all of it is put into `lost`.
///
/// What processes that it left behind write later goes nowhere: a terminal is the user's again.
pub(super) async fn with_pipes(
    running: &Running,
    pipes: Pipes,
    (signals, limit): (&mut Signals, Option<Duration>),
    lost: &mut Option<io::Error>,
) -> io::Result<Status> {
    let [output, error] = pipes.outputs;
    let outputs = [Output::new(output, 1)?, Output::new(error, 2)?];
    let mut copied = pin!(async {
        let [output, error] = &outputs;
        futures_util::future::join(output.copy(), error.copy()).await;
    });
    let mut is_copied = false;
    let status = {
        let meanwhile = async {
            let mut input = pin!(copy_input(pipes.input));
            let mut is_open = true;
            std::future::poll_fn(|cx| {
                is_open = is_open && input.as_mut().poll(cx).is_pending();
                is_copied = is_copied || copied.as_mut().poll(cx).is_ready();
                // Ends only when the command has.
                Poll::<()>::Pending
            })
            .await;
        };
        stand_by(running, signals, limit, meanwhile).await?
    };
    while !is_copied && !outputs.iter().all(Output::is_quiet) {
        tokio::select! {
            () = &mut copied => break,
            () = sleep(LOOK) => {}
            number = signals.next() => {
                if number != libc::SIGWINCH {
                    break;
                }
            }
        }
    }
    *lost = outputs.iter().find_map(|output| output.failed.take());
    Ok(status)
}

/// From standard input to the pipe, until either end closes.
async fn copy_input(pipe: Option<OwnedFd>) {
    let copy = async |pipe: OwnedFd| -> io::Result<()> {
        let stdin = Stream::new(io::stdin().as_fd(), 0, Interest::READABLE)?;
        let pipe = watch_own(pipe, Interest::WRITABLE)?;
        let mut buffer = [0; 4096];
        loop {
            match stdin.read(&mut buffer).await? {
                0 => return Ok(()),
                n => send(&pipe, &buffer[..n]).await?,
            }
        }
    };
    if let Some(pipe) = pipe
        && let Err(e) = copy(pipe).await
    {
        tracing::debug!("standard input is not passed on any more: {e}");
    }
}

/// One of our output streams, and the pipe whose bytes it is told.
struct Output {
    number: i32,
    /// None when nobody has the other end open any more, or when we gave up.
    pipe: RefCell<Option<Rc<AsyncFd<OwnedFd>>>>,
    /// Whether bytes are on their way.
    is_writing: Cell<bool>,
    failed: Cell<Option<io::Error>>,
}

impl Output {
    fn new(pipe: Option<OwnedFd>, number: i32) -> io::Result<Output> {
        let pipe = pipe.map(|pipe| watch_own(pipe, Interest::READABLE)).transpose()?;
        Ok(Output {
            number,
            pipe: RefCell::new(pipe.map(Rc::new)),
            is_writing: Cell::new(false),
            failed: Cell::new(None),
        })
    }

    /// Whether nothing is left to be passed on.
    fn is_quiet(&self) -> bool {
        let is_empty =
            self.pipe.borrow().as_ref().is_none_or(|pipe| !is_ready(pipe.get_ref(), PollFlags::IN));
        is_empty && !self.is_writing.get()
    }

    /// Copies until the pipe's other end is closed. If our stream takes no more, the pipe is closed, so that the command
    /// is told as it would be told by the stream.
    async fn copy(&self) {
        let copied = self.copy_all().await;
        self.is_writing.set(false);
        drop(self.pipe.take());
        if let Err(e) = copied {
            self.failed.set(Some(e));
        }
    }

    async fn copy_all(&self) -> io::Result<()> {
        let Some(pipe) = self.pipe.borrow().clone() else { return Ok(()) };
        let stream = match self.number {
            1 => Stream::new(io::stdout().as_fd(), 1, Interest::WRITABLE)?,
            _ => Stream::new(io::stderr().as_fd(), 2, Interest::WRITABLE)?,
        };
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = receive(&pipe, &mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            self.is_writing.set(true);
            stream.write(&buffer[..n]).await?;
            self.is_writing.set(false);
        }
    }
}
