//! `spark create`

use clap::Args;

use crate::cli::args::{NewArgs, ProcessArgs};
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::{SparkRef, Target};
use crate::domain::spark::Id;
use crate::error::{Error, Result};
use crate::ops::Observer;
use crate::ops::create::Request;

/// Make a spark and start it
///
/// Prints its name. Its files stay until it is deleted, whether it runs or not. The first spark on a host makes the
/// pool and, where there is no base yet, the default base.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name of the spark, or PROJECT/NAME; one is made up if none is given
    #[arg(value_name = "NAME")]
    name: Option<Target>,
    /// Do not start it
    #[arg(long)]
    no_start: bool,
    /// Make nothing, print what would be made; with `--json` the OCI configuration too
    #[arg(long)]
    dry_run: bool,
    /// Do not print the name
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    #[command(flatten)]
    pub(crate) new: NewArgs,
}

pub(crate) fn create(ctx: &Ctx, args: CreateArgs) -> Result<Status> {
    let name = match args.name {
        Some(Target::Named(name)) => name,
        Some(Target::Ephemeral) => {
            return Err(Error::Usage {
                message: "a spark `-` lives as long as its command, and `create` has none".into(),
                hint: Some("run a command in one with `spark exec - -- CMD`".into()),
            });
        }
        None => made_up()?,
    };
    let (source, changes) = args.new.wanted(ctx, &args.process)?;
    let wish = args.new.wish(ctx, Some(&name))?;
    let request = Request { name: Some(name), source, changes, start: !args.no_start };
    let progress = ctx.progress(args.quiet);
    if args.dry_run {
        let sparks = ctx.open()?.ok_or_else(super::pool::none)?;
        return print_plan(ctx, output::value(&sparks.plan(&request)?)?);
    }
    let made = ctx.sparks(&progress)?.create(request, &progress)?;
    wish.iter().for_each(|wish| progress.notice(wish));
    drop(progress);
    if args.quiet {
        return Ok(0);
    }
    if ctx.json {
        output::print_json(&serde_json::json!({ "project": made.project, "name": made.name }))?;
    } else {
        output::print(format!("{}\n", made.name))?;
    }
    Ok(0)
}

fn print_plan(ctx: &Ctx, mut plan: serde_json::Value) -> Result<Status> {
    if ctx.json {
        output::print_json(&plan)?;
        return Ok(0);
    }
    if let Some(plan) = plan.as_object_mut() {
        plan.remove("config");
    }
    output::print(output::fields(&plan))?;
    Ok(0)
}

/// A name that nobody has: the random end of an id.
fn made_up() -> Result<SparkRef> {
    let id = Id::generate().as_str().to_ascii_lowercase();
    Ok(SparkRef { project: None, name: format!("spark-{}", &id[id.len() - 6..]).parse()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_names_and_differ() {
        assert_ne!(made_up().unwrap(), made_up().unwrap());
    }
}
