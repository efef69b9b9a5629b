//! `spark list`

use clap::Args;

use crate::cli::output::{Column, column, optional};
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::Name;
use crate::error::Result;
use crate::ops::oci::Runtime;

/// List sparks
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Those of all projects
    #[arg(short, long)]
    all_projects: bool,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
    /// List what is in the trash instead
    #[arg(long)]
    deleted: bool,
    /// List containers instead: those of all sparks that run, and those that spark-oci made
    #[arg(long, conflicts_with = "deleted")]
    oci: bool,
}

const PROJECT: Column = column("PROJECT", "project");
const SPARKS: [Column; 6] = [
    column("NAME", "name"),
    column("STATE", "state"),
    column("FROM", "origin"),
    column("CREATED", "created"),
    optional("LABELS", "labels"),
    optional("BROKEN", "broken"),
];
const DELETED: [Column; 4] =
    [column("NAME", "name"), column("ID", "id"), column("DELETED", "deleted"), column("KEPT UNTIL", "until")];

const CONTAINERS: [Column; 6] = [
    column("ID", "id"),
    column("STATE", "state"),
    column("SPARK", "spark"),
    column("PID", "pid"),
    column("CREATED", "created"),
    column("BUNDLE", "bundle"),
];

pub(crate) fn list(ctx: &Ctx, args: ListArgs) -> Result<Status> {
    let sparks = ctx.open()?;
    if args.oci {
        let mut rows = sparks.map(|s| s.containers()).transpose()?.unwrap_or_default();
        rows.extend(Runtime::rows(&ctx.context.place.run)?);
        let ids = || rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>();
        return match args.quiet {
            true => output::print_names(ctx.json, &ids()).map(|()| 0),
            false => output::print_rows(ctx.json, &CONTAINERS, &rows).map(|()| 0),
        };
    }
    if args.deleted {
        let rows = sparks.map(|s| s.list_deleted(args.all_projects)).transpose()?.unwrap_or_default();
        return print(ctx, &args, &DELETED, &rows, |row| (&row.project, &row.name));
    }
    let rows = sparks.map(|s| s.list(args.all_projects)).transpose()?.unwrap_or_default();
    if rows.is_empty() && !args.quiet {
        ctx.say("no sparks here yet: make one with `spark create NAME`");
    }
    print(ctx, &args, &SPARKS, &rows, |row| (&row.project, &row.name))
}

fn print<R: serde::Serialize>(
    ctx: &Ctx,
    args: &ListArgs,
    columns: &[Column],
    rows: &[R],
    name: impl Fn(&R) -> (&Name, &Name),
) -> Result<Status> {
    if args.quiet {
        let names = rows.iter().map(name).map(|(project, name)| match args.all_projects {
            true => format!("{project}/{name}"),
            false => name.to_string(),
        });
        let names: Vec<String> = names.collect();
        return output::print_names(ctx.json, &names).map(|()| 0);
    }
    let first = args.all_projects.then_some(PROJECT);
    let columns: Vec<Column> = first.into_iter().chain(columns.iter().copied()).collect();
    output::print_rows(ctx.json, &columns, &rows)?;
    Ok(0)
}
