//! `spark snapshot` and `spark undo`

use clap::{Args, Subcommand};

use crate::cli::output::{column, optional};
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::{Name, SparkRef};
use crate::domain::spark::State;
use crate::domain::volume::Data;
use crate::error::Result;
use crate::ops::snapshot::{Options, Request, Restored, SnapshotInfo};

/// Keep states of a spark's files, and go back to them
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    action: Action,
}

impl SnapshotArgs {
    /// Whether it changes nothing.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(self.action, Action::List { .. })
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Take a snapshot; the spark goes on with what it is doing
    Create {
        /// The spark
        #[arg(value_name = "SPARK")]
        spark: SparkRef,
        /// Name of the snapshot [default: the time, such as 20261124-183005]
        #[arg(value_name = "SNAPSHOT")]
        name: Option<Name>,
        /// Say what it is
        #[arg(long, value_name = "TEXT", value_parser = parse_label)]
        label: Option<String>,
        /// Data volumes: `copy` them too, of the same instant, or only note them (`share`, `none`)
        /// [default: copy those that no other spark has]
        #[arg(long, value_name = "MODE")]
        data: Option<Data>,
        /// Keep this many of those called by their time, with the same label, and delete older ones
        #[arg(long, value_name = "NUMBER", conflicts_with = "name", value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
        /// Do not print the name
        #[arg(short, long)]
        quiet: bool,
    },
    /// List a spark's snapshots, oldest first
    #[command(visible_alias = "ls")]
    List {
        /// The spark
        #[arg(value_name = "SPARK")]
        spark: SparkRef,
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Put a spark's files back; what they were is kept for `spark undo`
    ///
    /// A running spark is ended at once, without SIGTERM, and started again.
    Restore {
        /// The spark
        #[arg(value_name = "SPARK")]
        spark: SparkRef,
        /// The snapshot
        #[arg(value_name = "SNAPSHOT")]
        name: Name,
        #[command(flatten)]
        how: RestoreArgs,
    },
    /// Delete snapshots; forks made from them stay
    #[command(visible_alias = "rm")]
    Delete {
        /// The spark
        #[arg(value_name = "SPARK")]
        spark: SparkRef,
        /// Snapshots to delete
        #[arg(required = true, value_name = "SNAPSHOT")]
        names: Vec<Name>,
    },
}

/// Go back to the state before the last restore
///
/// Once more goes forth again. A running spark is ended at once, and started again.
#[derive(Debug, Args)]
pub(crate) struct UndoArgs {
    /// The spark
    #[arg(value_name = "SPARK")]
    spark: SparkRef,
    #[command(flatten)]
    how: RestoreArgs,
}

/// What a restore does besides putting the root back.
#[derive(Debug, Args)]
struct RestoreArgs {
    /// Leave a running spark stopped
    #[arg(long)]
    no_resume: bool,
    /// Data volumes that the snapshot holds: `copy` them back too, or leave them as they are with `none` [default: copy]
    #[arg(long, value_name = "MODE", value_parser = parse_data)]
    data: Option<Data>,
}

impl RestoreArgs {
    fn options(&self) -> Options {
        Options { resume: !self.no_resume, data: self.data != Some(Data::None) }
    }
}

fn parse_data(text: &str) -> Result<Data, String> {
    match text.parse()? {
        Data::Share => Err("a snapshot is not shared: use copy or none".into()),
        data => Ok(data),
    }
}

pub(crate) fn snapshot(ctx: &Ctx, args: SnapshotArgs) -> Result<Status> {
    match args.action {
        Action::Create { spark, name, label, data, keep, quiet } => {
            let name =
                ctx.having_spark(&spark)?.snapshot_create(&spark, &Request { name, label, data, keep })?;
            match (quiet, ctx.json) {
                (true, _) => {}
                (false, true) => output::print_json(&serde_json::json!({ "name": name }))?,
                (false, false) => output::print(format!("{name}\n"))?,
            }
            Ok(0)
        }
        Action::List { spark, quiet } => list(ctx, &spark, quiet),
        Action::Restore { spark, name, how } => {
            let restored = ctx.having_spark(&spark)?.restore(&spark, &name, how.options())?;
            tell(ctx, &spark, &format!("restored {spark} to `{name}`"), &restored)
        }
        Action::Delete { spark, names } => Ok(ctx.each(&names, |name| {
            let sparks = ctx.having_spark(&spark)?;
            sparks.snapshot_delete(&spark, name)
        })),
    }
}

pub(crate) fn undo(ctx: &Ctx, args: UndoArgs) -> Result<Status> {
    let spark = &args.spark;
    let restored = ctx.having_spark(spark)?.undo(spark, args.how.options())?;
    tell(ctx, spark, &format!("undid the last restore of {spark}"), &restored)
}

/// What to type after a restore that left a spark stopped.
pub(super) fn how_to_start(restored: &Restored, spark: &SparkRef) -> String {
    match restored.state {
        State::Stopped => format!("; start it with `spark resume {spark}`"),
        _ => String::new(),
    }
}

/// Says what a restore did, and how to take it back.
pub(super) fn tell(ctx: &Ctx, spark: &SparkRef, what: &str, restored: &Restored) -> Result<Status> {
    if ctx.json {
        output::print_json(restored)?;
    } else {
        let how = how_to_start(restored, spark);
        let volumes: String = restored.volumes.iter().map(|volume| format!(", `{volume}`")).collect();
        let what =
            if volumes.is_empty() { what.to_owned() } else { format!("{what}, with{}", &volumes[1..]) };
        ctx.say(format_args!("{what} (take it back with `spark undo {spark}`){how}"));
    }
    Ok(0)
}

fn list(ctx: &Ctx, spark: &SparkRef, quiet: bool) -> Result<Status> {
    let sparks = ctx.having_spark(spark)?;
    if quiet {
        let names: Vec<String> =
            sparks.snapshot_list(spark)?.iter().map(|row| row.name.to_string()).collect();
        return output::print_names(ctx.json, &names).map(|()| 0);
    }
    let rows = sparks.snapshot_sizes(spark)?;
    if rows.is_empty() {
        ctx.say(format_args!("no snapshots yet: take one with `spark snapshot create {spark}`"));
    }
    print_snapshots(ctx, &rows)
}

pub(super) fn print_snapshots(ctx: &Ctx, rows: &[SnapshotInfo]) -> Result<Status> {
    let columns = [
        column("NAME", "name"),
        column("CREATED", "created"),
        column("OWN", "own_bytes"),
        column("KIND", "kind"),
        optional("LABEL", "label"),
        optional("BROKEN", "broken"),
    ];
    output::print_rows(ctx.json, &columns, &rows)?;
    Ok(0)
}

fn parse_label(text: &str) -> Result<String, String> {
    match text {
        _ if text.is_empty() || text.len() > 200 => Err("a label has 1 to 200 bytes".into()),
        _ if text.chars().any(char::is_control) => Err("a label has no control characters".into()),
        _ => Ok(text.to_owned()),
    }
}
