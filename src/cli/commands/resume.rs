//! `spark resume`

use clap::Args;

use crate::cli::Ctx;
use crate::cli::report::Status;
use crate::domain::name::SparkRef;
use crate::error::Result;

/// Start a stopped spark, thaw a paused one
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// Sparks to resume
    #[arg(required = true, value_name = "SPARK")]
    names: Vec<SparkRef>,
}

pub(crate) fn resume(ctx: &Ctx, args: ResumeArgs) -> Result<Status> {
    Ok(ctx.each(&args.names, |name| ctx.having_spark(name)?.resume(name)))
}
