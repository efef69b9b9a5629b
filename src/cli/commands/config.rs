//! `spark config`

use clap::Args;

use crate::cli::output::{Column, column};
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::error::Result;
use crate::ops::config::Row;

/// Show every effective setting and where it came from
///
/// A flag comes before the environment, that before `.spark.toml` at the top of the repository, that before
/// ~/.config/spark/config.toml (or the file that SPARK_CONFIG names), and that before /etc/spark/config.toml. All of
/// these files are checked.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {}

const COLUMNS: [Column; 3] = [column("KEY", "key"), column("VALUE", "value"), column("FROM", "from")];

pub(crate) fn config(ctx: &Ctx, _: ConfigArgs) -> Result<Status> {
    let loaded = ctx.config()?;
    let mut given = ctx.given()?;
    if given.iter().all(|row| row.key != "project") {
        let project = ctx.open_as_it_is().ok().flatten().and_then(|sparks| sparks.project().ok());
        // Outside of a repository it is what a file says, or what counts without.
        if ctx.is_in_repository() {
            given.push(Row::new("project", project.map(|p| p.to_string()), "repository"));
        } else if loaded.settings()?.project.is_none() {
            given.push(Row::new("project", project.map(|p| p.to_string()), "default"));
        }
    }
    output::print_rows(ctx.json, &COLUMNS, &loaded.rows(given))?;
    Ok(0)
}
