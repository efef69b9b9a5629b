//! The command line face: parses, calls one operation, prints.
//!
//! Data goes to standard output, all else to standard error. Nothing here decides anything about sparks.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::domain::name::{Name, SparkRef};
use crate::domain::place::{Place, ROOT, RUN};
use crate::error::{Code, Error, Result};
use crate::ops::{Context, Sparks};

mod args;
mod attach;
mod commands;
mod output;
mod progress;
mod relay;
mod report;
mod usage;

use args::{Cli, Global, Verb};
use progress::Progress;
use report::Status;

/// Where the host's own bundle templates are.
const TEMPLATES: &str = "/etc/spark/bundles";

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage::explain(&e).into(),
    };
    let json = cli.global.json;
    let runs_a_command = matches!(cli.verb, Verb::Exec(_) | Verb::Console(_));
    let status = match run(cli) {
        Ok(status) => status,
        Err(e) => {
            report::error(&e, json);
            if runs_a_command { report::exec_status(&e) } else { report::status(&e) }
        }
    };
    status.into()
}

fn run(mut cli: Cli) -> Result<Status> {
    cli.global.verbose = cli.global.verbose.saturating_add(cli.v);
    // What needs no pool, no project and no log comes first: it has to work anywhere, and at once.
    match cli.verb {
        Verb::Version(args) => return commands::version::version(cli.global.json, args),
        Verb::Completion(args) => return commands::completion::completion(args),
        Verb::Man(args) => return commands::man::man(args),
        _ => {}
    }
    log_to_stderr(cli.global.verbose)?;
    commands::dispatch(&Ctx::new(cli.global)?, cli.verb)
}

/// Starts logging if it was asked for. libcontainer tells a lot that only its authors want to know.
fn log_to_stderr(verbose: u8) -> Result<()> {
    let filter = match (env("SPARK_LOG")?, verbose) {
        (Some(filter), _) => filter,
        (None, 0) => return Ok(()),
        (None, 1) => "sparks=debug,warn,libcontainer=off,libcgroups=off".into(),
        (None, _) => "debug".into(),
    };
    let filter = tracing_subscriber::EnvFilter::try_new(&filter).map_err(|e| Error::Usage {
        message: format!("SPARK_LOG: `{filter}` is not a filter: {e}"),
        hint: Some("write it like `debug` or `sparks=trace,warn`".into()),
    })?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).finish();
    // Only a second subscriber would be refused, and this is called once.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// An environment variable; an empty one counts as not set.
fn env(name: &str) -> Result<Option<String>> {
    match std::env::var_os(name).filter(|v| !v.is_empty()).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(Error::usage(format!("{name} is not UTF-8"))),
    }
}

fn env_name(name: &str) -> Result<Option<Name>> {
    env(name)?
        .map(|text| text.parse::<Name>())
        .transpose()
        .map_err(|e| Error::Usage { message: format!("{name}: {e}"), hint: Some(e.hint()) })
}

fn env_dir(name: &str, default: &str) -> Result<PathBuf> {
    match std::env::var_os(name).filter(|v| !v.is_empty()) {
        None => Ok(default.into()),
        Some(dir) => std::path::absolute(&dir).map_err(Error::io("find", &dir)),
    }
}

/// What every verb has at hand.
#[derive(Debug)]
pub(crate) struct Ctx {
    context: Context,
    json: bool,
    verbose: bool,
}

impl Ctx {
    fn new(global: Global) -> Result<Ctx> {
        let project = match global.project {
            Some(project) => Some(project),
            None => env_name("SPARK_PROJECT")?,
        };
        let cwd = match std::env::current_dir() {
            Ok(cwd) => cwd,
            // It may have been deleted, which matters only where the project is looked for.
            Err(_) if project.is_some() => "/".into(),
            Err(e) => return Err(Error::sys("find the working directory")(e)),
        };
        let context = Context {
            place: Place { root: env_dir("SPARK_ROOT", ROOT)?, run: env_dir("SPARK_RUN", RUN)? },
            project,
            cwd,
            base: env_name("SPARK_BASE")?,
            templates: TEMPLATES.into(),
        };
        Ok(Ctx { context, json: global.json, verbose: global.verbose > 0 })
    }

    /// Shows progress; if `quiet`, nothing.
    fn progress(&self, quiet: bool) -> Progress {
        Progress::new(self.verbose, quiet)
    }

    /// Opens the pool, if there is one, for the verb that tells what a crash left: nothing is collected before.
    fn open_as_it_is(&self) -> Result<Option<Sparks>> {
        Sparks::open(self.context.clone()).map_err(needs_root)
    }

    /// Opens the pool, if there is one.
    fn open(&self) -> Result<Option<Sparks>> {
        let sparks = Sparks::open(self.context.clone()).map_err(needs_root)?;
        if let Some(sparks) = &sparks {
            tidy(sparks);
        }
        Ok(sparks)
    }

    /// Opens the pool, making it if there is none.
    fn sparks(&self, progress: &Progress) -> Result<Sparks> {
        let sparks = Sparks::open_or_init(self.context.clone(), progress).map_err(needs_root)?;
        tidy(&sparks);
        Ok(sparks)
    }

    /// Opens the pool that a named thing is to be in: without a pool it does not exist.
    fn having(&self, kind: &'static str, name: impl ToString) -> Result<Sparks> {
        self.open()?.ok_or_else(|| Error::NotFound {
            kind,
            name: name.to_string(),
            in_project: None,
            near: Vec::new(),
        })
    }

    /// Opens the pool that a spark is to be in.
    fn having_spark(&self, spark: &SparkRef) -> Result<Sparks> {
        self.having("spark", spark)
    }

    /// Tells people something on standard error: a program that calls us does not need it.
    fn say(&self, line: impl std::fmt::Display) {
        if !self.json && std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            output::eprint(line);
        }
    }

    /// The same where it is not what was expected: also to those who look at it later.
    fn warn(&self, line: impl std::fmt::Display) {
        if !self.json {
            output::eprint(line);
        }
    }

    /// Does something to each of several, going on after a failure. The status says whether all succeeded.
    fn each<T>(&self, items: &[T], mut work: impl FnMut(&T) -> Result<()>) -> Status {
        let mut worst = 0;
        for item in items {
            if let Err(e) = work(item) {
                report::error(&e, self.json);
                worst = report::FAILED;
            }
        }
        worst
    }
}

/// To somebody who is not root, a pool that stays closed says only that.
pub(crate) fn needs_root(error: Error) -> Error {
    match error.code() {
        Code::Denied if !rustix::process::geteuid().is_root() => Error::Denied {
            what: "spark needs root: it makes containers, mounts and snapshots".into(),
            hint: "run it as root: `sudo spark …`".into(),
        },
        _ => error,
    }
}

/// Removes ephemeral sparks whose command was killed, and has expired trash freed while this command does its work.
/// What that fails on is no reason to fail this command, and `spark gc` says it again.
fn tidy(sparks: &Sparks) {
    if let Err(e) = sparks.collect_abandoned() {
        tracing::warn!("cannot collect abandoned sparks: {e}");
    }
    if sparks.has_expired_trash() {
        commands::gc::in_background();
    }
}
