//! Signals, and the removal of all that is left.

use std::time::Duration;

use libcontainer::config::YoukiConfig;

use super::making::Making;
use super::scope;
use super::state::{Container, State};
use crate::error::{Error, Result};
use crate::runtime::closing::Closing;
use crate::runtime::live;
use crate::runtime::youki::{Handle, leave_deleted_directory};
use crate::sys;
use crate::sys::flock::Mode;

/// How long a container that runs may take to end by itself where it is to be deleted.
const GRACE: Duration = Duration::from_millis(100);

/// How often it is looked whether the kernel still closes sockets of what was killed.
const LOOK: Duration = Duration::from_secs(1);

/// The name of a cgroup that is never there.
const NOBODYS: &str = ".spark-oci-removed";

impl Container {
    /// Starts the program of a container that is made.
    pub fn start(&self) -> Result<()> {
        let _lock = self.lock(Mode::Exclusive)?;
        self.mend()?;
        match self.state()? {
            State::Created => {}
            other => return Err(self.refused("start", other)),
        }
        leave_deleted_directory()?;
        let mut container =
            libcontainer::container::Container::load(self.dir()).map_err(|e| self.failed("start", &e))?;
        container.start().map_err(|e| self.failed("start", &e))
    }

    /// Freezes every process.
    pub fn pause(&self) -> Result<()> {
        let _lock = self.lock(Mode::Exclusive)?;
        self.mend()?;
        match self.state()? {
            State::Running => self.handle()?.pause(),
            other => Err(self.refused("pause", other)),
        }
    }

    /// Thaws every process.
    pub fn resume(&self) -> Result<()> {
        let _lock = self.lock(Mode::Exclusive)?;
        self.mend()?;
        match self.state()? {
            State::Paused => self.handle()?.thaw(),
            other => Err(self.refused("resume", other)),
        }
    }

    /// Signals its first process, or every one.
    ///
    /// # Errors
    /// `wrong_state` if it has ended, unless every process is meant: some may have stayed.
    pub fn kill(&self, signal: i32, all: bool) -> Result<()> {
        let state = self.state()?;
        match state {
            State::Created | State::Running | State::Paused => {}
            State::Stopped if all => {}
            other => return Err(self.refused("kill", other)),
        }
        let handle = self.handle()?;
        if all {
            for (_, process) in handle.members() {
                // What has ended meanwhile needs none.
                let _ = sys::process::signal_number(process, signal);
            }
        } else {
            let init = self.init().ok_or_else(|| self.refused("kill", state))?;
            let process = init.open().map_err(|_| self.refused("kill", State::Stopped))?;
            sys::process::signal_number(process, signal).map_err(Error::sys("signal the container"))?;
        }
        if signal == libc::SIGKILL && state == State::Paused {
            // With cgroup v1, what is frozen does not even die.
            live::thaw(&handle.cgroup).map_err(Error::sys("thaw the container"))?;
        }
        Ok(())
    }

    /// Removes what is left of a container, running its `poststop` hooks.
    ///
    /// # Errors
    /// `wrong_state` if it runs, unless forced; then it is ended, and one that is being made is when it is there.
    pub fn delete(&self, force: bool) -> Result<()> {
        let _making = match force.then(|| Making::of(self)).transpose() {
            Err(Error::NotFound { .. }) => return Ok(()),
            making => making?,
        };
        if !force {
            self.forsaken()?;
        }
        let _lock = match self.lock(Mode::Exclusive) {
            Err(Error::NotFound { .. }) if force => return Ok(()),
            lock => lock?,
        };
        if !force && matches!(self.state(), Ok(State::Running)) {
            // Its program may be about to end.
            let init = self.init().and_then(|init| init.open().ok());
            init.map(|init| sys::deadline::ended(init, GRACE));
        }
        match self.state() {
            Ok(state @ (State::Running | State::Paused | State::Creating)) if !force => {
                return Err(self.refused("delete", state));
            }
            Err(e) if !force => return Err(e),
            _ => {}
        }
        self.remove()
    }

    /// Ends and removes it, whatever state it is in. The caller has the lock.
    ///
    /// # Errors
    /// What a `poststop` hook failed with: all is removed then, too.
    pub(super) fn remove(&self) -> Result<()> {
        let handle = match self.handle() {
            Ok(handle) => handle,
            // Killed before it was known which cgroup it gets, and so before anything ran.
            Err(_) => return std::fs::remove_dir_all(self.dir()).map_err(Error::io("remove", self.dir())),
        };
        if self.init().is_none() && YoukiConfig::load(self.dir()).is_err() {
            // Killed before libcontainer knew of it.
            return handle.purge();
        }
        let scope = scope::of(&handle.cgroup);
        self.end_all(&handle);
        if let Some(name) = scope {
            // It takes the cgroup with it: two who remove that would be in each other's way.
            scope::stop(&name);
        }
        // libcontainer removes no cgroup that has others below.
        handle.remove_inner_groups();
        if !handle.before.is_empty() {
            self.keep_cgroup(&handle)?;
        }
        let removed = self.libcontainer().and_then(|mut state| {
            // Nobody may have that number but the one who is dead.
            state.pid = None;
            let mut container = libcontainer::container::Container { state, root: self.dir() };
            container.delete(true).map_err(|e| self.failed("delete", &e))
        });
        if self.dir().exists() || handle.has_cgroup() {
            handle.purge()?;
        }
        removed
    }

    /// Keeps libcontainer from removing a cgroup that was there before: it gets one to remove that nobody has.
    fn keep_cgroup(&self, handle: &Handle) -> Result<()> {
        let Ok(mut config) = YoukiConfig::load(self.dir()) else { return Ok(()) };
        config.cgroup_path = handle.cgroup.join(NOBODYS);
        live::write_json(&self.dir().join("youki_config.json"), &config)
    }

    /// Ends every process, and waits for that.
    fn end_all(&self, handle: &Handle) {
        let init = self.init().and_then(|init| init.open().ok());
        let members = handle.members();
        let all: Vec<_> = init.into_iter().chain(members.into_iter().map(|(_, fd)| fd)).collect();
        let mut closing = Closing::of(self.init().map_or(0, |init| init.pid));
        for process in &all {
            let _ = sys::process::signal(process, rustix::process::Signal::KILL);
        }
        if !all.is_empty() {
            let _ = live::thaw(&handle.cgroup);
        }
        // One deadline for all of them together: there may be thousands.
        for process in &all {
            let ended = |closing: &Closing| sys::deadline::ended(process, LOOK.min(closing.deadline.left()));
            while !ended(&closing).unwrap_or(true) && !closing.is_over() {}
        }
    }
}
