//! The OCI runtime face: runc's command line over the strict operations.
//!
//! podman, containerd and people who know runc drive it, so words, options and what is printed are runc's. Nothing here
//! decides anything about containers.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::domain::place::RUN;
use crate::error::{Error, Result};
use crate::ops::begin::{Program, begin, keep_only_arguments};
use crate::ops::oci::Runtime;

mod args;
mod exec;
mod life;
mod list;
mod log;
mod print;
mod resources;
mod streams;

use args::{Cli, Verb};

/// What runc returns where a container's own status would have been.
const EXEC_FAILED: u8 = 255;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    main_of(std::env::args_os())
}

/// Runs a command line: the name of the program, and what follows.
pub fn main_of(line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let begun = begin(Program::Oci);
    let parsed = Cli::command().try_get_matches_from(line).and_then(|mut matches| {
        let verb = matches.subcommand_name().map(str::to_owned);
        Ok((verb, Cli::from_arg_matches_mut(&mut matches)?))
    });
    let (verb, cli) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let log = log::Log::of(&cli.global);
    log.listen(cli.global.debug);
    let stands_for_a_command = matches!(cli.verb, Verb::Exec(_) | Verb::Run(_));
    let protected = begun.and_then(|()| protect(&cli.verb));
    let of_the_shim = crate::ops::oci::words().into_iter().skip(1).map(str::to_owned);
    keep_only_arguments(&of_the_shim.chain(verb).collect::<Vec<_>>());
    match protected.and_then(|()| run(cli, &log)) {
        Ok(status) => status.into(),
        Err(e) => {
            log.error(&e);
            if stands_for_a_command { EXEC_FAILED.into() } else { ExitCode::FAILURE }
        }
    }
}

/// Keeps this program from those that a verb lets it run for. It is executed again for that, with its arguments.
fn protect(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Create(_) | Verb::Run(_) | Verb::Exec(_) => crate::ops::oci::protect_program(),
        _ => Ok(()),
    }
}

fn run(cli: Cli, log: &log::Log) -> Result<u8> {
    // Once: what protects the program executes it again.
    if let Some(text) = streams::warning(&cli.verb) {
        log.warning(&text);
    }
    let run = match std::env::var_os("SPARK_RUN").filter(|v| !v.is_empty()) {
        Some(dir) => std::path::absolute(&dir).map_err(Error::io("find", &dir))?,
        None => RUN.into(),
    };
    let systemd = cli.global.systemd_cgroup;
    let runtime = Runtime::new(cli.global.root, run)?;
    match cli.verb {
        Verb::Create(args) => life::create(&runtime, args, systemd),
        Verb::Start(args) => runtime.start(&args.id).map(|()| 0),
        Verb::State(args) => list::state(&runtime, &args.id),
        Verb::Kill(args) => life::kill(&runtime, &args),
        Verb::Delete(args) => runtime.delete(&args.id, args.force).map(|()| 0),
        Verb::Pause(args) => runtime.pause(&args.id).map(|()| 0),
        Verb::Resume(args) => runtime.resume(&args.id).map(|()| 0),
        Verb::Exec(args) => exec::exec(&runtime, *args),
        Verb::Run(args) => exec::run(&runtime, args, systemd),
        Verb::List(args) => list::list(&runtime, &args),
        Verb::Ps(args) => resources::ps(&runtime, &args),
        Verb::Events(args) => resources::events(&runtime, &args),
        Verb::Update(args) => resources::update(&runtime, &args),
        Verb::Features => print::json(&crate::ops::oci::features(), true),
        Verb::Hook(args) => {
            crate::ops::oci::become_hook(&args.namespace, &args.program, &args.args).map(|()| 0)
        }
        Verb::Spec(args) => crate::ops::oci::write_spec(&args.bundle).map(|_| 0),
    }
}
