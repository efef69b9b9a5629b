//! `spark diff`

use std::fmt::Write as _;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::name::InvalidName;
use crate::error::{Error, Result};
use crate::ops::diff::{Change, FileDiff, Pair, Side, Source, Stat};

/// Show what differs between sparks, snapshots and bases
///
/// Prints a line for each path: A for added, M for modified, D for deleted, R for renamed, and in parentheses what
/// else than its content differs. Times do not count. With one spark, the difference from what it was made from.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// What to begin with: a spark, SPARK@SNAPSHOT or base:NAME
    #[arg(value_name = "FROM")]
    first: Source,
    /// What to compare it with, or the path of one file to show as a text diff
    #[arg(value_name = "TO|/PATH")]
    second: Option<Operand>,
    /// One file to show as a text diff
    #[arg(value_name = "/PATH")]
    third: Option<Operand>,
    /// Print only how many files and bytes differ
    #[arg(long)]
    stat: bool,
}

#[derive(Debug, Clone)]
enum Operand {
    Source(Source),
    Path(PathBuf),
}

impl FromStr for Operand {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Operand, InvalidName> {
        if s.starts_with('/') { Ok(Operand::Path(s.into())) } else { s.parse().map(Operand::Source) }
    }
}

pub(crate) fn diff(ctx: &Ctx, args: DiffArgs) -> Result<Status> {
    let (before, after, path) = match (args.second, args.third) {
        (None, None) => (None, args.first, None),
        (Some(Operand::Path(path)), None) => (None, args.first, Some(path)),
        (Some(Operand::Source(to)), None) => (Some(args.first), to, None),
        (Some(Operand::Source(to)), Some(Operand::Path(path))) => (Some(args.first), to, Some(path)),
        _ => {
            return Err(Error::Usage {
                message: "only the last of what to compare can be a path, which begins with `/`".into(),
                hint: Some(
                    "write it like `spark diff web /etc/passwd` or `spark diff a b /etc/passwd`".into(),
                ),
            });
        }
    };
    let pair = Pair { before, after };
    let sparks = match &pair.after {
        Source::Spark(source) => ctx.having_spark(&source.spark)?,
        Source::Base(base) => ctx.having("base", base)?,
    };
    if let Some(path) = path {
        if args.stat {
            return Err(Error::usage("`--stat` sums up files, and here is only one"));
        }
        return print_file(ctx, &sparks.diff_file(&pair, &path)?);
    }
    let changes = sparks.diff(&pair)?;
    if args.stat {
        output::print_record(ctx.json, &Stat::of(changes))?;
    } else if ctx.json {
        output::print_json_list(changes)?;
    } else {
        let mut lines = output::Pieces::default();
        changes.map(|change| line(&change)).try_for_each(|line| lines.add(&line?))?;
        lines.finish()?;
    }
    Ok(0)
}

/// One change as people read it.
fn line(change: &Change) -> Result<String> {
    let value = output::value(change)?;
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let kind = word(&value["kind"]).chars().next().unwrap_or('?').to_ascii_uppercase();
    let mut line = String::from(kind);
    if let Some(from) = &change.from {
        let _ = write!(line, " {} ->", output::escape(from));
    }
    let slash = if value["type"] == "directory" && change.path != "/" { "/" } else { "" };
    let _ = write!(line, " {}{slash}", output::escape(&change.path));
    let mut notes: Vec<String> = value["what"].as_array().into_iter().flatten().map(word).collect();
    // That is what "modified" means by itself.
    if kind == 'M' {
        notes.retain(|what| what != "content" || change.what.len() > 1);
    }
    if change.replaced {
        notes.push("replaced another".into());
    }
    if !notes.is_empty() {
        let _ = write!(line, " ({})", notes.join(", "));
    }
    line.push('\n');
    Ok(line)
}

fn print_file(ctx: &Ctx, file: &FileDiff) -> Result<Status> {
    match &file.diff {
        _ if ctx.json => output::print_json(file)?,
        Some(diff) => output::print(output::escape_but(diff, &['\n', '\t']).as_bytes())?,
        None => output::print(format!(
            "{} cannot be shown as text: {} before, {} after\n",
            output::escape(&file.path),
            named(&file.before),
            named(&file.after)
        ))?,
    }
    Ok(0)
}

fn named(side: &Side) -> String {
    match side {
        Side::Absent => "nothing".into(),
        Side::Text { .. } => "a text".into(),
        Side::Symlink { .. } => "a symbolic link".into(),
        Side::Binary { size } => format!("a binary file of {}", output::size(*size)),
        Side::TooLarge { size } => format!("a file of {}, more than 1 MiB,", output::size(*size)),
        Side::Directory => "a directory".into(),
        Side::Special => "no file".into(),
    }
}
