//! What goes to standard output: data, as tables for people or one JSON document for programs.
//!
//! Nothing that came from inside a spark reaches a terminal with its control characters.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::Value;

pub(crate) use crate::domain::limits::size;
use crate::domain::spark::Time;
use crate::error::{Error, Result};

/// How a failed write to standard output is called. `report` knows it by this when the reader has gone.
pub(crate) const WRITE: &str = "write to standard output";

/// The error of a stream that an operation wrote, in the words of what is printed.
pub(crate) fn of_stream(error: Error) -> Error {
    match error {
        Error::Sys { action: crate::ops::transfer::WRITE, source } => Error::sys(WRITE)(source),
        other => other,
    }
}

/// Writes data to standard output.
pub(crate) fn print(data: impl AsRef<[u8]>) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(data.as_ref()).and_then(|()| out.flush()).map_err(Error::sys(WRITE))
}

/// Writes one JSON document to standard output.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(json(value)?)
}

/// Writes a list as one JSON document, as [`print_json`] would, and item by item: it may be long.
pub(crate) fn print_json_list<T: serde::Serialize>(items: impl Iterator<Item = T>) -> Result<()> {
    let (mut pieces, mut count) = (Pieces::default(), 0);
    for item in items {
        pieces.add(if count == 0 { "[\n  " } else { ",\n  " })?;
        // No string in it has a line break, which would be escaped.
        pieces.add(&json(&item)?.trim_end().replace('\n', "\n  "))?;
        count += 1;
    }
    pieces.add(if count == 0 { "[]\n" } else { "\n]\n" })?;
    pieces.finish()
}

/// Writes text to standard output in pieces of some size.
#[derive(Debug, Default)]
pub(crate) struct Pieces(String);

impl Pieces {
    pub(crate) fn add(&mut self, text: &str) -> Result<()> {
        const SIZE: usize = 64 << 10;
        self.0.push_str(text);
        if self.0.len() < SIZE {
            return Ok(());
        }
        print(std::mem::take(&mut self.0))
    }

    pub(crate) fn finish(self) -> Result<()> {
        print(self.0)
    }
}

/// A value as JSON in one line, to become a part of a document.
pub(crate) fn json_of(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map(|text| escape_json(&text))
        .map_err(|e| Error::sys("write JSON")(e.into()))
}

/// Writes a line to standard error. Where that is closed, nobody is left to be told.
pub(crate) fn eprint(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A value as a JSON value.
pub(crate) fn value(of: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(of).map_err(|e| Error::sys("write JSON")(e.into()))
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::sys("write JSON")(e.into()))?;
    text.push('\n');
    Ok(escape_json(&text))
}

/// Escapes in JSON what serde leaves raw and a terminal obeys: DEL, the C1 controls, direction overrides.
pub(crate) fn escape_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && is_unsafe(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Controls, line separators and direction overrides: what can make a terminal show something else.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text with its control characters escaped, fit for one line of a terminal.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    escape_but(text, &[])
}

