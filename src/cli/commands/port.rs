//! `spark port`

use clap::{Args, Subcommand};

use crate::cli::Ctx;
use crate::cli::output::{self, Column, column};
use crate::cli::report::Status;
use crate::domain::name::{Name, SparkRef};
use crate::domain::port::{Closing, Ports, Published};
use crate::error::Result;

/// Show and change which ports of the host lead to a spark
///
/// What is changed holds at once, and after a stop too.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct PortArgs {
    #[command(subcommand)]
    verb: Option<PortVerb>,
    /// The spark [default: all of the project]
    #[arg(value_name = "SPARK")]
    name: Option<SparkRef>,
}

impl PortArgs {
    /// Whether it changes nothing.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(self.verb, None | Some(PortVerb::List(_)))
    }
}

#[derive(Debug, Subcommand)]
enum PortVerb {
    /// List published ports
    List(ListArgs),
    /// Publish ports of a spark
    ///
    /// Tells the address that each is published on, and which port of the host was chosen where none was named.
    Open(OpenArgs),
    /// Take published ports back
    ///
    /// TCP connections that are open stay open. Packets of UDP no longer arrive.
    Close(CloseArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// The spark [default: all of the project]
    #[arg(value_name = "SPARK")]
    name: Option<SparkRef>,
}

#[derive(Debug, Args)]
struct OpenArgs {
    /// The spark
    #[arg(value_name = "SPARK")]
    name: SparkRef,
    /// Ports: [[IP:]HOST:]SPARK[/udp], or ranges of the same length; without HOST, or with 0, a free one is chosen
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<Ports>,
}

#[derive(Debug, Args)]
struct CloseArgs {
    /// The spark
    #[arg(value_name = "SPARK")]
    name: SparkRef,
    /// Ports of the host: [IP:]HOST[:SPARK][/udp], or ranges
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<Closing>,
}

pub(crate) fn port(ctx: &Ctx, args: PortArgs) -> Result<Status> {
    match args.verb {
        None => list(ctx, args.name),
        Some(PortVerb::List(args)) => list(ctx, args.name),
        Some(PortVerb::Open(args)) => {
            let ports: Vec<Published> = args.ports.iter().flat_map(|ports| ports.0.clone()).collect();
            ctx.having_spark(&args.name)?.open_ports(&args.name, &ports, &ctx.progress(false))?;
            Ok(0)
        }
        Some(PortVerb::Close(args)) => {
            ctx.having_spark(&args.name)?.close_ports(&args.name, &args.ports)?;
            Ok(0)
        }
    }
}

fn list(ctx: &Ctx, spark: Option<SparkRef>) -> Result<Status> {
    match spark {
        Some(spark) => {
            let ports = ctx.having_spark(&spark)?.ports(&spark)?;
            let rows: Vec<Row> = ports.iter().map(|port| Row::of(spark.name.clone(), port)).collect();
            output::print_rows(ctx.json, &COLUMNS, &rows)?;
        }
        None => {
            let ports = ctx.open()?.map(|sparks| sparks.all_ports()).transpose()?.unwrap_or_default();
            let rows: Vec<Row> = ports.into_iter().map(|(name, port)| Row::of(name, &port)).collect();
            output::print_rows(ctx.json, &[&[NAME], COLUMNS.as_slice()].concat(), &rows)?;
        }
    }
    Ok(0)
}

const NAME: Column = column("NAME", "name");
const COLUMNS: [Column; 3] =
    [column("HOST", "host"), column("SPARK", "spark"), column("PROTOCOL", "protocol")];

#[derive(Debug, serde::Serialize)]
struct Row {
    name: Name,
    /// `IP:PORT`, or the port alone where it is published on every address.
    host: String,
    spark: u16,
    protocol: String,
}

impl Row {
    fn of(name: Name, port: &Published) -> Row {
        let protocol = port.protocol.to_string();
        let host = port.host_side().trim_end_matches(&format!("/{protocol}")).to_owned();
        Row { name, host, spark: port.spark, protocol }
    }
}
