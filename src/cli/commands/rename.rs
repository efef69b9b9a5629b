//! `spark rename`

use clap::Args;

use crate::cli::Ctx;
use crate::cli::report::Status;
use crate::domain::name::{Name, SparkRef};
use crate::error::Result;

/// Give a spark another name
///
/// Its id, its files and what runs in it stay as they are.
#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    /// The spark
    #[arg(value_name = "OLD")]
    old: SparkRef,
    /// Its new name
    #[arg(value_name = "NEW")]
    new: Name,
}

pub(crate) fn rename(ctx: &Ctx, args: RenameArgs) -> Result<Status> {
    ctx.having_spark(&args.old)?.rename(&args.old, &args.new)?;
    Ok(0)
}
