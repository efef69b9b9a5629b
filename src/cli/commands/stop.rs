//! `spark stop`

use std::time::Duration;

use clap::Args;

use crate::cli::Ctx;
use crate::cli::report::Status;
use crate::domain::limits::parse_duration;
use crate::domain::name::SparkRef;
use crate::error::Result;

/// End every process of a spark
///
/// SIGTERM to everything, and SIGKILL to what is left after a while. What the spark's image runs (`--run`) comes first,
/// with the signal that the image names. Several sparks are stopped at the same time. Files stay; `spark resume` starts
/// them again.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Sparks to stop
    #[arg(required = true, value_name = "SPARK")]
    names: Vec<SparkRef>,
    /// Seconds to wait before SIGKILL [default: 10]
    #[arg(short, long, value_name = "SECS", value_parser = parse_duration, default_value = "10")]
    #[arg(hide_default_value = true)]
    time: Duration,
}

pub(crate) fn stop(ctx: &Ctx, args: StopArgs) -> Result<Status> {
    Ok(ctx.each_at_once(&args.names, |name| ctx.having_spark(name)?.stop(name, args.time)))
}
