//! `spark console`

use std::ffi::OsString;

use clap::Args;

use super::exec::{Job, command, in_target};
use crate::cli::Ctx;
use crate::cli::args::{NewArgs, ProcessArgs, TerminalArgs};
use crate::cli::report::Status;
use crate::domain::name::Target;
use crate::error::Result;

/// Open a login shell in a spark
///
/// A stopped or paused spark is resumed first. With `-` the shell gets a new spark of its own, which is removed when
/// it ends.
#[derive(Debug, Args)]
pub(crate) struct ConsoleArgs {
    /// The spark, or `-` for one that lives as long as the shell
    #[arg(value_name = "SPARK")]
    target: Target,
    /// Another shell, with its arguments [default: the user's own]
    #[arg(trailing_var_arg = true, value_name = "SHELL")]
    command: Vec<OsString>,
    #[command(flatten)]
    terminal: TerminalArgs,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    new: NewArgs,
}

pub(crate) fn console(ctx: &Ctx, args: ConsoleArgs) -> Result<Status> {
    let command = command(args.command, &args.process, args.terminal.wanted())?;
    in_target(ctx, &Job { target: args.target, new: args.new, process: args.process, command, limit: None })
}
