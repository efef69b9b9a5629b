//! `spark set`

use clap::Args;

use crate::cli::Ctx;
use crate::cli::report::Status;
use crate::domain::host_entry::{HostEntry, parse_name};
use crate::domain::limits::{
    LimitChanges, Memory, Setting, parse_cpus, parse_disk, parse_idle_stop, parse_memory_setting, parse_pids,
    parse_rate, parse_setting,
};
use crate::domain::name::SparkRef;
use crate::domain::options::parse_label;
use crate::error::{Error, Result};
use crate::ops::set::Settings;

/// Change limits, idle stop and labels of sparks
///
/// What runs in them gets new limits at once, and goes on. `none` lifts a limit.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The sparks
    #[arg(required = true, value_name = "SPARK")]
    names: Vec<SparkRef>,
    /// Most memory it may use, such as 512M or 2G. `none` is no limit, `default` is half of the host's
    #[arg(long, value_name = "SIZE|none|default", value_parser = parse_memory_setting)]
    memory: Option<Setting<Memory>>,
    /// Processors it may use, such as 1.5
    #[arg(long, value_name = "NUMBER|none", value_parser = cpus)]
    cpus: Option<Setting<u64>>,
    /// Processes and threads it may have; `none` is what its bundle template says
    #[arg(long, value_name = "NUMBER|none", value_parser = pids)]
    pids: Option<Setting<i64>>,
    /// Bytes a second it may read from the pool's disk, and write to it, such as 20M
    #[arg(long, value_name = "RATE|none", value_parser = io)]
    io: Option<Setting<u64>>,
    /// Bytes it may write and keep, such as 10G, in a pool made with `--quota`
    #[arg(long, value_name = "SIZE|none", value_parser = disk)]
    disk: Option<Setting<u64>>,
    /// End it when nothing has run in it for TIME, such as 10m, counted from now, or `never`
    #[arg(long, value_name = "TIME|never", value_parser = parse_idle_stop)]
    idle_stop: Option<u32>,
    /// Put an address for a name into its /etc/hosts at its next start; may be repeated
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<HostEntry>,
    /// Take a name that was put there out again; may be repeated
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    remove_host: Vec<String>,
    /// Attach a label, or change it; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// Take a label off; may be repeated
    #[arg(long, value_name = "KEY")]
    unlabel: Vec<String>,
}

fn cpus(text: &str) -> Result<Setting<u64>, String> {
    parse_setting(text, parse_cpus)
}

fn pids(text: &str) -> Result<Setting<i64>, String> {
    parse_setting(text, parse_pids)
}

fn io(text: &str) -> Result<Setting<u64>, String> {
    parse_setting(text, parse_rate)
}

fn disk(text: &str) -> Result<Setting<u64>, String> {
    parse_setting(text, parse_disk)
}

pub(crate) fn set(ctx: &Ctx, args: SetArgs) -> Result<Status> {
    let limits = LimitChanges {
        memory: args.memory,
        cpus_milli: args.cpus,
        pids: args.pids,
        io: args.io,
        disk: args.disk,
    };
    if limits == LimitChanges::default()
        && args.idle_stop.is_none()
        && args.add_host.is_empty()
        && args.remove_host.is_empty()
        && args.label.is_empty()
        && args.unlabel.is_empty()
    {
        return Err(Error::Usage {
            message: "there is nothing to set".into(),
            hint: Some("write it like `spark set NAME --memory 4G`; see `spark help set`".into()),
        });
    }
    let settings = Settings {
        limits,
        labels: args.label.into_iter().collect(),
        unlabel: args.unlabel.into_iter().collect(),
        add_host: args.add_host,
        remove_host: args.remove_host.into_iter().collect(),
        idle_stop: args.idle_stop,
    };
    Ok(ctx.each(&args.names, |name| ctx.having_spark(name)?.set(name, &settings)))
}
