//! `spark exec`

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;

use crate::cli::args::{NewArgs, ProcessArgs, TerminalArgs};
use crate::cli::report::Status;
use crate::cli::{Ctx, output, report};
use crate::domain::limits::parse_duration;
use crate::domain::name::{SparkRef, Target};
use crate::domain::secret::{Delivery, Secrets};
use crate::error::{Error, Result};
use crate::foreground::Supervisor;
use crate::ops::create::Request;
use crate::ops::exec::Command;
use crate::ops::spark::SparkId;
use crate::ops::{Observer, Sparks};

/// Run a command in a spark
///
/// A stopped or paused spark is resumed first. With `-` the command gets a new spark of its own, which is removed when
/// it ends. The exit status is the command's own: 128 + n after signal n, 124 after `--timeout`, 125 if spark failed,
/// 126 if the command cannot be run, 127 if it is not found.
///
/// SIGINT, SIGTERM and SIGHUP are passed on to the command, which they end unless it handles them. Before the command runs,
/// they end spark. If spark is killed by SIGKILL, the command goes on; if it has a terminal, that hangs up. What a command
/// leaves in the background goes on too: who reads a pipe that it has open waits for it, as with ssh(1) and timeout(1).
/// What it writes to a terminal or a file is passed on only until the command ends.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The spark, or `-` for one that lives as long as the command
    #[arg(value_name = "SPARK")]
    target: Target,
    /// The command and its arguments; what follows it is its own
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
    /// Leave it running and print its process id; `spark logs` shows what it writes
    #[arg(short, long, conflicts_with_all = ["tty", "timeout"])]
    detach: bool,
    /// End it after this time, such as 30s or 5m: SIGTERM, and SIGKILL 2 seconds later; 0 is no limit
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Taken for granted: standard input is always the command's
    #[arg(short, long, hide = true)]
    interactive: bool,
    #[command(flatten)]
    pub(crate) terminal: TerminalArgs,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    pub(crate) new: NewArgs,
}

pub(crate) fn exec(ctx: &Ctx, args: ExecArgs) -> Result<Status> {
    if args.detach && args.target == Target::Ephemeral {
        return Err(Error::Usage {
            message: "a detached command cannot have a spark `-`, which lives as long as `spark exec`".into(),
            hint: Some("make a spark with `spark create NAME`, then `spark exec -d NAME -- CMD`".into()),
        });
    }
    let command = command(args.command, &args.process, !args.detach && args.terminal.wanted())?;
    match args.target {
        Target::Named(name) if args.detach => detach(ctx, &name, &args.new, &command),
        target => in_target(
            ctx,
            &Job { target, new: args.new, process: args.process, command, limit: args.timeout },
        ),
    }
}

/// A command with what was said of its environment. Without arguments it is a login shell.
pub(super) fn command(argv: Vec<OsString>, process: &ProcessArgs, terminal: bool) -> Result<Command> {
    Ok(Command {
        login: argv.is_empty(),
        argv,
        env: process.environment()?,
        secrets: own_secrets(process)?,
        workdir: process.workdir.clone(),
        user: process.user.clone(),
        terminal,
        term: std::env::var("TERM").ok().filter(|t| terminal && !t.is_empty()),
        ..Command::default()
    })
}

/// The secrets of one command: variables.
fn own_secrets(process: &ProcessArgs) -> Result<Secrets> {
    Ok(process.secrets()?.into_iter().collect())
}

fn detach(ctx: &Ctx, name: &SparkRef, new: &NewArgs, command: &Command) -> Result<Status> {
    new.refuse_for(name)?;
    refuse_files(command)?;
    let sparks = ctx.having_spark(name)?;
    let pid = sparks.exec_detached(&sparks.resolve(name)?, command)?;
    match ctx.json {
        true => output::print_json(&serde_json::json!({ "pid": pid }))?,
        false => output::print(format!("{pid}\n"))?,
    }
    Ok(0)
}

/// A command, and the spark that it is to run in.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) target: Target,
    pub(super) new: NewArgs,
    pub(super) process: ProcessArgs,
    pub(super) command: Command,
    pub(super) limit: Option<Duration>,
}

/// Runs a command in its spark, and returns its status.
pub(super) fn in_target(ctx: &Ctx, job: &Job) -> Result<Status> {
    match &job.target {
        Target::Named(name) => {
            job.new.refuse_for(name)?;
            let sparks = ctx.having_spark(name)?;
            refuse_files(&job.command)?;
            let spark = sparks.resolve(name)?;
            run(ctx, (&sparks, &spark), &job.command, job)
        }
        Target::Ephemeral => {
            let (source, changes) = job.new.wanted(ctx, &job.process)?;
            let progress = ctx.progress(false);
            let sparks = ctx.sparks(&progress)?;
            let request = Request { name: None, source, changes, start: true };
            let spark = sparks.create(request, &progress)?;
            job.new.wish(ctx, None)?.iter().for_each(|wish| progress.notice(wish));
            // A bar still drawn would mix with what the command prints.
            drop(progress);
            let ephemeral = Ephemeral { ctx, sparks, spark };
            // The spark has them, as files too.
            let command = Command { secrets: Secrets::new(), ..job.command.clone() };
            run(ctx, (&ephemeral.sparks, &ephemeral.spark), &command, job)
        }
    }
}

/// A command has no files of its own: the spark's are seen by all that runs in it.
fn refuse_files(command: &Command) -> Result<()> {
    match command.secrets.iter().find(|(_, secret)| secret.delivery == Delivery::File) {
        None => Ok(()),
        Some((key, _)) => Err(Error::Usage {
            message: format!("the secret {key} of a command is a variable, and no file"),
            hint: Some(format!("give it to the spark: `spark secrets set --spark NAME {key}:file REF`")),
        }),
    }
}

fn run(ctx: &Ctx, (sparks, spark): (&Sparks, &SparkId), command: &Command, job: &Job) -> Result<Status> {
    // Before the command is there, so that no signal falls between.
    let supervisor = Supervisor::prepare()?;
    let running = match (sparks.exec(spark, command), supervisor.interrupted()) {
        (Err(_), Some(status)) => return Ok(status),
        (running, _) => running?,
    };
    let status = supervisor.attach(&running, job.limit)?;
    if status != 0
        && let Some(why) = running.out_of_memory(spark, job.target == Target::Ephemeral)
    {
        report::error(&why, ctx.json);
    }
    Ok(status)
}

/// A spark that is removed with this, however its command ended. If this process is killed, the next one does it.
struct Ephemeral<'a> {
    ctx: &'a Ctx,
    sparks: Sparks,
    spark: SparkId,
}

impl Drop for Ephemeral<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.sparks.remove_ephemeral(&self.spark) {
            report::error(&e, self.ctx.json);
        }
    }
}
