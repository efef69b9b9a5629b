//! `spark gc`

use clap::Args;

use crate::cli::output::column;
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::error::Result;

/// Collect what crashes and expired trash left
///
/// Prints what it frees, and whose it was.
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Free nothing, print what would be freed
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn gc(ctx: &Ctx, args: GcArgs) -> Result<Status> {
    let items = ctx.open_as_it_is()?.map(|sparks| sparks.gc(args.dry_run)).transpose()?.unwrap_or_default();
    if items.is_empty() {
        ctx.say("nothing to collect");
    }
    let columns = [column("WHAT", "what"), column("OWNER", "owner"), column("PATH", "path")];
    output::print_rows(ctx.json, &columns, &items)?;
    Ok(0)
}
