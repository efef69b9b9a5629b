//! `exec` and `console`: a command inside a spark.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::secrets;
use super::spark::{Opened, SparkId};
use super::{Sparks, defaults};
use crate::bundle::spec::{cgroup, set_env};
use crate::bundle::write;
use crate::domain::place::SparkPaths;
use crate::domain::secret::{Key, Secrets};
use crate::domain::spark::State;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::runtime::cgroup::Cgroup;
use crate::runtime::confine::Confinement;
use crate::runtime::enter::{Entered, Entry, Failure};
use crate::runtime::live::{self, Service};
use crate::runtime::streams::{self, Replaced};
use crate::runtime::{secrets as delivered, users};
use crate::sys;
use crate::sys::deadline::Deadline;
use crate::sys::flock::Mode;
use crate::sys::locked::Secret;
use crate::sys::process::ProcessId;

pub use crate::runtime::streams::Pipes;
pub use crate::sys::deadline::Attention;
pub use crate::sys::held::Held;
pub use crate::sys::process::Ended;
pub use crate::sys::tty::{RawMode, is_terminal};

/// How often a spark that ends at the moment of entry is resumed.
const ATTEMPTS: u32 = 10;

/// A command and how to run it.
#[derive(Debug, Clone, Default)]
pub struct Command {
    /// Empty for the user's own shell.
    pub argv: Vec<OsString>,
    pub env: Vec<(String, String)>,
    /// Secrets of this command alone, as variables: over the spark's, and over `env`.
    pub secrets: Secrets,
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
    /// For what the spark's image runs: the number of the signal that `stop` ends it with.
    pub stop_signal: Option<i32>,
}

/// What is passed on to commands by the process that waits for them, which it would end.
pub const PASSED_ON: [i32; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// A command that runs: a child of this process, not yet reaped.
#[derive(Debug)]
pub struct Running {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The terminal's other side.
    pub master: Option<OwnedFd>,
    /// What stands for our standard streams inside. Whoever waits for the command copies between them.
    pub pipes: RefCell<Pipes>,
    pub(super) group: Cgroup,
    /// As many as had been killed in its spark before it was there.
    pub(super) oom_kills: u64,
}

impl Running {
    pub(super) fn of(entered: Entered, group: Cgroup, oom_kills: u64) -> Result<Running> {
        let pidfd = sys::process::pidfd_open(entered.pid).map_err(Error::sys("watch the command"))?;
        let pipes = RefCell::default();
        Ok(Running { pid: entered.pid, pidfd, master: entered.master, pipes, group, oom_kills })
    }

    /// What there is to say of a command that failed: whether, meanwhile, a process of its spark was killed because no
    /// memory was left.
    pub fn out_of_memory(&self, spark: &SparkId, ephemeral: bool) -> Option<Error> {
        let killed = self.group.oom_kills().is_some_and(|kills| kills > self.oom_kills);
        killed.then(|| Error::OutOfMemory {
            spark: spark.to_string(),
            limit: self.group.memory_limit(),
            ephemeral,
        })
    }

    /// Signals the command and what it has started in its process group.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        sys::process::signal_group(self.pid, signal)
    }

    /// How the command ended, if it has.
    pub fn try_reap(&self) -> io::Result<Option<Ended>> {
        sys::process::try_reap(self.pid)
    }

    /// Waits until the command has ended, for as long as it takes.
    pub fn wait(&self) -> io::Result<Ended> {
        loop {
            if let Some(ended) = sys::deadline::reap(self.pid, Deadline::after(Duration::MAX))? {
                return Ok(ended);
            }
        }
    }

    /// Kills the command and what it has started in its process group.
    pub fn end(&self) -> io::Result<()> {
        self.signal(libc::SIGKILL)?;
        sys::deadline::end_child(self.pid)
    }

    /// Gives its terminal the size of the window that this process is in.
    pub fn copy_window_size(&self) -> io::Result<()> {
        match (&self.master, sys::tty::window()) {
            (Some(master), Some(size)) => sys::tty::set_window(master, size),
            _ => Ok(()),
        }
    }
}

impl Sparks {
    /// Runs a command in a spark, resuming it first if it is stopped or paused. The standard streams are this
    /// process's own, but for terminals and for files as output: `Running::pipes` stand for these.
    ///
    /// # Errors
    /// [`Error::Exec`] if the program could not be executed.
    pub fn exec(&self, spark: &SparkId, command: &Command) -> Result<Running> {
        self.enter(spark, command, false)
    }

    /// The same with the spark's log as standard output and error, and nothing to read.
    pub(super) fn exec_logged(&self, spark: &SparkId, command: &Command) -> Result<Running> {
        let command = Command { terminal: false, ..command.clone() };
        self.enter(spark, &command, true)
    }

    /// Runs a command that outlives this process, and writes to the spark's log. Returns its pid on the host.
    pub fn exec_detached(&self, spark: &SparkId, command: &Command) -> Result<i32> {
        self.exec_logged(spark, command).map(|running| running.pid)
    }

