//! `spark logs`

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;

use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::limits::size;
use crate::domain::name::SparkRef;
use crate::error::{Error, Result};
use crate::ops::logs::Reader;

/// Show what detached commands wrote
///
/// And what the spark's own start wrote. A log keeps its last 15 MiB at least, and 30 MiB at most.
///
/// On a terminal, control characters are escaped. To a file or a pipe the bytes go as they are: of a spark that you do not
/// trust, page through `spark logs SPARK | less`, and not through `less -R`, which passes them on to your terminal.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The spark
    #[arg(value_name = "SPARK")]
    name: SparkRef,
    /// Go on with what is written from now on, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u64>,
}

pub(crate) fn logs(ctx: &Ctx, args: LogsArgs) -> Result<Status> {
    if ctx.json && args.follow {
        return Err(Error::usage("`--follow` never ends, so it cannot be one JSON document"));
    }
    let sparks = ctx.having_spark(&args.name)?;
    let killed = sparks.oom_kills(&args.name).unwrap_or_default();
    let mut log = sparks.read_log(&args.name, args.tail)?;
    if ctx.json {
        return print_json(&mut log, killed).map(|()| 0);
    }
    let mut printer = Printer { terminal: std::io::stdout().is_terminal(), text: Text::default() };
    log.pass_on(&mut |chunk| printer.print(chunk))?;
    tell_lost(ctx, &mut log);
    if killed > 0 {
        // In the log itself this stands when the spark has ended.
        ctx.warn(format_args!("spark: out of memory: killed {killed} since `{}` started", args.name));
    }
    if !args.follow {
        return printer.finish().map(|()| 0);
    }
    loop {
        std::thread::sleep(Duration::from_millis(200));
        log.pass_on(&mut |chunk| printer.print(chunk))?;
        tell_lost(ctx, &mut log);
    }
}

/// Says that bytes are missing in what was printed.
fn tell_lost(ctx: &Ctx, log: &mut Reader) {
    let lost = log.take_lost();
    if lost > 0 {
        ctx.warn(format_args!("spark: {} of the log are not kept any more", size(lost)));
    }
}

/// Prints a log as one JSON document, in pieces: it may be larger than what this process should take of memory.
fn print_json(log: &mut Reader, oom_kills: u64) -> Result<()> {
    output::print(format!("{{\n  \"path\": {},\n  \"text\": \"", output::json_of(&log.path())?))?;
    let mut text = Text::default();
    log.pass_on(&mut |chunk| print_inside(&text.take(chunk)))?;
    print_inside(&text.rest())?;
    let lost = log.take_lost();
    output::print(format!("\",\n  \"oom_kills\": {oom_kills},\n  \"lost_bytes\": {lost}\n}}\n"))
}

/// Prints a piece of a JSON string, without its quotes.
fn print_inside(text: &str) -> Result<()> {
    let quoted = output::json_of(&text)?;
    output::print(quoted.get(1..quoted.len() - 1).unwrap_or_default())
}

/// Makes text of bytes that come in pieces.
#[derive(Debug, Default)]
struct Text {
    /// The beginning of a character whose end is still to come.
    begun: Vec<u8>,
}

impl Text {
    fn take(&mut self, chunk: &[u8]) -> String {
        self.begun.extend_from_slice(chunk);
        let whole = whole_characters(&self.begun);
        let begun = self.begun.split_off(whole);
        String::from_utf8_lossy(&std::mem::replace(&mut self.begun, begun)).into_owned()
    }

    fn rest(&self) -> String {
        String::from_utf8_lossy(&self.begun).into_owned()
    }
}

/// How many bytes there are before a character that is not complete at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    // A character has four bytes at most, and only the last one may lack some.
    let begin = bytes.len().saturating_sub(3);
    let first = (begin..bytes.len()).rev().find(|at| bytes[*at] & 0xc0 != 0x80);
    match first.map(|at| (at, std::str::from_utf8(&bytes[at..]))) {
        Some((at, Err(e))) if e.error_len().is_none() => at,
        _ => bytes.len(),
    }
}

/// Writes a log out, on a terminal without its control characters.
struct Printer {
    terminal: bool,
    text: Text,
}

impl Printer {
    fn print(&mut self, chunk: &[u8]) -> Result<()> {
        if !self.terminal {
            return output::print(chunk);
        }
        let text = self.text.take(chunk);
        output::print(output::escape_but(&text, &['\n', '\t']).replace("\\r\n", "\n"))
    }

    fn finish(self) -> Result<()> {
        output::print(self.text.rest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_come_in_two_pieces_are_whole_and_bytes_that_are_none_are_replaced() {
        let bytes = "aé€😀\u{fffd}".as_bytes();
        for cut in 0..=bytes.len() {
            let mut text = Text::default();
            let parts = [text.take(&bytes[..cut]), text.take(&bytes[cut..]), text.rest()];
            assert_eq!(parts.concat().as_bytes(), bytes, "cut at {cut}");
        }
        let mut text = Text::default();
        let parts = [text.take(b"a\xff\xf0\x9f"), text.take(b"b\xe2\x82"), text.rest()];
        assert_eq!(parts.concat(), "a\u{fffd}\u{fffd}b\u{fffd}");
    }
}
