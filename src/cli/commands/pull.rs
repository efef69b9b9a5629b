//! `spark pull`

use clap::Args;

use crate::cli::output::{Column, column};
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::SparkRef;
use crate::error::Result;
use crate::ops::pull::Pulled;

/// Fetch the branches of the clone in a spark
///
/// For a spark that was made with `--clone`. Its branches become `refs/spark/NAME/*` of the repository that was cloned;
/// your own branches and files stay as they are. Nothing of the spark is run: what is inside is not trusted. Look at them
/// with `git log refs/spark/NAME/BRANCH`, and take them with `git merge`. A branch with a commit that git refuses is named,
/// the others are fetched, and the status is 1. Tags, notes, stashes, and commits that no branch has, are named and not fetched.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// NAME, or PROJECT/NAME
    #[arg(value_name = "SPARK")]
    name: SparkRef,
}

const COLUMNS: [Column; 4] = [
    column("BRANCH", "branch"),
    column("COMMIT", "short"),
    column("CHANGE", "change"),
    column("AHEAD", "ahead"),
];

pub(crate) fn pull(ctx: &Ctx, args: PullArgs) -> Result<Status> {
    let progress = ctx.progress(false);
    let Pulled { branches, refused } = ctx.having("spark", &args.name)?.pull(&args.name, &progress)?;
    drop(progress);
    if ctx.json {
        output::print_json(&branches)?;
        return Ok(ctx.tell(refused.iter()));
    }
    if branches.is_empty() && refused.is_empty() {
        ctx.say("the clone has no branches");
    }
    let mut rows = output::value(&branches)?;
    for row in rows.as_array_mut().into_iter().flatten() {
        let short = row["id"].as_str().unwrap_or_default().get(..10).map(str::to_owned);
        row["short"] = short.into();
    }
    output::print_rows(false, &COLUMNS, &rows)?;
    Ok(ctx.tell(refused.iter()))
}