    fn enter(&self, spark: &SparkId, command: &Command, detached: bool) -> Result<Running> {
        let _room = self.room()?;
        let own = self.command_secrets(&command.secrets)?;
        // PID 1 may leave between the look and the entry, for idleness or by another's `stop`: then once more.
        for _ in 0..ATTEMPTS {
            let opened = self.open_spark(spark, Mode::Shared)?;
            if !self.runs_on(&opened.record) {
                drop(opened);
                self.ensure_running(spark)?;
                continue;
            }
            self.look_after_network(&opened.record);
            let entry = self
                .entry(&opened, command, detached)
                .and_then(|entry| self.with_secrets(entry, &opened, (command, &own)));
            let mut entry = match entry {
                Err(_) if self.live(&opened.record).is_none_or(|live| live.has_ended()) => continue,
                entry => entry?,
            };
            let mut pipes = Pipes::default();
            if !detached && !command.terminal {
                (entry.streams, pipes) = streams::make().map_err(Error::sys("make a pipe"))?;
            }
            let (live, may_leave) = (entry.live.clone(), entry.may_leave);
            let program = entry.argv.first().cloned().unwrap_or_default();
            let group = Cgroup::new(&cgroup(&opened.record.id));
            let oom_kills = group.oom_kills().unwrap_or_default();
            let mut lock = Some(opened.lock);
            let entered = start(entry, &self.bundle(&opened.record), command.stop_signal, &mut lock);
            let is_late = lock.take().is_none();
            match entered {
                Ok(entered) => {
                    let running = Running::of(entered, group, oom_kills)?;
                    running.pipes.replace(pipes);
                    return Ok(running);
                }
                // Nobody who holds the lock has ended it, and PID 1 does not leave by itself: another command has stopped it.
                Err(Failure::Other(_)) if is_late && !may_leave && live.has_ended() => {
                    return Err(stopped_meanwhile(spark));
                }
                Err(Failure::Other(_))
                    if live.has_ended() || self.state(&opened.record) != State::Running => {}
                Err(failure) => return Err(error_of(failure, spark, command, &program)),
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
            confinement: Confinement::of(&process, filter, defaults::open_files())?,
            workdir_optional: given.is_none(),
            workdir: given.unwrap_or_else(|| user.home.clone()),
            live,
            user,
            argv,
            shown_as,
            env: env.into_iter().map(OsString::from).collect(),
            secrets: Vec::new(),
            terminal: command.terminal,
            streams: Replaced::default(),
            log: detached.then(|| self.open_log(&opened.dir)).transpose()?,
            window: command.terminal.then(sys::tty::window).flatten(),
            is_service: command.stop_signal.is_some(),
            may_leave: record.options.idle_stop.is_some_and(|seconds| seconds > 0),
        })
    }

    /// Adds the variables that are secrets: the command's `own`, those of the spark as they are in its files, and no
    /// other one of their names. What the command was given by `-e` stays.
    fn with_secrets(
        &self,
        mut entry: Entry,
        opened: &Opened,
        (command, own): (&Command, &[(Key, Rc<Secret>)]),
    ) -> Result<Entry> {
        for (key, value) in delivered::variables(&entry.live, &self.bundle(&opened.record))? {
            let other = command.env.iter().any(|(k, _)| k == key.as_str());
            if !other && own.iter().all(|(k, _)| *k != key) {
                secrets::without(&mut entry.env, &key);
                entry.secrets.push(Rc::new(secrets::variable(&key, &value)?));
            }
        }
        for (key, value) in own {
            secrets::without(&mut entry.env, key);
            entry.secrets.push(Rc::clone(value));
        }
        Ok(entry)
    }
}

/// Starts a command. If it is what the image of the spark runs, that is written down in the bundle.
fn start(
    entry: Entry,
    bundle: &Path,
    stop_signal: Option<i32>,
    lock: &mut Option<OwnedFd>,
) -> Result<Entered, Failure> {
    let entering = entry.begin().map_err(Failure::Other)?;
    let note = |stop_signal| -> Result<()> {
        fault::point("service.started")?;
        let process = ProcessId::of(entering.pid()).map_err(Error::sys("identify what the image runs"))?;
        live::write_service(bundle, &Service { process, stop_signal })
    };
    // While the lock is held: the bundle is still the one of this process.
    match stop_signal.map_or(Ok(()), note) {
        Ok(()) => entering.wait(lock),
        Err(e) => {
            entering.abandon();
            Err(Failure::Other(e))
        }
    }
}

/// Why a command did not start.
fn error_of(failure: Failure, spark: &SparkId, command: &Command, program: &OsString) -> Error {
    match failure {
        Failure::Exec(source) => Error::Exec {
            command: program.to_string_lossy().escape_default().to_string(),
            spark: spark.to_string(),
            source,
            // The shell was not named by the caller, so the error says where it came from.
            hint: command.argv.is_empty().then(|| {
                format!("its /etc/passwd names this shell; name another: `spark console {spark} -- /bin/sh`")
            }),
        },
        Failure::TimedOut => stopped_on_its_way(spark),
        Failure::Interrupted => Error::sys("enter the spark")(io::ErrorKind::Interrupted.into()),
        Failure::Other(e) => e,
    }
}

/// Another command has stopped the spark while the command was on its way in.
fn stopped_meanwhile(spark: &SparkId) -> Error {
    Error::WrongState {
        action: "enter",
        kind: "spark",
        name: spark.to_string(),
        state: "stopped by another command meanwhile".into(),
        hint: format!("start it again with `spark resume {spark}`"),
    }
}

/// A command that was not executed in time.
fn stopped_on_its_way(spark: &SparkId) -> Error {
    Error::Spark {
        action: "enter",
        spark: spark.to_string(),
        why: format!(
            "the command did not get in within {} seconds: a process inside stops it, or keeps PID 1 busy",
            sys::deadline::INSIDE.as_secs()
        ),
        code: Code::Busy,
        hint: Some(format!("end what runs inside: `spark stop -t 0 {spark}`, then `spark resume {spark}`")),
        failed: None,
    }
}
