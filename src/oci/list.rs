//! `state` and `list`.

use std::fmt::Write as _;

use super::args::{Layout, ListArgs};
use super::print;
use crate::error::Result;
use crate::ops::oci::{Runtime, Status};

pub(super) fn state(runtime: &Runtime, id: &str) -> Result<u8> {
    print::json(&runtime.state(id)?, true)
}

pub(super) fn list(runtime: &Runtime, args: &ListArgs) -> Result<u8> {
    let all = runtime.list()?;
    match args.format {
        _ if args.quiet => print::text(&all.iter().map(|c| format!("{}\n", c.id)).collect::<String>()),
        Layout::Json => print::json(&all, false),
        Layout::Table => print::text(&table(&all)),
    }
}

fn table(all: &[Status]) -> String {
    let titles = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = all.iter().map(|c| {
        [
            c.id.clone(),
            c.pid.unwrap_or(0).to_string(),
            c.status.as_str().to_owned(),
            c.bundle.to_string_lossy().escape_debug().to_string(),
            c.created.map(|t| t.to_rfc3339()).unwrap_or_default(),
            c.owner.clone(),
        ]
    });
    let rows: Vec<[String; 6]> = std::iter::once(titles).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(line, "{cell:width$}   ", width = width(column));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
