//! The command line face: parses, calls one operation, prints.
//!
//! Data goes to standard output, all else to standard error. Nothing here decides anything about sparks.

// Comments on arguments are the texts of `--help`, where brackets mean what may be left out.
#![allow(rustdoc::broken_intra_doc_links)]

use std::borrow::Borrow;
use std::ffi::OsString;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread;

use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::domain::limits::parse_duration;
use crate::domain::name::{Name, SparkRef};
use crate::domain::place::{Place, ROOT, RUN};
use crate::error::{Code, Error, Result};
use crate::ops::begin::{self, Program, begin, keep_only_arguments};
use crate::ops::project::Lost;
use crate::ops::secrets::Settings;
use crate::ops::{Context, Sparks, config};

mod args;
mod commands;
mod forward;
mod output;
mod progress;
mod report;
mod usage;

use args::{Cli, Global, Verb};
use progress::Progress;
use report::Status;

/// Where the host's own bundle templates are.
const TEMPLATES: &str = "/etc/spark/bundles";
/// How many things are waited for at once.
const AT_ONCE: usize = 64;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    if let Some(status) = begin::reader() {
        return status;
    }
    if let Err(e) = begin(Program::Spark) {
        // Nothing is known of the command line: reading it takes room.
        let json = std::env::args_os().any(|arg| arg == "--json");
        report::error(&e, json);
        let runs_a_command =
            std::env::args_os().nth(1).is_some_and(|verb| verb == "exec" || verb == "console");
        return if runs_a_command { report::exec_status(&e) } else { report::FAILED }.into();
    }
    let cli = match parse() {
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

/// Parses the arguments, and erases them from where all users of the host see them.
fn parse() -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
    let words = words(&command, &matches);
    let cli = Cli::from_arg_matches_mut(&mut matches).map_err(|e| e.format(&mut command))?;
    keep_only_arguments(&words);
    Ok(cli)
}

/// The words of the command line that say which command it is, as they were written.
fn words(mut command: &Command, mut matches: &ArgMatches) -> Vec<OsString> {
    let mut args = std::env::args_os().skip(1);
    let mut words = Vec::new();
    while let Some((name, inner)) = matches.subcommand() {
        let Some(sub) = command.find_subcommand(name) else { break };
        let is_it = |arg: &OsString| arg == name || sub.get_all_aliases().any(|alias| arg == alias);
        words.extend(args.by_ref().find(is_it));
        (command, matches) = (sub, inner);
    }
    words
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
    let mut ctx = Ctx::new(cli.global, commands::only_reads(&cli.verb))?;
    // What mends things goes on whatever is configured.
    if !matches!(cli.verb, Verb::Doctor(_) | Verb::Gc(_) | Verb::Pool(_)) {
        ctx.configure()?;
    }
    let done = commands::dispatch(&ctx, cli.verb);
    if matches!(&ctx.context.lost, Lost::UsesDefault(used) if used.load(Ordering::Relaxed)) {
        ctx.warn(
            "the working directory cannot be read: this is project `default`; name another with `-P PROJECT`",
        );
    }
    done
}

