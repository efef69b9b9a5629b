//! One process of a container: its first, or one that was executed in it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use containerd_shim::api::{StateResponse, Status};
use containerd_shim::protos::protobuf::MessageField;
use tokio::sync::watch;

use super::events::timestamp;
use super::reap::Exit;
use super::stdio::{Copies, Wanted};
use crate::error::{Error, Result};

/// A process from the request for it until it is deleted.
#[derive(Debug)]
pub(super) struct Process {
    /// Empty for the first.
    pub(super) exec_id: String,
    pub(super) streams: Wanted,
    /// What to execute, as JSON. Empty for the first, whose bundle says it.
    pub(super) what: Vec<u8>,
    /// Held while it is started, so that its end is not told before its beginning.
    pub(super) starting: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    exit: watch::Sender<Option<Exit>>,
}

#[derive(Debug, Default)]
struct State {
    /// 0 before there is one.
    pid: u32,
    started: bool,
    copies: Option<Copies>,
}

impl Process {
    pub(super) fn new(exec_id: String, streams: Wanted, what: Vec<u8>) -> Process {
        Process {
            exec_id,
            streams,
            what,
            starting: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            exit: watch::Sender::new(None),
        }
    }

    /// Its number, or 0 before there is one.
    pub(super) fn pid(&self) -> u32 {
        self.state().pid
    }

    pub(super) fn set_pid(&self, pid: u32) {
        self.state().pid = pid;
    }

    pub(super) fn set_started(&self) {
        self.state().started = true;
    }

    pub(super) fn is_started(&self) -> bool {
        self.state().started
    }

    pub(super) fn set_copies(&self, copies: Copies) {
        self.state().copies = Some(copies);
    }

    /// Takes what copies, to wait for its end.
    pub(super) fn take_copies(&self) -> Option<Copies> {
        self.state().copies.take()
    }

    pub(super) fn close_input(&self) {
        if let Some(copies) = &self.state().copies {
            copies.close_input();
        }
    }

    /// # Errors
    /// Without a terminal, or if the kernel refuses the size.
    pub(super) fn resize(&self, columns: u32, rows: u32) -> Result<()> {
        let size =
            |n: u32| u16::try_from(n).map_err(|_| Error::usage(format!("no terminal is {n} wide or high")));
        let (columns, rows) = (size(columns)?, size(rows)?);
        let terminal = self.state().copies.as_ref().and_then(|c| c.terminal().cloned());
        match terminal {
            Some(terminal) => terminal.resize(columns, rows).map_err(Error::sys("resize the terminal")),
            // It may be asked for before there is a process, and after it has ended.
            None if self.streams.terminal => Ok(()),
            None => Err(Error::usage("the process has no terminal")),
        }
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    pub(super) fn set_exit(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
    }

    /// Waits for its end. Nothing if it was deleted without one.
    pub(super) async fn wait(&self) -> Option<Exit> {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.ok()?;
        *ended
    }

    /// What containerd asks of its state.
    pub(super) fn describe(&self, paused: bool) -> StateResponse {
        let (pid, started) = {
            let state = self.state();
            (state.pid, state.started)
        };
        let exit = self.exit();
        let status = match (exit, started) {
            (Some(_), _) => Status::STOPPED,
            (None, false) => Status::CREATED,
            (None, true) if paused => Status::PAUSED,
            (None, true) => Status::RUNNING,
        };
        StateResponse {
            pid,
            status: status.into(),
            stdin: self.streams.stdin.clone(),
            stdout: self.streams.stdout.clone(),
            stderr: self.streams.stderr.clone(),
            terminal: self.streams.terminal,
            exit_status: exit.map_or(0, |e| e.status),
            exited_at: exit.map(|e| timestamp(e.at)).map_or_else(MessageField::none, MessageField::some),
            exec_id: self.exec_id.clone(),
            ..StateResponse::default()
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
