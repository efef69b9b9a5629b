//! `spark completion`

use clap::{Args, CommandFactory};

use crate::cli::args::Cli;
use crate::cli::output;
use crate::cli::report::Status;
use crate::error::Result;

/// Print a shell completion script
///
/// For bash: `source <(spark completion bash)`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell: bash, elvish, fish, powershell or zsh
    #[arg(value_name = "SHELL", hide_possible_values = true)]
    shell: clap_complete::Shell,
}

pub(crate) fn completion(args: CompletionArgs) -> Result<Status> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "spark", &mut script);
    output::print(script)?;
    Ok(0)
}
