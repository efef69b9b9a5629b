//! `spark gc`

use std::os::unix::process::CommandExt;
use std::process::Stdio;

use clap::Args;

use crate::cli::output::column;
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::error::Result;
use crate::ops::gc::Collected;

/// Collect what crashes and expired trash left
///
/// Prints what it frees, and whose it was. If something cannot be freed, an error names it, the rest is freed, and the
/// exit status is 1.
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Free nothing, print what would be freed
    #[arg(long)]
    dry_run: bool,
    /// What other commands start in the background: only what has expired in the trash, without haste
    #[arg(long, hide = true)]
    background: bool,
}

/// Frees what has expired in the trash in a process of its own, which nobody waits for.
pub(crate) fn in_background() {
    let spawned = std::process::Command::new("/proc/self/exe")
        .args(["gc", "--background"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    if let Err(e) = spawned {
        tracing::warn!("cannot free what has expired in the trash: {e}");
    }
}

pub(crate) fn gc(ctx: &Ctx, args: GcArgs) -> Result<Status> {
    if args.background {
        // The lowest there is. It is no reason not to do the work.
        let _ = rustix::process::nice(19);
        return ctx.open_mounted()?.map_or(Ok(()), |sparks| sparks.empty_trash()).map(|()| 0);
    }
    let sparks = ctx.open_as_it_is()?;
    let before = sparks.as_ref().map(|sparks| sparks.shortage()).transpose()?;
    let Collected { items, mut failures } = sparks.as_ref().map(|s| s.gc(args.dry_run)).unwrap_or_default();
    if let Some((before, sparks)) = before.zip(sparks).filter(|_| !args.dry_run) {
        failures.extend(sparks.make_room(before, &ctx.progress(ctx.json)).err());
    }
    if items.is_empty() && failures.is_empty() {
        ctx.say("nothing to collect");
    }
    let columns = [column("WHAT", "what"), column("OWNER", "owner"), column("PATH", "path")];
    output::print_rows(ctx.json, &columns, &items)?;
    Ok(ctx.tell(failures.into_iter()))
}
