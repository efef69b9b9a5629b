//! The one place where processes are reaped.
//!
//! The shim is the subreaper of its containers: their first processes, what was executed in them, the helpers
//! of the shim and what any of these left behind all end as its children. Each is waited for here, once.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::io::Errno;
use rustix::process::{Pid, WaitIdOptions, WaitOptions, WaitStatus};
use tokio::signal::unix::SignalKind;
use tokio::sync::oneshot;

use crate::ops::oci::signal_child;

/// How and when a process ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exit {
    /// Its status, or 128 + n after signal n.
    pub(super) status: u32,
    pub(super) at: SystemTime,
}

/// Hands the end of each process to who asked for it.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<u32, oneshot::Sender<Exit>>,
    /// Ends that nobody asked for yet, kept while there are windows.
    early: HashMap<u32, Exit>,
    windows: usize,
}

/// While there is one, no end is forgotten: a process may end before its number could be read.
#[derive(Debug)]
pub(super) struct Window {
    reaper: Arc<Reaper>,
}

impl Reaper {
    /// Starts to reap, for good.
    ///
    /// # Errors
    /// If SIGCHLD cannot be listened to.
    pub(super) fn start() -> io::Result<Arc<Reaper>> {
        let reaper = Arc::new(Reaper::default());
        let mut signal = tokio::signal::unix::signal(SignalKind::child())?;
        let all = Arc::clone(&reaper);
        tokio::spawn(async move {
            loop {
                all.reap();
                if signal.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Keeps ends until it is dropped.
    pub(super) fn window(self: &Arc<Self>) -> Window {
        self.table().windows += 1;
        Window { reaper: Arc::clone(self) }
    }

    /// Starts a program and returns what waits for its end.
    ///
    /// Nothing is reaped in between, so that the standard library can wait for what it could not execute.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<oneshot::Receiver<Exit>> {
        self.spawn_with_pid(command).map(|(_, ended)| ended)
    }

    /// The same with the number of the program, for those who signal it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn spawn_with_pid(&self, command: &mut Command) -> io::Result<(u32, oneshot::Receiver<Exit>)> {
        let mut table = self.table();
        let child = command.spawn()?;
        Ok((child.id(), table.wait_for(child.id())))
    }

    /// Returns what waits for the end of a child that somebody else started.
    ///
    /// # Errors
    /// `ESRCH` if it is no child of this process and did not end within an open [`Window`].
    pub(super) fn claim(&self, pid: u32) -> io::Result<oneshot::Receiver<Exit>> {
        let mut table = self.table();
        if let Some(exit) = table.early.remove(&pid) {
            let (tell, hear) = oneshot::channel();
            let _ = tell.send(exit);
            return Ok(hear);
        }
        // Looks without reaping: that of a stranger would be waited for without end.
        let only_look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let child = pid_of(pid).ok_or(Errno::SRCH)?;
        rustix::process::waitid(rustix::process::WaitId::Pid(child), only_look).map_err(|_| Errno::SRCH)?;
        Ok(table.wait_for(pid))
    }

    /// Sends a signal to a process that was claimed. No other process can have its number by then.
    ///
    /// # Errors
    /// `ESRCH` if it has ended, `EINVAL` for a number that is no signal.
    pub(super) fn signal(&self, pid: u32, signal: u32) -> io::Result<()> {
        let table = self.table();
        let target = pid_of(pid).filter(|_| table.waiting.contains_key(&pid)).ok_or(Errno::SRCH)?;
        let number = i32::try_from(signal).map_err(|_| Errno::INVAL)?;
        signal_child(target.as_raw_pid(), number)
    }

    fn reap(&self) {
        let mut table = self.table();
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let Some(status) = status_of(status) else { continue };
                    table.ended(pid.as_raw_pid().unsigned_abs(), Exit { status, at: SystemTime::now() });
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn wait_for(&mut self, pid: u32) -> oneshot::Receiver<Exit> {
        let (tell, hear) = oneshot::channel();
        self.waiting.insert(pid, tell);
        hear
    }

    fn ended(&mut self, pid: u32, exit: Exit) {
        match self.waiting.remove(&pid) {
            // Who asked may have gone.
            Some(tell) => _ = tell.send(exit),
            None if self.windows > 0 => _ = self.early.insert(pid, exit),
            None => {}
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut table = self.reaper.table();
        table.windows -= 1;
        if table.windows == 0 {
            table.early.clear();
        }
    }
}

fn pid_of(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// The status that a shell would show, or nothing for who only stopped or went on.
fn status_of(status: WaitStatus) -> Option<u32> {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))?;
    u32::try_from(code).ok()
}
