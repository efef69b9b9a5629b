//! `spark receive`

use std::io::IsTerminal;

use clap::Args;

use super::base::standard_input;
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::SparkRef;
use crate::domain::options::Network;
use crate::error::{Error, Result};
use crate::ops::transfer::Request;

/// Make a spark of a stream, or bring one up to date
///
/// The stream of `spark send` is read from standard input. A whole one makes a new spark, which is not started, and its
/// data volumes, called `VOLUME-NAME` where the project has one of that name. One that
/// was made with `--since` brings a spark up to date that has received what went before: it is restored to the new
/// snapshot, as by `spark snapshot restore`, and what it was can be had back with `spark undo`.
///
/// A stream that was cut, altered or made to do harm is refused, and nothing is left of it. Mounts of the other host's
/// directories are left out, and so is that it was on the other host's own network.
#[derive(Debug, Args)]
pub(crate) struct ReceiveArgs {
    /// Name of the spark, or PROJECT/NAME [default: as it was called]
    #[arg(value_name = "NAME")]
    name: Option<SparkRef>,
    /// Only add the snapshot, and leave the spark's files as they are
    #[arg(long)]
    no_restore: bool,
    /// Network of a new spark: `project`, `host` or `none` [default: what it had, but for `host`]
    #[arg(long, value_name = "NETWORK")]
    network: Option<Network>,
}

pub(crate) fn receive(ctx: &Ctx, args: ReceiveArgs) -> Result<Status> {
    if std::io::stdin().is_terminal() {
        return Err(Error::Usage {
            message: "a stream comes from no terminal".into(),
            hint: Some("give it as standard input: `spark receive < FILE`".into()),
        });
    }
    let request = Request { name: args.name, keep_files: args.no_restore, network: args.network };
    let progress = ctx.progress(false);
    let received = ctx.sparks(&progress)?.receive(standard_input()?, &request, &progress)?;
    drop(progress);
    if ctx.json {
        output::print_json(&received)?;
        return Ok(0);
    }
    let name = &received.spark.name;
    match &received.restored {
        Some(_) => ctx.say(format_args!(
            "restored {name} to `{}` (take it back with `spark undo {name}`)",
            received.snapshot
        )),
        None if args.no_restore => {}
        None => ctx.say(format_args!("start it with `spark resume {name}`")),
    }
    output::print(format!("{name}\n"))?;
    Ok(0)
}
