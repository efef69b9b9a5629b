//! `exec` and `console`: a command inside a spark.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Sparks;
use super::spark::{Opened, SparkId};
use crate::bundle::{spec::set_env, write};
use crate::domain::place::SparkPaths;
use crate::domain::spark::State;
use crate::error::{Error, Result};
use crate::runtime::confine::Confinement;
use crate::runtime::enter::{Entered, Entry, Failure};
use crate::runtime::users;
use crate::sys;
use crate::sys::flock::Mode;

pub use crate::sys::process::Ended;
pub use crate::sys::tty::{RawMode, is_terminal};

/// A command and how to run it.
#[derive(Debug, Clone, Default)]
pub struct Command {
    /// Empty for the user's own shell.
    pub argv: Vec<OsString>,
    pub env: Vec<(String, String)>,
    /// The spark's own if none, and else the user's home.
    pub workdir: Option<PathBuf>,
    /// The spark's own if none, and else root.
    pub user: Option<String>,
    /// On a terminal of its own.
    pub terminal: bool,
    /// As a login shell.
    pub login: bool,
    /// `TERM` inside.
    pub term: Option<String>,
}

/// A command that runs: a child of this process, not yet reaped.
#[derive(Debug)]
pub struct Running {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The terminal's other side.
    pub master: Option<OwnedFd>,
}

impl Running {
    fn of(entered: Entered) -> Result<Running> {
        let pidfd = sys::process::pidfd_open(entered.pid).map_err(Error::sys("watch the command"))?;
        Ok(Running { pid: entered.pid, pidfd, master: entered.master })
    }

    /// Signals the command and what it has started in its process group.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        sys::process::signal_group(self.pid, signal)
    }

    /// How the command ended, if it has.
    pub fn try_reap(&self) -> io::Result<Option<Ended>> {
        sys::process::reap(self.pid, false)
    }

    /// Waits until the command has ended.
    pub fn wait(&self) -> io::Result<Ended> {
        match sys::process::reap(self.pid, true)? {
            Some(ended) => Ok(ended),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Gives its terminal the size of another.
    pub fn copy_window_size(&self, from: impl AsFd) -> io::Result<()> {
        match &self.master {
            Some(master) => sys::tty::copy_size(from, master),
            None => Ok(()),
        }
    }
}

impl Sparks {
    /// Runs a command in a spark, resuming it first if it is stopped or paused. The standard streams are this
    /// process's own.
    ///
    /// # Errors
    /// [`Error::Exec`] if the program could not be executed.
    pub fn exec(&self, spark: &SparkId, command: &Command) -> Result<Running> {
        Running::of(self.enter(spark, command, false)?)
    }

    /// The same with the spark's log as standard output and error, and nothing to read.
    pub(super) fn exec_logged(&self, spark: &SparkId, command: &Command) -> Result<Running> {
        let command = Command { terminal: false, ..command.clone() };
        Running::of(self.enter(spark, &command, true)?)
    }

    /// Runs a command that outlives this process, and writes to the spark's log. Returns its pid on the host.
    pub fn exec_detached(&self, spark: &SparkId, command: &Command) -> Result<i32> {
        self.exec_logged(spark, command).map(|running| running.pid)
    }

    fn enter(&self, spark: &SparkId, command: &Command, detached: bool) -> Result<Entered> {
        // PID 1 may leave between the look and the entry, for idleness or by another's `stop`: then once more.
        for _ in 0..3 {
            let opened = self.open_spark(spark, Mode::Shared)?;
            if !self.runs_on(&opened.record) {
                drop(opened);
                self.ensure_running(spark)?;
                continue;
            }
            let entry = self.entry(&opened, command, detached)?;
            match entry.start() {
                Ok(entered) => return Ok(entered),
                Err(Failure::Exec(source)) => {
                    let name =
                        command.argv.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
                    return Err(Error::Exec {
                        command: name.escape_default().to_string(),
                        spark: spark.to_string(),
                        source,
                    });
                }
                Err(Failure::Other(_)) if self.state(&opened.record) != State::Running => {}
                Err(Failure::Other(e)) => return Err(e),
            }
        }
        Err(Error::Busy { what: format!("spark `{spark}`"), why: "it keeps being stopped or paused".into() })
    }

    fn entry(&self, opened: &Opened, command: &Command, detached: bool) -> Result<Entry> {
        let record = &opened.record;
        let gone = || Error::sys("find PID 1")(io::Error::from_raw_os_error(libc::ESRCH));
        let live = self.live(record).ok_or_else(gone)?;
        let (process, filter) = write::read(&self.bundle(record))?;
        let paths = SparkPaths(&opened.dir);
        let wanted = command.user.as_deref().or(record.options.user.as_deref()).unwrap_or("0");
        let user = users::find(&paths.root(), wanted)?;

        let mut argv = command.argv.clone();
        let mut shown_as = None;
        if argv.is_empty() {
            argv.push(user.shell.clone().into_os_string());
        }
        if command.login {
            let name = Path::new(&argv[0]).file_name().unwrap_or_default();
            let mut dashed = OsString::from("-");
            dashed.push(name);
            shown_as = Some(dashed);
        }
        let given = command.workdir.clone().or_else(|| record.options.workdir.clone());
        let mut env = process.env().clone().unwrap_or_default();
        let home = user.home.to_string_lossy();
        let mut defaults = vec![("HOME", home.as_ref())];
        if let Some(name) = &user.name {
            defaults.push(("USER", name));
        }
        for (key, value) in defaults {
            if !record.options.env.contains_key(key) {
                set_env(&mut env, key, value);
            }
        }
        if let Some(term) = &command.term
            && !record.options.env.contains_key("TERM")
        {
            set_env(&mut env, "TERM", term);
        }
        for (key, value) in &command.env {
            set_env(&mut env, key, value);
        }
        Ok(Entry {
            container: self.handle(record),
            confinement: Confinement::of(&process, filter)?,
            workdir_optional: given.is_none(),
            workdir: given.unwrap_or_else(|| user.home.clone()),
            live,
            user,
            argv,
            shown_as,
            env: env.into_iter().map(OsString::from).collect(),
            terminal: command.terminal,
            streams: detached.then(|| log_streams(&paths.log())).transpose()?,
        })
    }
}

/// The streams of a detached command: nothing, and the log twice.
fn log_streams(log: &Path) -> Result<[OwnedFd; 3]> {
    let open = || -> io::Result<[OwnedFd; 3]> {
        let null = File::open("/dev/null")?;
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(log)?;
        // A command opens its output anew through /dev/stdout, as a user that owns nothing of the host's. Nobody
        // else gets here: the pool's top is closed to all but root.
        file.set_permissions(PermissionsExt::from_mode(0o622))?;
        Ok([null.into(), file.try_clone()?.into(), file.into()])
    };
    open().map_err(Error::io("open", log))
}
