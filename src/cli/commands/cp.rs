//! `spark cp`

use std::ffi::{OsStr, OsString};

use clap::Args;

use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::location::Location;
use crate::error::{Error, Result};
use crate::ops::cp;

/// Copy files into, out of and between sparks
///
/// Into a directory that is there, else under the name DST. `SRC/.` is a directory's content. Files replace files,
/// directories are merged, links are copied and not followed. The spark may run. What is mounted in it, such as a data
/// volume or /spark/bin, is written where it comes from; what only the running spark has, such as /proc, is refused.
/// Inside, numeric owners are kept; what comes out belongs to you, and has no set-id bits. Devices and named pipes of
/// the host are written into, and so is what the shell left open: /dev/stdout, >(COMMAND).
#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// What to copy: SPARK:PATH, SPARK@SNAPSHOT:PATH, or a path of the host
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<OsString>,
    /// Where to: SPARK:PATH or a path of the host; one with a colon is written ./a:b
    #[arg(value_name = "DST")]
    target: OsString,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn cp(ctx: &Ctx, args: CpArgs) -> Result<Status> {
    let sources = args.sources.iter().map(|s| location(s)).collect::<Result<Vec<_>>>()?;
    let target = location(&args.target)?;
    cp::check(&sources, &target)?;
    let spark = sources.iter().chain([&target]).find_map(Location::spark);
    let sparks = ctx.having("spark", spark.map(|s| s.spark.to_string()).unwrap_or_default())?;
    let progress = ctx.progress(args.quiet);
    let copied = sparks.cp(&sources, &target, &progress).map_err(output::of_stream)?;
    drop(progress);
    if ctx.json {
        output::print_json(&copied)?;
    }
    Ok(0)
}

fn location(text: &OsStr) -> Result<Location> {
    Location::parse(text).map_err(|e| Error::Usage {
        message: format!("{} names no spark: {e}", text.display()),
        hint: Some(format!("a path of the host that holds a colon is written ./{}", text.display())),
    })
}
