//! `spark undelete`

use clap::Args;

use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::Name;
use crate::error::Result;

/// Bring a deleted spark back
///
/// Of several with that name, the newest. `spark list --deleted` shows what there is. Prints the spark's name.
#[derive(Debug, Args)]
pub(crate) struct UndeleteArgs {
    /// NAME, PROJECT/NAME or ID of a deleted spark
    #[arg(value_name = "SPARK")]
    what: String,
    /// Bring it back under another name
    #[arg(long = "as", value_name = "NAME")]
    as_name: Option<Name>,
}

pub(crate) fn undelete(ctx: &Ctx, args: UndeleteArgs) -> Result<Status> {
    let back = ctx.having("deleted spark", output::escape(&args.what))?.undelete(&args.what, args.as_name)?;
    if ctx.json {
        output::print_json(&serde_json::json!({ "project": back.project, "name": back.name }))?;
    } else {
        output::print(format!("{}\n", back.name))?;
    }
    Ok(0)
}
