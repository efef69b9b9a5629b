//! `spark port`

use clap::{Args, Subcommand};

use crate::cli::Ctx;
use crate::cli::output::{self, Column, column};
use crate::cli::report::Status;
use crate::domain::name::{Name, SparkRef};
use crate::domain::port::{Ports, Published};
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
        self.verb.is_none()
    }
}

#[derive(Debug, Subcommand)]
enum PortVerb {
    /// Publish ports of a spark
    Open(ChangeArgs),
    /// Take published ports back
    ///
    /// Connections that are open stay open.
    Close(ChangeArgs),
}

#[derive(Debug, Args)]
struct ChangeArgs {
    /// The spark
    #[arg(value_name = "SPARK")]
    name: SparkRef,
    /// Ports: [IP:]HOST:SPARK[/udp], or ranges of the same length
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<Ports>,
}

impl ChangeArgs {
    fn ports(&self) -> Vec<Published> {
        self.ports.iter().flat_map(|ports| ports.0.clone()).collect()
    }
}

pub(crate) fn port(ctx: &Ctx, args: PortArgs) -> Result<Status> {
    match (args.verb, args.name) {
        (Some(PortVerb::Open(args)), _) => {
            ctx.having_spark(&args.name)?.open_ports(&args.name, &args.ports())?
        }
        (Some(PortVerb::Close(args)), _) => {
            ctx.having_spark(&args.name)?.close_ports(&args.name, &args.ports())?
        }
        (None, Some(name)) => {
            let ports = ctx.having_spark(&name)?.ports(&name)?;
            let rows: Vec<Row> = ports.iter().map(|port| Row::of(name.name.clone(), port)).collect();
            output::print_rows(ctx.json, &COLUMNS, &rows)?;
        }
        (None, None) => {
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
