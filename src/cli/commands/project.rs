//! `spark project`

use clap::{Args, Subcommand};

use crate::cli::output::column;
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::Name;
use crate::error::Result;

/// The namespaces that sparks are in
#[derive(Debug, Args)]
pub(crate) struct ProjectArgs {
    #[command(subcommand)]
    action: Action,
}

impl ProjectArgs {
    /// Whether it changes nothing.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(self.action, Action::List | Action::Info { .. })
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the projects
    #[command(visible_alias = "ls")]
    List,
    /// Show what is known of a project
    Info {
        /// The project [default: the one here]
        #[arg(value_name = "PROJECT")]
        name: Option<Name>,
    },
    /// Delete projects that have no sparks left
    #[command(visible_alias = "rm")]
    Delete {
        /// Projects to delete
        #[arg(required = true, value_name = "PROJECT")]
        names: Vec<Name>,
    },
}

pub(crate) fn project(ctx: &Ctx, args: ProjectArgs) -> Result<Status> {
    match args.action {
        Action::List => {
            let projects = ctx.open()?.map(|sparks| sparks.project_list()).transpose()?.unwrap_or_default();
            let columns = [
                column("NAME", "name"),
                column("CURRENT", "current"),
                column("SPARKS", "sparks"),
                column("CREATED", "created"),
                column("REPOSITORY", "git"),
            ];
            output::print_rows(ctx.json, &columns, &projects)?;
            Ok(0)
        }
        Action::Info { name: Some(name) } => {
            output::print_record(ctx.json, &ctx.having("project", &name)?.project_info(&name)?)?;
            Ok(0)
        }
        Action::Info { name: None } => {
            let sparks = ctx.open()?.ok_or_else(super::pool::none)?;
            output::print_record(ctx.json, &sparks.project_info(&sparks.project()?)?)?;
            Ok(0)
        }
        Action::Delete { names } => {
            Ok(ctx.each(&names, |name| ctx.having("project", name)?.project_delete(name).map(|_| ())))
        }
    }
}
