//! Stands by a command that runs in a spark: passes signals on, relays its terminal, and learns how it ended.
//!
//! Everything happens on one thread: the operations before and after need a process that has no other. What both `cli`
//! and `oci` do, and neither may import from the other.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use rustix::event::PollFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, sleep_until};

mod flags;
mod relay;
mod streams;

use flags::Flags;
pub(crate) use relay::is_ready;
use relay::{Relay, watch};

use crate::domain::signal::REAL_TIME;
use crate::error::{Error, Result};
use crate::ops::exec::{Attention, Held, PASSED_ON, RawMode, Running};

/// An exit status.
type Status = u8;

/// What a command returns that was ended by its `--timeout`, as timeout(1) has it.
const TIMED_OUT: Status = 124;
/// From SIGTERM to SIGKILL after a timeout.
const GRACE: Duration = Duration::from_secs(2);
/// What is left in a terminal comes within this time after the command's end, or belongs to a process that stayed.
const QUIET: Duration = Duration::from_millis(50);
/// And it is no more than this.
const LEFT: u64 = 1 << 20;

/// Catches signals from the time it is made, so that none is lost while the command is being started. Until the command is
/// there, signals that would end this process end whatever is waited for.
#[derive(Debug)]
pub struct Supervisor {
    signals: Signals,
    runtime: Runtime,
    attention: Attention,
    /// From before the command.
    flags: Flags,
}

impl Supervisor {
    /// Starts to catch signals.
    pub fn prepare() -> Result<Supervisor> {
        let prepared = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let inside = runtime.enter();
            let signals = Signals::catch()?;
            drop(inside);
            Ok(Supervisor { signals, runtime, attention: Attention::new()?, flags: Flags::read() })
        };
        prepared().map_err(Error::sys("catch signals"))
    }

    /// The status for a command that did not start because a signal has ended a wait: as of a command that the signal has
    /// ended.
    pub fn interrupted(&self) -> Option<Status> {
        let signal = self.attention.has_ended_by().ok().flatten()?;
        Status::try_from(128 + signal).ok()
    }

    /// Stands by until the command has ended, and returns its status.
    pub fn attach(mut self, running: &Running, limit: Option<Duration>) -> Result<Status> {
        // Those that have come meanwhile are passed on.
        drop(self.attention);
        let signals = &mut self.signals;
        let mut pipes = running.pipes.take();
        let opened = pipes.opened.take();
        // With a terminal of its own, it has none of our streams.
        let replaced = if running.master.is_some() { [true; 3] } else { pipes.replaced };
        let mut lost = None;
        let result = self.runtime.block_on(async {
            match (&running.master, Relay::new(running)) {
                (Some(_), Ok(Some(relay))) => with_terminal(running, &relay, signals, limit).await,
                (_, Err(e)) => Err(e),
                _ if pipes.is_empty() => {
                    stand_by(running, signals, limit, std::future::pending::<()>()).await
                }
                _ => streams::with_pipes(running, pipes, (signals, limit), &mut lost).await,
            }
        });
        self.flags.restore(replaced);
        if let Some(opened) = opened {
            opened.move_input();
        }
        let status = result.map_err(|e| {
            // Nobody is left to stand by it.
            let _ = running.signal(libc::SIGKILL);
            Error::sys("wait for the command")(e)
        })?;
        match lost {
            Some(e) => Err(Error::sys("pass on what the command wrote")(e)),
            None => Ok(status),
        }
    }
}

