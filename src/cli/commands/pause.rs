//! `spark pause`

use clap::Args;

use crate::cli::Ctx;
use crate::cli::report::Status;
use crate::domain::name::SparkRef;
use crate::error::Result;

/// Freeze every process of a spark
///
/// They keep their memory and use no processor. `spark resume` lets them go on.
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// Sparks to pause
    #[arg(required = true, value_name = "SPARK")]
    names: Vec<SparkRef>,
}

pub(crate) fn pause(ctx: &Ctx, args: PauseArgs) -> Result<Status> {
    Ok(ctx.each(&args.names, |name| ctx.having_spark(name)?.pause(name)))
}
