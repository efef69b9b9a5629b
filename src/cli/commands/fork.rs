//! `spark fork`

use std::ffi::OsString;

use clap::Args;

use crate::cli::args::{NewArgs, ProcessArgs};
use crate::cli::output::{Column, column, optional};
use crate::cli::report::{self, Status};
use crate::cli::{Ctx, output};
use crate::domain::name::{Name, SourceRef, SparkRef};
use crate::error::Result;
use crate::ops::exec::Command;
use crate::ops::fork::{Forked, MOST, Request};
use crate::ops::race::Runner;
use crate::ops::spark::SparkId;

/// Make new sparks from a running, paused or stopped one
///
/// The fork has everything that the source's filesystem holds at this moment, and its options; it has its own id, host
/// name, machine-id and ssh host keys. The source goes on undisturbed. Prints the names of what was made.
#[derive(Debug, Args)]
pub(crate) struct ForkArgs {
    /// The spark to fork, or a snapshot of it: SPARK or SPARK@SNAPSHOT
    #[arg(value_name = "SOURCE")]
    source: SourceRef,
    /// Name of the fork, or PROJECT/NAME
    #[arg(value_name = "NEW")]
    name: SparkRef,
    /// Make this many, NEW-1 to NEW-COUNT, all from the same moment
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    count: Option<u32>,
    /// Run this command in each of them at once, and print how it ended: its status and its time
    #[arg(last = true, value_name = "CMD", conflicts_with = "no_start")]
    command: Vec<OsString>,
    /// Do not start them
    #[arg(long)]
    no_start: bool,
    /// Do not print the names
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    new: NewArgs,
}

pub(crate) fn fork(ctx: &Ctx, args: ForkArgs) -> Result<Status> {
    args.new.refuse_source()?;
    let request = Request {
        source: args.source.clone(),
        name: args.name,
        count: args.count,
        changes: args.new.changes(&args.process)?,
        start: !args.no_start,
    };
    let progress = ctx.progress(args.quiet);
    let sparks = ctx.having_spark(&args.source.spark)?;
    let forks = sparks.fork(request, &progress)?;
    if args.command.is_empty() {
        drop(progress);
        return print(ctx, args.quiet, &forks);
    }
    let mut status = tell_of_failures(ctx, &forks);
    let runners: Vec<SparkId> = forks.into_iter().filter(|f| f.made.is_ok()).map(|f| f.spark).collect();
    let command = Command { argv: args.command, ..Command::default() };
    let race = sparks.race(&runners, &command, &progress)?;
    drop(progress);
    let rows: Vec<Row> = race.iter().map(Row::of).collect();
    if rows.iter().any(|row| row.status != Some(0)) {
        status = report::FAILED;
    }
    output::print_rows(ctx.json, &COLUMNS, &rows)?;
    let origin = &args.source.spark;
    ctx.say(format_args!(
        "see what they wrote with `spark logs NAME`, and keep one with `spark pick NAME --as {origin}`"
    ));
    Ok(status)
}

const COLUMNS: [Column; 4] = [
    column("NAME", "name"),
    column("STATUS", "status"),
    column("SECONDS", "seconds"),
    optional("ERROR", "error"),
];

/// One runner of a race, as it is printed.
#[derive(Debug, serde::Serialize)]
struct Row {
    name: Name,
    project: Name,
    /// As a shell would have it; none if it could not be run.
    status: Option<i32>,
    seconds: f64,
    error: Option<String>,
}

impl Row {
    fn of(runner: &Runner) -> Row {
        Row {
            name: runner.spark.name.clone(),
            project: runner.spark.project.clone(),
            status: runner.ended.as_ref().ok().map(|ended| ended.status()),
            seconds: (runner.took.as_secs_f64() * 1000.0).round() / 1000.0,
            error: runner.ended.as_ref().err().map(ToString::to_string),
        }
    }
}

fn tell_of_failures(ctx: &Ctx, forks: &[Forked]) -> Status {
    ctx.tell(forks.iter().filter_map(|f| f.made.as_ref().err()))
}

/// Prints what was made, and tells of what was not.
fn print(ctx: &Ctx, quiet: bool, forks: &[Forked]) -> Result<Status> {
    let made = || forks.iter().filter(|f| f.made.is_ok()).map(|f| &f.spark);
    let status = tell_of_failures(ctx, forks);
    match (quiet, ctx.json) {
        (true, _) => {}
        (false, true) => output::print_json(&made().collect::<Vec<_>>())?,
        (false, false) => output::print(made().map(|s| format!("{}\n", s.name)).collect::<String>())?,
    }
    Ok(status)
}
