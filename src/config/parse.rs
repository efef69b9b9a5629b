//! From TOML to entries. A file is checked whole: what is wrong first in it is told, with its line.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Kind, Stranger};
use super::{Entry, KEYS, Key, Level, Settings, Value};
use crate::error::{Error, Result};

/// A mistake at a place of a line.
pub(super) fn at(path: &Path, line: usize, what: &str, hint: Option<String>) -> Error {
    Error::Usage { message: format!("{}:{line}: {what}", path.display()), hint }
}

/// The entries of a file.
pub(super) fn parse(text: &str, level: Level, path: &Path) -> Result<Vec<Entry>> {
    let mut file = Reader { text, level, path, entries: Vec::new(), wrong: Vec::new() };
    match DeTable::parse(text) {
        // Its own rendering shows the line, which may be of a file that is none of the reader's business.
        Err(e) => file.wrong(e.span().unwrap_or_default(), e.message(), None),
        Ok(table) => file.table(table.get_ref(), ""),
    }
    file.wrong.sort_by_key(|(offset, _)| *offset);
    match file.wrong.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(file.entries),
    }
}

struct Reader<'a> {
    text: &'a str,
    level: Level,
    path: &'a Path,
    entries: Vec<Entry>,
    wrong: Vec<(usize, Error)>,
}

impl Reader<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.as_bytes().iter().take(span.start);
        1 + before.filter(|b| **b == b'\n').count()
    }

    fn wrong(&mut self, span: Range<usize>, what: &str, hint: Option<String>) {
        let error = at(self.path, self.line(&span), what.lines().next().unwrap_or_default(), hint);
        self.wrong.push((span.start, error));
    }

    fn table(&mut self, table: &DeTable<'_>, prefix: &str) {
        for (word, value) in table {
            let name = format!("{prefix}{}", word.get_ref());
            let below = format!("{name}.");
            match KEYS.iter().find(|key| key.name == name) {
                Some(key) if matches!(key.kind, Kind::Texts | Kind::Lists) => match value.get_ref() {
                    DeValue::Table(entries) => {
                        for (word, value) in entries {
                            self.entry(key, Some(word.get_ref()), word.span(), value);
                        }
                    }
                    other => self.wrong_type(key, &name, word.span(), other),
                },
                Some(key) => self.entry(key, None, word.span(), value),
                None => match value.get_ref() {
                    DeValue::Table(inner) if KEYS.iter().any(|key| key.name.starts_with(&below)) => {
                        self.table(inner, &below);
                    }
                    _ => {
                        let hint = nearest(&name).map(|near| format!("did you mean `{near}`?"));
                        let hint = hint.or_else(|| Some(format!("keys are {}", all_keys())));
                        self.wrong(
                            word.span(),
                            &format!("there is no key `{}`", name.escape_default()),
                            hint,
                        );
                    }
                },
            }
        }
    }

    fn entry(
        &mut self,
        key: &'static Key,
        name: Option<&str>,
        span: Range<usize>,
        found: &Spanned<DeValue<'_>>,
    ) {
        let full =
            name.map_or_else(|| key.name.to_owned(), |n| format!("{}.{}", key.name, n.escape_default()));
        let Some(value) = value_of(key.kind, found.get_ref()) else {
            return self.wrong_type(key, &full, span, found.get_ref());
        };
        if let Err(why) = (key.apply)(&mut Settings::default(), name.unwrap_or_default(), &value) {
            return self.wrong(span, &format!("`{full}`: {why}"), None);
        }
        if self.level == Level::Repository
            && let Some(why) = refused(key, &value)
        {
            let error = Error::Denied {
                what: format!(
                    "{}:{}: a repository's file may not set `{full}`{why}",
                    self.path.display(),
                    self.line(&span)
                ),
                hint: "take it out; what you want yourself is for ~/.config/spark/config.toml".into(),
            };
            return self.wrong.push((span.start, error));
        }
        self.entries.push(Entry {
            key,
            name: name.map(str::to_owned),
            value,
            level: self.level,
            path: self.path.to_owned(),
            line: self.line(&span),
        });
    }

    fn wrong_type(&mut self, key: &Key, name: &str, span: Range<usize>, found: &DeValue<'_>) {
        let wants = match key.kind {
            Kind::Text => "a text in quotes",
            Kind::Quantity => "a text in quotes or a number",
            Kind::Flag => "true or false",
            Kind::List => "a list of texts",
            Kind::Texts if name == key.name => "a table of texts",
            Kind::Texts => "a text in quotes",
            Kind::Lists if name == key.name => "a table of lists",
            Kind::Lists => "a list of texts",
        };
        self.wrong(span, &format!("`{name}` takes {wants}, not {}", article(found)), None);
    }
}

fn article(found: &DeValue<'_>) -> &'static str {
    match found {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list of that",
        DeValue::Table(_) => "a table",
    }
}

fn value_of(kind: Kind, found: &DeValue<'_>) -> Option<Value> {
    match (kind, found) {
        (Kind::Text | Kind::Quantity | Kind::Texts, DeValue::String(text)) => {
            Some(Value::Text(text.clone().into_owned()))
        }
        (Kind::Quantity, DeValue::Integer(number)) => Some(Value::Text(number.to_string())),
        (Kind::Quantity, DeValue::Float(number)) => Some(Value::Text(number.as_str().to_owned())),
        (Kind::Flag, DeValue::Boolean(on)) => Some(Value::Flag(*on)),
        (Kind::List | Kind::Lists, DeValue::Array(items)) => {
            let texts = items.iter().map(|item| item.get_ref().as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>().map(Value::List)
        }
        _ => None,
    }
}

/// Why a repository's file may not say this: nothing, or what it asked for.
fn refused(key: &Key, value: &Value) -> Option<String> {
    match key.stranger {
        Stranger::May => None,
        Stranger::MayNot => Some(String::new()),
        Stranger::If(check) | Stranger::Wish(check) => check(value).err().map(|what| format!(" to {what}")),
    }
}

fn all_keys() -> String {
    KEYS.iter().map(|key| key.name).collect::<Vec<_>>().join(", ")
}

/// The key that was meant.
fn nearest(name: &str) -> Option<&'static str> {
    let near = KEYS.iter().map(|key| (strsim::normalized_damerau_levenshtein(name, key.name), key.name));
    near.filter(|(alike, _)| *alike > 0.6).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}
