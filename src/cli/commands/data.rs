//! `spark data`

use clap::{Args, Subcommand};

use crate::cli::output::{column, optional};
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::{Name, SourceRef, SparkRef};
use crate::domain::volume::Attached;
use crate::error::{Error, Result};
use crate::ops::data::Effect;

/// Volumes that outlive sparks and can be shared
///
/// A data volume belongs to a project. Any number of its sparks can have it, each at a path of its own, writable or
/// read-only; what one writes the others see at once.
#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    action: Action,
}

impl DataArgs {
    /// Whether it changes nothing.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(self.action, Action::List { .. } | Action::Info { .. } | Action::Snapshots { .. })
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make an empty volume
    Create {
        /// Name of the volume, or PROJECT/NAME
        #[arg(value_name = "VOLUME")]
        volume: SparkRef,
        /// Do not print the name
        #[arg(short, long)]
        quiet: bool,
    },
    /// List the volumes of this project, and who has them
    #[command(visible_alias = "ls")]
    List {
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show what is known of a volume
    Info {
        /// The volume
        #[arg(value_name = "VOLUME")]
        volume: SparkRef,
    },
    /// Attach a volume to a spark, at once if it runs
    Attach {
        /// The volume
        #[arg(value_name = "VOLUME")]
        volume: Name,
        /// The spark, of the same project
        #[arg(value_name = "SPARK")]
        spark: SparkRef,
        /// Where it is to be inside; with `:ro` nobody there can write to it
        #[arg(value_name = "PATH[:ro]")]
        path: String,
    },
    /// Detach a volume from a spark, at once if it runs
    ///
    /// What has files of it open there keeps them until it closes them.
    Detach {
        /// The volume
        #[arg(value_name = "VOLUME")]
        volume: Name,
        /// The spark
        #[arg(value_name = "SPARK")]
        spark: SparkRef,
    },
    /// Take a snapshot of a volume, whoever writes to it
    Snapshot {
        /// The volume
        #[arg(value_name = "VOLUME")]
        volume: SparkRef,
        /// Name of the snapshot [default: the time, such as 20261124-183005]
        #[arg(value_name = "SNAPSHOT")]
        name: Option<Name>,
    },
    /// List a volume's snapshots, oldest first
    Snapshots {
        /// The volume
        #[arg(value_name = "VOLUME")]
        volume: SparkRef,
    },
    /// Put a volume's files back; what they were becomes a snapshot too
    ///
    /// Refused while a spark that has it runs.
    Restore {
        /// The volume
        #[arg(value_name = "VOLUME")]
        volume: SparkRef,
        /// The snapshot
        #[arg(value_name = "SNAPSHOT")]
        name: Name,
    },
    /// Delete volumes that no spark has, or snapshots of volumes, for good
    #[command(visible_alias = "rm")]
    Delete {
        /// Volumes to delete, or VOLUME@SNAPSHOT
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<SourceRef>,
    },
}

pub(crate) fn data(ctx: &Ctx, args: DataArgs) -> Result<Status> {
    match args.action {
        Action::Create { volume, quiet } => {
            let progress = ctx.progress(quiet);
            let made = ctx.sparks(&progress)?.data_create(&volume)?;
            match (quiet, ctx.json) {
                (true, _) => {}
                (false, true) => output::print_json(&made)?,
                (false, false) => output::print(format!("{made}\n"))?,
            }
            Ok(0)
        }
        Action::List { quiet } => list(ctx, quiet),
        Action::Info { volume } => {
            let info = ctx.having("data volume", &volume)?.data_info(&volume)?;
            output::print_record(ctx.json, &info)?;
            Ok(0)
        }
        Action::Attach { volume, spark, path } => {
            let wanted: Attached =
                format!("{volume}:{path}").parse().map_err(|why: String| Error::usage(why))?;
            let effect = ctx.having_spark(&spark)?.data_attach(&spark, wanted)?;
            tell(ctx, effect, &format!("attached `{volume}` to {spark}"))
        }
        Action::Detach { volume, spark } => {
            let effect = ctx.having_spark(&spark)?.data_detach(&spark, &volume)?;
            tell(ctx, effect, &format!("detached `{volume}` from {spark}"))
        }
        Action::Snapshot { volume, name } => {
            let name = ctx.having("data volume", &volume)?.data_snapshot(&volume, name.as_ref())?;
            match ctx.json {
                true => output::print_json(&serde_json::json!({ "name": name }))?,
                false => output::print(format!("{name}\n"))?,
            }
            Ok(0)
        }
        Action::Snapshots { volume } => {
            let rows = ctx.having("data volume", &volume)?.data_snapshots(&volume)?;
            super::snapshot::print_snapshots(ctx, &rows)
        }
        Action::Restore { volume, name } => {
            let undo = ctx.having("data volume", &volume)?.data_restore(&volume, &name)?;
            if ctx.json {
                output::print_json(&serde_json::json!({ "undo": undo }))?;
            } else {
                let back = format!("spark data restore {volume} {undo}");
                ctx.say(format_args!("restored {volume} to `{name}` (take it back with `{back}`)"));
            }
            Ok(0)
        }
        Action::Delete { volumes } => Ok(ctx.each(&volumes, |SourceRef { spark: volume, snapshot }| {
            let sparks = ctx.having("data volume", volume)?;
            match snapshot {
                Some(snapshot) => sparks.data_snapshot_delete(volume, snapshot),
                None => sparks.data_delete(volume),
            }
        })),
    }
}

/// Says since when it is so.
fn tell(ctx: &Ctx, effect: Effect, what: &str) -> Result<Status> {
    if ctx.json {
        output::print_json(&serde_json::json!({ "effect": effect }))?;
    } else {
        match effect {
            Effect::Now => ctx.say(what),
            Effect::NextStart => ctx.warn(format_args!("{what}, from its next start on")),
        }
    }
    Ok(0)
}

fn list(ctx: &Ctx, quiet: bool) -> Result<Status> {
    let volumes = ctx.open()?.map(|sparks| sparks.data_list()).transpose()?.unwrap_or_default();
    if quiet {
        let names: Vec<String> = volumes.iter().map(|volume| volume.name.to_string()).collect();
        return output::print_names(ctx.json, &names).map(|()| 0);
    }
    if ctx.json {
        output::print_json(&volumes)?;
        return Ok(0);
    }
    let row = |volume: crate::ops::data::VolumeInfo| {
        let users: Vec<String> = volume.attached.iter().map(ToString::to_string).collect();
        let mut row = output::value(&volume)?;
        row["attached"] = users.join(" ").into();
        Ok(row)
    };
    let rows = volumes.into_iter().map(row).collect::<Result<Vec<_>>>()?;
    let columns = [
        column("NAME", "name"),
        column("ATTACHED", "attached"),
        column("SNAPSHOTS", "snapshots"),
        column("CREATED", "created"),
        optional("ORIGIN", "origin"),
        optional("BROKEN", "broken"),
    ];
    output::print_rows(false, &columns, &rows)?;
    Ok(0)
}