/// Stands by a command while relaying its terminal, then passes on what is left in that.
async fn with_terminal(
    running: &Running,
    relay: &Relay<'_>,
    signals: &mut Signals,
    limit: Option<Duration>,
) -> io::Result<Status> {
    let _ = running.copy_window_size();
    // Dropped on every way out of here, a panic included. A standard input that is no terminal needs none.
    let _raw = RawMode::enter(std::io::stdin()).ok();
    let mut output = pin!(relay.output());
    let status = {
        let both = async {
            let mut input = pin!(relay.input());
            let mut open = true;
            std::future::poll_fn(|cx| {
                open = open && input.as_mut().poll(cx).is_pending();
                // Ends only when the command has; what it returns then does not matter.
                let _ = output.as_mut().poll(cx);
                Poll::<()>::Pending
            })
            .await;
        };
        stand_by(running, signals, limit, both).await?
    };
    relay.ended();
    let begun = relay.moved();
    loop {
        let before = relay.moved();
        tokio::select! {
            () = &mut output => break,
            () = sleep(QUIET) => {
                // On a machine that stood still both have come, the time and what there is to be read.
                let quiet = relay.moved() == before && !relay.has_more();
                if !relay.writing() && (quiet || before - begun > LEFT) {
                    break;
                }
            }
            number = signals.next() => {
                if number != libc::SIGWINCH {
                    break;
                }
            }
        }
    }
    Ok(status)
}

/// Passes signals on and watches the clock until the command has ended. `meanwhile` is done besides.
async fn stand_by(
    running: &Running,
    signals: &mut Signals,
    limit: Option<Duration>,
    meanwhile: impl Future<Output = ()>,
) -> io::Result<Status> {
    let child = watch(running.pidfd.as_fd(), Interest::READABLE)?;
    let mut meanwhile = pin!(meanwhile);
    // As with timeout(1), nothing is no limit.
    let limit = limit.filter(|limit| !limit.is_zero());
    let mut clock = Clock { next: limit.and_then(|limit| Instant::now().checked_add(limit)), expired: 0 };
    loop {
        tokio::select! {
            // One that has ended was in time, however late this process gets to see it.
            biased;
            ready = child.readable() => {
                let mut ready = ready?;
                if let Some(ended) = running.try_reap()? {
                    return Ok(match clock.expired {
                        0 => Status::try_from(ended.status()).unwrap_or(Status::MAX),
                        _ => TIMED_OUT,
                    });
                }
                ready.clear_ready_matching(Ready::READABLE);
            }
            number = signals.next() => {
                // It may have ended in this very moment.
                let _ = match number {
                    libc::SIGWINCH => running.copy_window_size(),
                    number => running.signal(number),
                };
            }
            () = clock.wait() => { let _ = running.signal(clock.expire()); }
            () = &mut meanwhile => {}
        }
    }
}

/// The time limit: SIGTERM when it is up, SIGKILL after a while.
struct Clock {
    next: Option<Instant>,
    expired: u32,
}

impl Clock {
    async fn wait(&self) {
        match self.next {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn expire(&mut self) -> i32 {
        self.expired += 1;
        self.next = (self.expired == 1).then(|| Instant::now() + GRACE);
        if self.expired == 1 { libc::SIGTERM } else { libc::SIGKILL }
    }
}

/// The signals that are passed on, and the one that says that the window has another size.
#[derive(Debug)]
struct Signals(AsyncFd<Held>);

impl Signals {
    /// Catches them, but for those that this process was told to ignore, as nohup(1) and shells do.
    ///
    /// One descriptor for all: handlers for all of the real-time signals took 170 system calls of an `exec`. They do not get through
    /// afterwards either: one that comes too late for the command does not keep this process from cleaning up after it.
    fn catch() -> io::Result<Signals> {
        let all: Vec<i32> = PASSED_ON.into_iter().chain([libc::SIGWINCH]).chain(REAL_TIME).collect();
        watch(Held::new(&all)?.for_good(), Interest::READABLE).map(Signals)
    }

    /// The number of the next signal that arrives.
    async fn next(&mut self) -> i32 {
        let next = async || {
            loop {
                let mut ready = self.0.readable().await?;
                if is_ready(self.0.get_ref(), PollFlags::IN) {
                    return self.0.get_ref().next();
                }
                ready.clear_ready();
            }
        };
        match next().await {
            Ok(number) => number,
            Err(e) => {
                tracing::warn!("signals are not passed on any more: {e}");
                std::future::pending().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_says_sigterm_once_then_sigkill_and_then_nothing() {
        let mut clock = Clock { next: None, expired: 0 };
        assert_eq!(clock.expire(), libc::SIGTERM);
        assert!(clock.next.is_some());
        assert_eq!(clock.expire(), libc::SIGKILL);
        assert!(clock.next.is_none());
    }
}
