//! `spark man`

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use crate::cli::args::Cli;
use crate::cli::report::Status;
use crate::error::{Error, Result};
use crate::ops::begin::with_callers_umask;

/// Write the manual pages
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Directory to write them to; made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(crate) fn man(args: ManArgs) -> Result<Status> {
    with_callers_umask(|| {
        std::fs::create_dir_all(&args.dir).map_err(Error::io("create", &args.dir))?;
        // The grouped help of the terminal has no place in a manual page, which lists the commands itself.
        let command = Cli::command().disable_help_subcommand(true);
        clap_mangen::generate_to(command, &args.dir).map_err(Error::io("write manual pages to", &args.dir))
    })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_gets_a_page() {
        let dir = tempfile::tempdir().unwrap();
        man(ManArgs { dir: dir.path().join("man1") }).unwrap();
        for page in ["spark.1", "spark-create.1", "spark-base-import.1"] {
            assert!(dir.path().join("man1").join(page).exists(), "{page}");
        }
    }
}
