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
    ///
    /// All space of a loop image is allocated, so that what sparks have written is there when the disk is full. Without
    /// --size the image begins with 8 GiB, or half of what is free, and grows by itself while the disk has room. It
    /// leaves 5 % of the disk to the host, at most 5 GiB.
    ///
    /// Without --quota, one spark can fill the pool. It is no default, since older kernels refuse a pool that has it.
    Init {
        /// Size of the loop image, such as 50G. It does not grow by itself
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
        /// Allocate nothing: the size may be larger than the disk, and data is lost when the disk is full
        #[arg(long, conflicts_with = "device")]
        overcommit: bool,
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
    ///
    /// Allocates the new space, and all space of a pool that was overcommitted. Running sparks are not disturbed.
    Grow {
        /// Size to grow to, such as 100G; a pool on a device takes all of it without
        #[arg(value_name = "SIZE", value_parser = parse_size)]
        size: Option<u64>,
        /// Allocate nothing: the size may be larger than the disk, and data is lost when the disk is full
        #[arg(long)]
        overcommit: bool,
        /// Watch the room of a pool that grows by itself, as long as sparks run: other commands start this
        #[arg(long, hide = true)]
        background: bool,
    },
}

const WITHOUT_QUOTA: &str = "what one spark writes is not limited: `--disk` needs a pool made with `--quota`, which kernels before \
                             Linux 6.7 refuse for good";

pub(crate) fn pool(ctx: &Ctx, args: PoolArgs) -> Result<Status> {
    let info = match args.action {
        Action::Init { size, overcommit, device, quota } => {
            let options = InitOptions { size, overcommit, device, quota };
            let (info, new) = ops::init(&ctx.context, &options, &ctx.progress(false)).map_err(needs_root)?;
            if !new {
                ctx.say("there is a pool already");
            } else if !quota {
                ctx.say(WITHOUT_QUOTA);
            }
            info
        }
        Action::Info => ops::info(&ctx.context).map_err(needs_root)?.ok_or_else(none)?,
        Action::Grow { background: true, .. } => return ops::watch(&ctx.context).map(|()| 0),
        Action::Grow { size, overcommit, .. } => {
            ops::grow(&ctx.context, size, overcommit).map_err(needs_root)?
        }
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
