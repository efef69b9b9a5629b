//! `spark version`

use clap::Args;

use crate::cli::output;
use crate::cli::report::Status;
use crate::error::Result;

/// Print the version
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {}

pub(crate) fn version(json: bool, _: VersionArgs) -> Result<Status> {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    match json {
        true => output::print_json(&serde_json::json!({ "version": VERSION }))?,
        false => output::print(format!("spark {VERSION}\n"))?,
    }
    Ok(0)
}
