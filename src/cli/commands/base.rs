//! `spark base`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::output::{column, optional};
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::{Name, SourceRef};
use crate::error::Result;
use crate::ops::base::ImportSource;

/// Root filesystems that sparks start from
#[derive(Debug, Args)]
pub(crate) struct BaseArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a base from a distribution's packages
    Bootstrap {
        /// What to bootstrap: a release such as `bookworm`, or `minimal`
        #[arg(value_name = "SUITE")]
        suite: String,
        /// Name of the base [default: the suite's]
        #[arg(value_name = "BASE")]
        name: Option<Name>,
    },
    /// Make a base from an archive or a directory
    Import {
        /// A tar archive, compressed or not, a directory, or `-` for an archive on standard input
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Name of the base
        #[arg(value_name = "BASE")]
        name: Name,
    },
    /// Make a base of a spark, or of one of its snapshots
    ///
    /// Left out are the machine-id, ssh host keys, and what is in /tmp, /var/tmp and /run. Sparks made from a base that
    /// is replaced stay as they are.
    Save {
        /// The spark, or SPARK@SNAPSHOT
        #[arg(value_name = "SPARK")]
        source: SourceRef,
        /// Name of the base
        #[arg(value_name = "BASE")]
        name: Name,
        /// Put it in the place of a base of that name
        #[arg(long)]
        replace: bool,
    },
    /// List the bases
    #[command(visible_alias = "ls")]
    List,
    /// Show what is known of a base
    Info {
        /// The base
        #[arg(value_name = "BASE")]
        name: Name,
    },
    /// Delete bases; sparks made from them stay
    #[command(visible_alias = "rm")]
    Delete {
        /// Bases to delete
        #[arg(required = true, value_name = "BASE")]
        names: Vec<Name>,
    },
    /// Show or set the base that `create` takes where none is named
    Default {
        /// The new default; without it, the present one is printed
        #[arg(value_name = "BASE")]
        name: Option<Name>,
    },
}

pub(crate) fn base(ctx: &Ctx, args: BaseArgs) -> Result<Status> {
    match args.action {
        Action::Bootstrap { suite, name } => {
            let progress = ctx.progress(false);
            let made = ctx.sparks(&progress)?.base_bootstrap(&suite, name, &progress)?;
            drop(progress);
            print_made(ctx, &made, made.name.as_str())
        }
        Action::Import { path, name } => {
            let progress = ctx.progress(false);
            let source = match path.as_os_str() == "-" {
                true => ImportSource::Stdin(Box::new(std::io::stdin())),
                false => ImportSource::Path(path),
            };
            let made = ctx.sparks(&progress)?.base_import(source, name, &progress)?;
            drop(progress);
            print_made(ctx, &made, made.name.as_str())
        }
        Action::Save { source, name, replace } => {
            let progress = ctx.progress(false);
            let sparks = ctx.having_spark(&source.spark)?;
            let made = sparks.base_save(&source, &name, replace, &progress)?;
            drop(progress);
            print_made(ctx, &made, made.name.as_str())
        }
        Action::List => list(ctx),
        Action::Info { name } => {
            output::print_record(ctx.json, &ctx.having("base", &name)?.base_info(&name)?)?;
            Ok(0)
        }
        Action::Delete { names } => Ok(ctx.each(&names, |name| ctx.having("base", name)?.base_delete(name))),
        Action::Default { name } => default(ctx, name),
    }
}

fn print_made(ctx: &Ctx, made: &impl serde::Serialize, name: &str) -> Result<Status> {
    match ctx.json {
        true => output::print_json(made)?,
        false => output::print(format!("{name}\n"))?,
    }
    Ok(0)
}

fn list(ctx: &Ctx) -> Result<Status> {
    let bases = ctx.open()?.map(|sparks| sparks.base_list()).transpose()?.unwrap_or_default();
    if bases.is_empty() {
        ctx.say("no bases yet: make one with `spark base bootstrap SUITE` or `spark base import PATH BASE`");
    }
    let columns = [
        column("NAME", "name"),
        column("DEFAULT", "default"),
        column("CREATED", "created"),
        column("ORIGIN", "origin"),
        optional("BROKEN", "broken"),
    ];
    output::print_rows(ctx.json, &columns, &bases)?;
    Ok(0)
}

fn default(ctx: &Ctx, name: Option<Name>) -> Result<Status> {
    let now = match &name {
        Some(name) => ctx.having("base", name)?.base_default(Some(name))?,
        None => ctx.open()?.map(|sparks| sparks.base_default(None)).transpose()?.flatten(),
    };
    match (ctx.json, now) {
        (true, now) => output::print_json(&serde_json::json!({ "default": now }))?,
        (false, Some(now)) if name.is_none() => output::print(format!("{now}\n"))?,
        (false, None) => ctx.say("no default base: set one with `spark base default BASE`"),
        (false, Some(_)) => {}
    }
    Ok(0)
}
