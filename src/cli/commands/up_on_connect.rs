//! `spark up-on-connect`

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use crate::cli::report::Status;
use crate::cli::{Ctx, forward, output};
use crate::domain::forward::Forward;
use crate::domain::limits::parse_duration;
use crate::domain::name::SparkRef;
use crate::error::{Error, Result};
use crate::ops::connect::{passed_listener, units};
use crate::ops::exec::Command;

/// Start a spark when somebody connects to a port of it
///
/// Prints a pair of systemd units, or installs them. systemd listens; the first connection starts a relay that resumes
/// the spark, runs CMD in it if nothing listens at the port, and passes connections on. When there has been none for a
/// while, the relay ends CMD and itself, and a spark with `--idle-stop` ends too. The next connection begins again.
#[derive(Debug, Args)]
pub(crate) struct UpOnConnectArgs {
    /// The spark
    #[arg(value_name = "SPARK")]
    name: SparkRef,
    /// Its port; with another one of the host, which systemd listens at, as [IP:]HOST:PORT
    #[arg(value_name = "PORT")]
    port: Forward,
    /// Write the units to DIR [default: /etc/systemd/system]
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = units::SYSTEM)]
    install: Option<PathBuf>,
    /// How long without a connection until CMD is ended, such as 30s or 10m [default: 1m]
    #[arg(long, value_name = "TIME", default_value = "1m", hide_default_value = true)]
    idle: Idle,
    /// Relay: what the service runs, with the socket as systemd passes it
    #[arg(long, hide = true, conflicts_with = "install")]
    serve: bool,
    /// What listens at the port: a server that stays in the foreground
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// A time, and how it was written: the unit says it in the same words.
#[derive(Debug, Clone)]
struct Idle {
    time: Duration,
    text: String,
}

impl FromStr for Idle {
    type Err = String;

    fn from_str(text: &str) -> Result<Idle, String> {
        Ok(Idle { time: parse_duration(text)?, text: text.to_owned() })
    }
}

pub(crate) fn up_on_connect(ctx: &Ctx, args: UpOnConnectArgs) -> Result<Status> {
    let sparks = ctx.having_spark(&args.name)?;
    if args.serve {
        let listener = passed_listener()?.ok_or_else(|| Error::Usage {
            message: "no socket was passed: LISTEN_PID and LISTEN_FDS do not say so".into(),
            hint: Some("let systemd start it: `spark up-on-connect SPARK PORT --install`".into()),
        })?;
        let command = Command { argv: args.command, ..Command::default() };
        let command = (!command.argv.is_empty()).then_some(command);
        let service = sparks.service(&args.name, args.port.inside, command)?;
        return forward::serve(service, listener, args.idle.time);
    }
    let wanted = units::Wanted {
        spark: &args.name,
        forward: args.port,
        idle: &args.idle.text,
        command: &args.command,
    };
    let made = sparks.units(&wanted)?;
    let Some(dir) = args.install else {
        match ctx.json {
            true => output::print_json(&made)?,
            false => {
                output::print(made.map(|unit| format!("# {}\n{}", unit.name, unit.content)).join("\n"))?;
            }
        }
        return Ok(0);
    };
    let paths = units::install(&dir, &made)?;
    output::print_names(ctx.json, &paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>())?;
    ctx.say(format_args!("begin with `systemctl daemon-reload && systemctl enable --now {}`", made[0].name));
    Ok(0)
}
