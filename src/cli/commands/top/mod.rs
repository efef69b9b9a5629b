//! `spark top`

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;

use crate::cli::output::{Column, column};
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::limits::parse_duration;
use crate::error::Result;
use crate::ops::Sparks;
use crate::ops::top::Load;

mod live;
mod view;

use view::Sample;

/// Show what the sparks are doing, live
///
/// State, processors, memory, processes, network, and the bytes on disk that a spark wrote since it was made. Without a
/// terminal, or as JSON, it looks once, and takes a quarter of a second to see how busy the processors are.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// The sparks of all projects
    #[arg(short, long)]
    all_projects: bool,
    /// Look once, also on a terminal
    #[arg(long)]
    once: bool,
    /// Time from one look to the next, such as 500ms or 5s
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_interval)]
    interval: Duration,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        time if time < Duration::from_millis(100) => Err(format!("`{text}` is too short: at least 100ms")),
        time => Ok(time),
    }
}

/// Long enough to see what a processor does, and short enough to wait for.
const GLANCE: Duration = Duration::from_millis(250);

const COLUMNS: [Column; 9] = [
    column("NAME", "name"),
    column("STATE", "state"),
    column("CPU%", "cpu_percent"),
    column("MEMORY", "memory_bytes"),
    column("LIMIT", "memory_limit_bytes"),
    column("PIDS", "pids"),
    column("RECEIVED", "received_bytes"),
    column("SENT", "sent_bytes"),
    column("OWN", "own_bytes"),
];

/// A line, with what only two looks together show.
#[derive(Debug, Clone, serde::Serialize)]
struct Row {
    #[serde(flatten)]
    load: Load,
    /// Of one processor, since the look before. None if it did not run then.
    cpu_percent: Option<f64>,
}

pub(crate) fn top(ctx: &Ctx, args: TopArgs) -> Result<Status> {
    let Some(sparks) = ctx.open()? else {
        return output::print_rows(ctx.json, &COLUMNS, &Vec::<Row>::new()).map(|()| 0);
    };
    if !ctx.json && !args.once && std::io::stdout().is_terminal() && std::io::stdin().is_terminal() {
        return live::run(&sparks, args.all_projects, args.interval).map(|()| 0);
    }
    let first = look(&sparks, args.all_projects, false)?;
    std::thread::sleep(GLANCE);
    let rows = view::rows(&look(&sparks, args.all_projects, true)?, Some(&first));
    let project = args.all_projects.then(|| column("PROJECT", "project"));
    let columns: Vec<Column> = project.into_iter().chain(COLUMNS).collect();
    output::print_rows(ctx.json, &columns, &rows)?;
    Ok(0)
}

fn look(sparks: &Sparks, all_projects: bool, own_bytes: bool) -> Result<Sample> {
    let at = Instant::now();
    Ok(Sample { at, loads: sparks.loads(all_projects, own_bytes)? })
}
