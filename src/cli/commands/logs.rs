//! `spark logs`

use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use clap::Args;

use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::SparkRef;
use crate::error::{Error, Result};

/// Show what detached commands wrote
///
/// And what the spark's own start wrote. On a terminal, control characters are escaped; to a file or a pipe the bytes
/// go as they are.
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
    let path = sparks.log_path(&args.name)?;
    let killed = sparks.oom_kills(&args.name).unwrap_or_default();
    let mut log = Log { start: args.tail, at: 0, path: &path };
    if ctx.json {
        let mut text = Vec::new();
        log.pass_on(&mut |chunk| {
            text.extend_from_slice(chunk);
            Ok(())
        })?;
        let text = String::from_utf8_lossy(&text);
        output::print_json(&serde_json::json!({ "path": path, "text": text, "oom_kills": killed }))?;
        return Ok(0);
    }
    let mut printer = Printer { terminal: std::io::stdout().is_terminal(), rest: Vec::new() };
    log.pass_on(&mut |chunk| printer.print(chunk))?;
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
    }
}

/// A log file, read from where it was last left.
struct Log<'a> {
    path: &'a Path,
    at: u64,
    /// At the first read: how many lines from the end to begin with.
    start: Option<u64>,
}

impl Log<'_> {
    /// Passes on what is new. No file is an empty one.
    fn pass_on(&mut self, to: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let failed = |e| Error::io("read", self.path)(e);
        let mut file = match File::open(self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        let len = file.metadata().map_err(failed)?.len();
        if let Some(lines) = self.start.take() {
            self.at = last_lines(&file, len, lines).map_err(failed)?;
        } else if len < self.at {
            self.at = 0;
        }
        file.seek(SeekFrom::Start(self.at)).map_err(failed)?;
        // As much as was there on arrival: somebody may write faster than we print.
        let mut left = file.take(len - self.at);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = left.read(&mut buffer).map_err(failed)?;
            if n == 0 {
                return Ok(());
            }
            self.at += n as u64;
            to(&buffer[..n])?;
        }
    }
}

/// Where the last `lines` lines begin, looking from the end.
fn last_lines(file: &File, len: u64, lines: u64) -> std::io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    // The newline that ends the last line does not begin another.
    let (mut end, mut found) = (len.saturating_sub(1), 0);
    if lines == 0 {
        return Ok(len);
    }
    while end > 0 {
        let begin = end.saturating_sub(BLOCK);
        let mut block = vec![0; (end - begin) as usize];
        file.read_exact_at(&mut block, begin)?;
        for (i, _) in block.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            found += 1;
            if found == lines {
                return Ok(begin + i as u64 + 1);
            }
        }
        end = begin;
    }
    Ok(0)
}

/// Writes a log out, on a terminal without its control characters.
struct Printer {
    terminal: bool,
    /// The beginning of a character whose end is still to come.
    rest: Vec<u8>,
}

impl Printer {
    fn print(&mut self, chunk: &[u8]) -> Result<()> {
        if !self.terminal {
            return output::print(chunk);
        }
        self.rest.extend_from_slice(chunk);
        let whole = match std::str::from_utf8(&self.rest) {
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            _ => self.rest.len(),
        };
        let rest = self.rest.split_off(whole);
        let text = std::mem::replace(&mut self.rest, rest);
        output::print(
            output::escape_but(&String::from_utf8_lossy(&text), &['\n', '\t']).replace("\\r\n", "\n"),
        )
    }

    fn finish(self) -> Result<()> {
        output::print(String::from_utf8_lossy(&self.rest).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(log: &mut Log<'_>) -> String {
        let mut text = Vec::new();
        log.pass_on(&mut |chunk| {
            text.extend_from_slice(chunk);
            Ok(())
        })
        .unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_log_is_read_from_its_last_lines_and_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log { path: &path, at: 0, start: None };
        assert_eq!(read(&mut log), "");
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        let tail = |n| read(&mut Log { path: &path, at: 0, start: Some(n) });
        assert_eq!(
            (tail(2), tail(0), tail(9)),
            ("two\nthree\n".into(), "".into(), "one\ntwo\nthree\n".into())
        );
        assert_eq!(read(&mut log), "one\ntwo\nthree\n");
        assert_eq!(read(&mut log), "");
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(read(&mut log), "new\n");
        std::fs::write(&path, "a\nb").unwrap();
        assert_eq!(read(&mut Log { path: &path, at: 0, start: Some(1) }), "b");
    }

    #[test]
    fn lines_are_counted_across_blocks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("first\n{}\nlast\n", "x".repeat(200_000));
        std::fs::write(file.path(), &text).unwrap();
        let mut log = Log { path: file.path(), at: 0, start: Some(2) };
        assert_eq!(read(&mut log).len(), text.len() - "first\n".len());
    }
}
