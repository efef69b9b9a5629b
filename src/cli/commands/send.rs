//! `spark send`

use std::io::IsTerminal;
use std::os::fd::AsFd;

use clap::Args;

use crate::cli::Ctx;
use crate::cli::output;
use crate::cli::report::Status;
use crate::domain::name::{Name, SourceRef};
use crate::error::{Error, Result};

/// Write a spark as a stream, for another host or another name
///
/// The stream goes to standard output, compressed and with a checksum: the root filesystem, the data volumes that no
/// other spark has, and the options of the spark, its environment among them. `spark receive` makes a spark of it.
/// Of a snapshot, those volumes are sent that it holds.
///
/// A snapshot is taken of a spark that is named without one. It is kept, and its name printed on standard error: give it
/// to `--since` the next time, and only what has changed is sent.
#[derive(Debug, Args)]
pub(crate) struct SendArgs {
    /// The spark as it is now, or a snapshot of it: SPARK or SPARK@SNAPSHOT
    #[arg(value_name = "SOURCE")]
    source: SourceRef,
    /// Send only what differs from this older snapshot, which the receiver has to have received
    #[arg(long, value_name = "SNAPSHOT")]
    since: Option<Name>,
}

pub(crate) fn send(ctx: &Ctx, args: SendArgs) -> Result<Status> {
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        return Err(Error::Usage {
            message: "a stream is nothing for a terminal".into(),
            hint: Some("write it to a file, `> FILE`, or pipe it to `spark receive`".into()),
        });
    }
    let sparks = ctx.having_spark(&args.source.spark)?;
    // Not `stdout` itself, which looks for line ends in it.
    let out = stdout.as_fd().try_clone_to_owned().map_err(Error::sys(output::WRITE))?;
    let out = std::io::BufWriter::with_capacity(128 << 10, std::fs::File::from(out));
    let progress = ctx.progress(false);
    let sent = sparks.send(&args.source, args.since.as_ref(), out, &progress).map_err(output::of_stream)?;
    drop(progress);
    if ctx.json {
        output::eprint(output::value(&sent)?);
        return Ok(0);
    }
    for volume in &sent.left_out {
        ctx.warn(format_args!("left out data volume `{volume}`: the snapshot does not hold it"));
    }
    output::eprint(format_args!("sent {}@{}, {}", sent.spark, sent.snapshot, output::size(sent.bytes)));
    Ok(0)
}
