//! `spark fork`

use clap::Args;

use crate::cli::args::{NewArgs, ProcessArgs};
use crate::cli::report::{self, Status};
use crate::cli::{Ctx, output};
use crate::domain::name::{SourceRef, SparkRef};
use crate::error::Result;
use crate::ops::fork::{Forked, Request};

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
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u32>,
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
    let forks = ctx.having_spark(&args.source.spark)?.fork(request, &progress)?;
    drop(progress);
    print(ctx, args.quiet, &forks)
}

/// Prints what was made, and tells of what was not.
fn print(ctx: &Ctx, quiet: bool, forks: &[Forked]) -> Result<Status> {
    let made = || forks.iter().filter(|f| f.made.is_ok()).map(|f| &f.spark);
    let failed = forks.iter().filter_map(|f| f.made.as_ref().err());
    let status = failed.fold(0, |_, e| {
        report::error(e, ctx.json);
        report::FAILED
    });
    match (quiet, ctx.json) {
        (true, _) => {}
        (false, true) => output::print_json(&made().collect::<Vec<_>>())?,
        (false, false) => output::print(made().map(|s| format!("{}\n", s.name)).collect::<String>())?,
    }
    Ok(status)
}