/// The same, letting some characters through.
pub(crate) fn escape_but<'a>(text: &'a str, keep: &[char]) -> Cow<'a, str> {
    let bad = |c: &char| is_unsafe(*c) && !keep.contains(c);
    if !text.chars().any(|c| bad(&c)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match bad(&c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// A column of a table: its title, and the field it shows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    title: &'static str,
    field: &'static str,
    /// Left out where no row has anything in it.
    optional: bool,
}

/// A column.
pub(crate) const fn column(title: &'static str, field: &'static str) -> Column {
    Column { title, field, optional: false }
}

/// A column that is left out where it would be empty.
pub(crate) const fn optional(title: &'static str, field: &'static str) -> Column {
    Column { title, field, optional: true }
}

/// Writes a table of records, or as JSON the records themselves.
pub(crate) fn print_rows(json: bool, columns: &[Column], rows: &impl serde::Serialize) -> Result<()> {
    match value(rows)? {
        rows if json => print_json(&rows),
        Value::Array(rows) if !rows.is_empty() => print(table(columns, &rows)),
        _ => Ok(()),
    }
}

/// Writes one record as `key: value` lines, or as JSON.
pub(crate) fn print_record(json: bool, record: &impl serde::Serialize) -> Result<()> {
    match value(record)? {
        record if json => print_json(&record),
        record => print(fields(&record)),
    }
}

/// Writes names, one a line, or as a JSON array.
pub(crate) fn print_names(json: bool, names: &[String]) -> Result<()> {
    if json { print_json(&names) } else { print(names.iter().map(|n| format!("{n}\n")).collect::<String>()) }
}

/// Aligned columns under a line of titles, without borders.
pub(crate) fn table(columns: &[Column], rows: &[Value]) -> String {
    let texts: Vec<(&str, Vec<String>)> = columns
        .iter()
        .map(|c| (c, rows.iter().map(|row| cell(c.field, &row[c.field])).collect::<Vec<_>>()))
        .filter(|(c, cells)| !c.optional || cells.iter().any(|text| !text.is_empty()))
        .map(|(c, cells)| (c.title, cells))
        .collect();
    let widths: Vec<usize> = texts
        .iter()
        .map(|(t, cells)| cells.iter().map(|c| width(c)).chain([width(t)]).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&mut texts.iter().map(|(title, _)| *title));
    for row in 0..rows.len() {
        line(&mut texts.iter().map(|(_, cells)| cells[row].as_str()));
    }
    out
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// `key: value` lines, with what is nested indented below its key.
pub(crate) fn fields(value: &Value) -> String {
    let mut out = String::new();
    write_fields(&mut out, value, 0);
    out
}

fn write_fields(out: &mut String, value: &Value, indent: usize) {
    let Value::Object(map) = value else { return };
    for (key, value) in map {
        let shown = escape(key);
        match value {
            Value::Null => {}
            Value::Object(map) if map.is_empty() => {}
            Value::Object(_) => {
                let _ = writeln!(out, "{:indent$}{shown}:", "");
                write_fields(out, value, indent + 2);
            }
            Value::Array(items) if items.iter().any(|i| i.is_object() || i.is_array()) => {
                let _ = writeln!(out, "{:indent$}{shown}:", "");
                for item in items {
                    let _ = writeln!(out, "{:indent$}  {}", "", inline(item));
                }
            }
            Value::Array(items) if items.is_empty() => {}
            // In a table an empty cell says it; after a colon it would look forgotten.
            Value::Bool(false) => {
                let _ = writeln!(out, "{:indent$}{shown}: no", "");
            }
            _ => {
                let _ = writeln!(out, "{:indent$}{shown}: {}", "", cell(key, value));
            }
        }
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            map.iter().map(|(k, v)| format!("{}={}", escape(k), cell(k, v))).collect::<Vec<_>>().join(" ")
        }
        other => cell("", other),
    }
}

/// One value as people read it.
fn cell(field: &str, value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => String::from(if field.is_empty() { "no" } else { "" }),
        Value::Number(n) => match n.as_u64() {
            Some(bytes) if is_size(field) => size(bytes),
            _ => n.to_string(),
        },
        Value::String(text) => match text.parse::<Time>() {
            Ok(time) => local(time),
            Err(_) => escape(text).into_owned(),
        },
        Value::Array(items) => items.iter().map(|i| cell("", i)).collect::<Vec<_>>().join(", "),
        Value::Object(map) => {
            map.iter().map(|(k, v)| format!("{}={}", escape(k), cell(k, v))).collect::<Vec<_>>().join(",")
        }
    }
}

fn is_size(field: &str) -> bool {
    matches!(
        field,
        "size" | "allocated" | "free" | "used" | "total" | "available" | "memory" | "io" | "disk" | "bytes"
    ) || field.ends_with("_bytes")
}

/// A time as the user's clock shows it.
pub(crate) fn local(time: Time) -> String {
    time.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_is_aligned_and_leaves_out_empty_optional_columns() {
        let columns = [column("NAME", "name"), column("STATE", "state"), optional("LABELS", "labels")];
        let rows = [json!({"name": "web", "state": "running"}), json!({"name": "database", "state": null})];
        assert_eq!(table(&columns, &rows), "NAME      STATE\nweb       running\ndatabase\n");
        let rows = [json!({"name": "web", "state": "stopped", "labels": {"a": "1", "b": "2"}})];
        assert_eq!(table(&columns, &rows), "NAME  STATE    LABELS\nweb   stopped  a=1,b=2\n");
    }

    #[test]
    fn control_characters_from_inside_never_reach_the_terminal() {
        let rows = [json!({"name": "a\x1b[31mb\nc\u{9b}d\u{202e}"})];
        let text = table(&[column("NAME", "name")], &rows);
        assert_eq!(text, "NAME\na\\u{1b}[31mb\\nc\\u{9b}d\\u{202e}\n");
        let text = json(&json!({"a": "x\u{9b}\x7f\x1b"})).unwrap();
        assert!(!text.chars().any(|c| c != '\n' && is_unsafe(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["a"], "x\u{9b}\x7f\x1b");
        assert_eq!(escape_but("a\tb\x07", &['\t']), "a\tb\\u{7}");
    }

    #[test]
    fn nested_fields_are_indented_and_empty_ones_left_out() {
        let text =
            fields(&json!({"name": "web", "pid": null, "oci": {"id": "x", "root": "/r"}, "tags": ["a", "b"],
            "memory": 2147483648u64, "mounts": [{"src": "/a", "dst": "/b"}], "ephemeral": false}));
        assert!(text.contains("oci:\n  id: x\n  root: /r\n"), "{text}");
        assert!(text.contains("tags: a, b\n") && text.contains("memory: 2.0 GiB\n"), "{text}");
        assert!(text.contains("mounts:\n  ") && text.contains("src=/a"), "{text}");
        assert!(!text.contains("pid") && text.ends_with("ephemeral: no\n"), "{text}");
        assert!(text.starts_with("name: web\n"), "fields stand in the order of the record: {text}");
    }
}
