//! `spark info`

use clap::Args;

use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::SparkRef;
use crate::error::Result;

/// Show everything known of a spark
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// The spark
    #[arg(value_name = "SPARK")]
    name: SparkRef,
}

pub(crate) fn info(ctx: &Ctx, args: InfoArgs) -> Result<Status> {
    let info = ctx.having_spark(&args.name)?.info(&args.name)?;
    output::print_record(ctx.json, &info)?;
    Ok(0)
}
