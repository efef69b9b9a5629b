//! `spark delete`

use std::time::Duration;

use clap::Args;

use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::limits::parse_duration;
use crate::domain::name::SparkRef;
use crate::error::Result;
use crate::ops::delete::Options;

/// Move sparks to the trash
///
/// A running spark is refused unless `--force` is given. Deleted sparks stay in the trash for a while, from where
/// `spark undelete` brings them back.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Sparks to delete
    #[arg(required = true, value_name = "SPARK")]
    names: Vec<SparkRef>,
    /// Stop a running spark first
    #[arg(short, long)]
    force: bool,
    /// Free its files at once: this cannot be undone. In a pool that is nearly full, wait until their room is free
    #[arg(long)]
    now: bool,
    /// How long it can be brought back, such as 1h or 30d [default: 24h, unless configured]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with = "now")]
    keep: Option<Duration>,
}

pub(crate) fn delete(ctx: &Ctx, args: DeleteArgs) -> Result<Status> {
    let configured = ctx.own_settings()?;
    let before = match args.now {
        true => ctx.open_mounted()?.map(|sparks| sparks.shortage()).transpose()?,
        false => None,
    };
    let mut gone = Vec::new();
    let status = ctx.each(&args.names, |name| {
        let mut options = Options { force: args.force, now: args.now, ..Options::default() };
        options.keep = args.keep.or(configured.trash_keep).unwrap_or(options.keep);
        let deleted = ctx.having_spark(name)?.delete(name, options)?;
        match deleted.until {
            Some(until) => ctx.say(format_args!(
                "deleted {name} (bring it back with `spark undelete {name}` until {})",
                output::local(until)
            )),
            None => ctx.say(format_args!("deleted {name}")),
        }
        gone.push(serde_json::json!({ "name": name.to_string(), "until": deleted.until }));
        Ok(())
    });
    if let Some((before, sparks)) = before.zip(ctx.open_mounted()?) {
        sparks.await_room(before, &ctx.progress(ctx.json))?;
    }
    if ctx.json {
        output::print_json(&gone)?;
    }
    Ok(status)
}
