//! `spark du`

use clap::Args;

use crate::cli::output::{Column, column};
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::SparkRef;
use crate::error::Result;
use crate::ops::du::Held;

/// Show how much of the disk only one spark holds
///
/// OWN is what would be freed if the spark were gone, with its snapshots; SHARED is what a base, another spark or the trash
/// holds too. It reads the metadata of all of the pool. What was written a moment ago may not be counted yet.
#[derive(Debug, Args)]
pub(crate) struct DuArgs {
    /// The sparks [default: those of the project]
    #[arg(value_name = "SPARK")]
    names: Vec<SparkRef>,
    /// Those of all projects
    #[arg(short, long)]
    all_projects: bool,
}

const COLUMNS: [Column; 3] =
    [column("NAME", "name"), column("OWN", "own_bytes"), column("SHARED", "shared_bytes")];

pub(crate) fn du(ctx: &Ctx, args: DuArgs) -> Result<Status> {
    let sparks = match args.names.first() {
        Some(name) => Some(ctx.having_spark(name)?),
        None => ctx.open()?,
    };
    let rows: Vec<Held> = match sparks {
        None => Vec::new(),
        Some(sparks) => {
            let of = args.names.iter().map(|name| sparks.resolve(name)).collect::<Result<Vec<_>>>()?;
            sparks.du(&of, args.all_projects, &ctx.progress(false))?
        }
    };
    let projects = args.all_projects || args.names.iter().any(|name| name.project.is_some());
    let columns: Vec<Column> =
        projects.then(|| column("PROJECT", "project")).into_iter().chain(COLUMNS).collect();
    output::print_rows(ctx.json, &columns, &rows)?;
    Ok(0)
}
