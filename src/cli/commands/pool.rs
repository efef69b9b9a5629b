//! `spark pool`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::report::Status;
use crate::cli::{Ctx, needs_root, output};
use crate::domain::limits::parse_size;
use crate::error::{Error, Result};
use crate::ops::pool::{self as ops, InitOptions};

/// The filesystem that everything is on
#[derive(Debug, Args)]
pub(crate) struct PoolArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the pool
    ///
    /// In place where `SPARK_ROOT` is on btrfs, else on a loop image. The first `spark create` does this by itself.
    Init {
        /// Size of the loop image, such as 50G; it takes space only as it fills [default: 3/4 of what is free]
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
        /// Format this block device and use it: all that is on it is lost
        #[arg(long, value_name = "DEVICE", conflicts_with = "size")]
        device: Option<PathBuf>,
        /// Count what every spark writes, so that `--disk` can limit it. For good: kernels before Linux 6.7 refuse such a pool
        #[arg(long)]
        quota: bool,
    },
    /// Show where the pool is and how full
    Info,
    /// Make the pool larger
    Grow {
        /// Size to grow to, such as 100G; a pool on a device takes all of it without
        #[arg(value_name = "SIZE", value_parser = parse_size)]
        size: Option<u64>,
    },
}

pub(crate) fn pool(ctx: &Ctx, args: PoolArgs) -> Result<Status> {
    let info = match args.action {
        Action::Init { size, device, quota } => {
            let (info, new) =
                ops::init(&ctx.context, &InitOptions { size, device, quota }, &ctx.progress(false))
                    .map_err(needs_root)?;
            if !new {
                ctx.say("there is a pool already");
            }
            info
        }
        Action::Info => ops::info(&ctx.context).map_err(needs_root)?.ok_or_else(none)?,
        Action::Grow { size } => ops::grow(&ctx.context, size).map_err(needs_root)?,
    };
    output::print_record(ctx.json, &info)?;
    Ok(0)
}

/// There is nothing to look at yet.
pub(super) fn none() -> Error {
    Error::Host {
        what: "there is no pool yet".into(),
        hint: "make one with `spark pool init`, or let the first `spark create` do it".into(),
        source: None,
    }
}