/// Starts logging if it was asked for. What libraries log, only their authors want to know: `SPARK_LOG` shows that too.
fn log_to_stderr(verbose: u8) -> Result<()> {
    let filter = match (env("SPARK_LOG")?, verbose) {
        (Some(filter), _) => filter,
        (None, 0) => return Ok(()),
        (None, 1) => "sparks=debug".into(),
        (None, _) => "sparks=trace,mmdebstrap=debug".into(),
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

/// What the sources of secrets are told. The commands of `cmd://NAME` come from the user's configuration, and so from
/// nowhere yet.
fn secret_settings() -> Result<Settings> {
    let mut settings = Settings::default();
    settings.asking.at_terminal = true;
    if let Some(time) = env("SPARK_SECRET_TIMEOUT")? {
        let timeout =
            parse_duration(&time).map_err(|e| Error::usage(format!("SPARK_SECRET_TIMEOUT: {e}")))?;
        settings.timeout = timeout;
    }
    Ok(settings)
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

/// Where everything of this installation is.
fn place() -> Result<Place> {
    Ok(Place { root: env_dir("SPARK_ROOT", ROOT)?, run: env_dir("SPARK_RUN", RUN)? })
}

/// What every verb has at hand.
#[derive(Debug)]
pub(crate) struct Ctx {
    context: Context,
    /// `--project` was given.
    project_is_given: bool,
    /// `SPARK_CONFIG`.
    config: Option<PathBuf>,
    own_files: OnceLock<config::Loaded>,
    all_files: OnceLock<config::Loaded>,
    json: bool,
    verbose: bool,
}

impl Ctx {
    fn new(global: Global, only_reads: bool) -> Result<Ctx> {
        let project_is_given = global.project.is_some();
        let project = match global.project {
            Some(project) => Some(project),
            None => env_name("SPARK_PROJECT")?,
        };
        let config = match std::env::var_os("SPARK_CONFIG").filter(|v| !v.is_empty()) {
            None => None,
            Some(path) => Some(std::path::absolute(&path).map_err(Error::io("find", &path))?),
        };
        let context = Context {
            place: place()?,
            project,
            // It may have been deleted, which matters only where the project is looked for.
            cwd: std::env::current_dir().ok(),
            lost: if only_reads { Lost::UsesDefault(Arc::default()) } else { Lost::Fails },
            base: env_name("SPARK_BASE")?,
            templates: TEMPLATES.into(),
            secrets: secret_settings()?,
            program: Some("/proc/self/exe".into()),
            warn: |text| output::eprint(output::escape(text)),
        };
        let (json, verbose) = (global.json, global.verbose > 0);
        let (own_files, all_files) = Default::default();
        Ok(Ctx { context, project_is_given, config, own_files, all_files, json, verbose })
    }

    /// Takes what no repository has a say in: what `cmd://` runs, and the project that is configured, where neither a
    /// name nor a repository says what it is.
    fn configure(&mut self) -> Result<()> {
        let own = self.own_settings()?;
        self.context.secrets.commands = own.secret_commands;
        if self.context.project.is_none() && !self.is_in_repository() {
            self.context.project = own.project;
        }
        Ok(())
    }

    /// All configuration files, each read once.
    fn config(&self) -> Result<&config::Loaded> {
        once(&self.all_files, || self.own_config()?.clone().with_repository(self.context.cwd.as_deref()))
    }

    /// The files of the user and of the host.
    fn own_config(&self) -> Result<&config::Loaded> {
        let system = std::path::Path::new(config::SYSTEM);
        once(&self.own_files, || config::load_own(&config::Sources { user: self.config.clone(), system }))
    }

    /// What all configuration files say.
    fn settings(&self) -> Result<config::Settings> {
        self.config()?.settings()
    }

    /// What those say that no repository has a say in.
    fn own_settings(&self) -> Result<config::Settings> {
        self.own_config()?.settings()
    }

    /// Whether the repository says what the project is, or may do so: nobody knows that of a directory that is gone.
    fn is_in_repository(&self) -> bool {
        self.context.cwd.as_deref().is_none_or(config::is_in_repository)
    }

    /// Whether `SPARK_BASE` says what to start from.
    fn has_base(&self) -> bool {
        self.context.base.is_some()
    }

    /// What flags and the environment say, and where everything is.
    fn given(&self) -> Result<Vec<config::Row>> {
        let row = |key: &str, value: &str, from: &str| config::Row::new(key, Some(value.to_owned()), from);
        let mut rows = Vec::new();
        if self.project_is_given || env("SPARK_PROJECT")?.is_some() {
            let from = if self.project_is_given { "--project" } else { "SPARK_PROJECT" };
            rows.extend(self.context.project.iter().map(|project| row("project", project.as_str(), from)));
        }
        rows.extend(self.context.base.iter().map(|base| row("base", base.as_str(), "SPARK_BASE")));
        let place = &self.context.place;
        for (key, variable, dir) in [("root", "SPARK_ROOT", &place.root), ("run", "SPARK_RUN", &place.run)] {
            let is_set = std::env::var_os(variable).is_some_and(|v| !v.is_empty());
            rows.push(row(key, &dir.display().to_string(), if is_set { variable } else { "default" }));
        }
        let log = env("SPARK_LOG")?;
        let from = if log.is_some() { "SPARK_LOG" } else { "default" };
        rows.push(config::Row::new("log", log, from));
        Ok(rows)
    }

    /// Shows progress; if `quiet`, nothing.
    fn progress(&self, quiet: bool) -> Progress {
        Progress::new(self.verbose, quiet)
    }

    /// Opens the pool, if there is one, for the verb that tells what a crash left: nothing is collected before.
    fn open_as_it_is(&self) -> Result<Option<Sparks>> {
        let sparks = Sparks::open(self.context.clone()).map_err(needs_root)?;
        for notice in sparks.iter().flat_map(Sparks::notices) {
            output::eprint(format_args!("warning: {notice}"));
        }
        Ok(sparks)
    }

    /// Opens the pool where it is mounted: what nobody waits for mounts nothing again that was unmounted meanwhile.
    fn open_mounted(&self) -> Result<Option<Sparks>> {
        Sparks::open_mounted(self.context.clone()).map_err(needs_root)
    }

    /// Opens the pool, if there is one.
    fn open(&self) -> Result<Option<Sparks>> {
        let sparks = self.open_as_it_is()?;
        if let Some(sparks) = &sparks {
            tidy(sparks);
        }
        Ok(sparks)
    }

    /// Opens the pool, making it if there is none.
    fn sparks(&self, progress: &Progress) -> Result<Sparks> {
        // Opened before, it is as it is; else it is made.
        let opened = self.open_as_it_is()?;
        let make = || Sparks::open_or_init(self.context.clone(), progress).map_err(needs_root);
        let sparks = opened.map_or_else(make, Ok)?;
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
    fn each<T>(&self, items: &[T], work: impl FnMut(&T) -> Result<()>) -> Status {
        self.tell(items.iter().map(work).filter_map(Result::err))
    }

    /// The same with many at once, for work that waits for others most of the time. Failures are told in the items' order.
    fn each_at_once<T: Sync>(&self, items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Status {
        self.tell(items.chunks(AT_ONCE).flat_map(|some| at_once(some, &work)).filter_map(Result::err))
    }

    /// Tells of each failure as it comes. The status says whether there was one.
    fn tell<E: Borrow<Error>>(&self, failures: impl Iterator<Item = E>) -> Status {
        failures.fold(0, |_, e| {
            report::error(e.borrow(), self.json);
            report::FAILED
        })
    }
}

/// Reads configuration files, unless that has been done.
fn once(
    cell: &OnceLock<config::Loaded>,
    load: impl FnOnce() -> Result<config::Loaded>,
) -> Result<&config::Loaded> {
    match cell.get() {
        Some(loaded) => Ok(loaded),
        None => load().map(|loaded| cell.get_or_init(|| loaded)).map_err(unreadable),
    }
}

/// Does something to each of a few, the first in this thread.
fn at_once<T: Sync>(items: &[T], work: &(impl Fn(&T) -> Result<()> + Sync)) -> Vec<Result<()>> {
    let Some((first, others)) = items.split_first() else { return Vec::new() };
    thread::scope(|scope| {
        let threads: Vec<_> = others
            .iter()
            .map(|item| (item, thread::Builder::new().spawn_scoped(scope, || work(item))))
            .collect();
        let mut done = vec![work(first)];
        done.extend(threads.into_iter().map(|(item, thread)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            // There may be no more threads just where something is to be stopped.
            Err(_) => work(item),
        }));
        done
    })
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

/// The same of a configuration file that cannot be opened. What is wrong in one is wrong for root too.
fn unreadable(error: Error) -> Error {
    match error {
        Error::Io { .. } => needs_root(error),
        _ => error,
    }
}

/// Removes ephemeral sparks whose command was killed, and has expired trash freed while this command does its work.
/// What that fails on is no reason to fail this command, and `spark gc` says it again.
fn tidy(sparks: &Sparks) {
    if let Err(e) = sparks.collect_abandoned() {
        tracing::warn!("cannot collect abandoned sparks: {e}");
    }
    if let Err(e) = sparks.collect_networks() {
        tracing::warn!("cannot collect networks: {e}");
    }
    if sparks.has_expired_trash() {
        commands::gc::in_background();
    }
}
