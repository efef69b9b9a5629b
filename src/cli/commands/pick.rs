//! `spark pick`

use clap::Args;

use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::SparkRef;
use crate::error::Result;

/// Put a fork in the place of the spark it was forked from
///
/// The origin gets the winner's files, those of data volumes copied for it among them, which `spark undo` takes back. The winner, and all that were forked together with
/// it by `spark fork -n`, go to the trash. What runs in the two is ended at once; an origin that ran is started again.
#[derive(Debug, Args)]
pub(crate) struct PickArgs {
    /// The fork
    #[arg(value_name = "WINNER")]
    winner: SparkRef,
    /// The spark whose place it takes
    #[arg(long = "as", value_name = "SPARK")]
    origin: SparkRef,
    /// Leave a running origin stopped
    #[arg(long)]
    no_resume: bool,
}

pub(crate) fn pick(ctx: &Ctx, args: PickArgs) -> Result<Status> {
    let PickArgs { winner, origin, no_resume } = args;
    let picked = ctx.having_spark(&winner)?.pick(&winner, &origin, !no_resume)?;
    if ctx.json {
        output::print_json(&picked)?;
        return Ok(0);
    }
    let others: Vec<String> = picked.deleted.iter().map(ToString::to_string).collect();
    let how = super::snapshot::how_to_start(&picked.restored, &origin);
    ctx.say(format_args!(
        "{origin} is what {winner} was (take it back with `spark undo {origin}`){how}; in the trash: {}",
        others.join(", ")
    ));
    if !picked.copies.is_empty() {
        let copies: Vec<String> = picked.copies.iter().map(ToString::to_string).collect();
        ctx.say(format_args!("data volumes copied for them stay: `spark data delete {}`", copies.join(" ")));
    }
    Ok(0)
}
