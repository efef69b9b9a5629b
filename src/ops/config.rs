//! `config`: where the configuration files are, what they say together, and where each value came from.

use std::path::{Path, PathBuf};

pub use crate::config::{Level, Settings, Value};

use super::defaults;
use super::project::detect::{self, Owners};
use crate::config::{Config, Entry, Files, KEYS};
use crate::domain::options::SparkOptions;
use crate::error::{Error, Result};
use crate::sys::caller::Caller;

/// The host's own file.
pub const SYSTEM: &str = "/etc/spark/config.toml";

/// Where to look.
#[derive(Debug, Clone)]
pub struct Sources<'a> {
    /// `SPARK_CONFIG`: instead of the user's own file, and it has to be there.
    pub user: Option<PathBuf>,
    /// Usually [`SYSTEM`].
    pub system: &'a Path,
}

/// All files, checked.
#[derive(Debug, Clone)]
pub struct Loaded(Config);

/// One value, and where it came from.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Row {
    /// As it would be written at the top of a file.
    pub key: String,
    /// None where nothing is set and there is nothing to be told about that.
    pub value: Option<Value>,
    /// `FILE:LINE`, a variable, an option, or `default`.
    pub from: String,
    pub file: Option<PathBuf>,
    pub line: Option<usize>,
}

impl Row {
    fn of(entry: &Entry) -> Row {
        Row {
            key: entry.full_name(),
            value: Some(entry.value.clone()),
            from: format!("{}:{}", entry.path.display(), entry.line),
            file: Some(entry.path.clone()),
            line: Some(entry.line),
        }
    }

    /// A value that is in no file.
    pub fn new(key: &str, value: Option<String>, from: &str) -> Row {
        Row { key: key.into(), value: value.map(Value::Text), from: from.into(), file: None, line: None }
    }
}

/// Reads the files of the user and of the host: what no repository has a say in.
pub fn load_own(sources: &Sources<'_>) -> Result<Loaded> {
    let caller = Caller::find().map_err(Error::io("read", "/etc/passwd"))?;
    let files = Files {
        user_is_named: sources.user.is_some(),
        user: Some(sources.user.clone().unwrap_or_else(|| caller.home.join(".config/spark/config.toml"))),
        system: Some(sources.system.to_owned()),
        defaults: Some(defaults::of_host),
    };
    Config::load(&files, &caller).map(Loaded)
}

/// Whether a directory is in a repository, whoever's: there the repository says what the project is.
pub fn is_in_repository(dir: &Path) -> bool {
    !matches!(detect::around(dir, &Owners::of_caller()), Ok(None))
}

impl Loaded {
    /// Adds the file of the repository around a directory. A repository that is somebody else's, or damaged, says nothing:
    /// commands that need it report that.
    pub fn with_repository(self, around: Option<&Path>) -> Result<Loaded> {
        match around.and_then(|dir| detect::top_around(dir, &Owners::of_caller()).ok().flatten()) {
            Some(top) => self.0.with_repository(&top).map(Loaded),
            None => Ok(self),
        }
    }

    /// What the files say together.
    pub fn settings(&self) -> Result<Settings> {
        self.0.settings()
    }

    /// Every key with its effective value, those of `given` instead of what files say.
    pub fn rows(&self, given: Vec<Row>) -> Vec<Row> {
        let defaults = serde_json::to_value(SparkOptions::default()).unwrap_or_default();
        let effective = self.0.effective();
        let mut rows = Vec::new();
        for key in KEYS {
            if let Some(row) = given.iter().find(|row| row.key == key.name) {
                rows.push(row.clone());
                continue;
            }
            let before = rows.len();
            rows.extend(
                effective.iter().filter(|entry| entry.key.name == key.name).map(|entry| Row::of(entry)),
            );
            if rows.len() == before {
                let default = key.default.or_else(|| defaults[key.name].as_str()).map(str::to_owned);
                let (default, from) = match self.0.default_of(key) {
                    Some((value, from)) => (Some(value), from),
                    None => (default, "default"),
                };
                rows.push(Row::new(key.name, default, from));
            }
        }
        rows.extend(
            self.0.wishes().map(|wish| Row { key: format!("wish.{}", wish.full_name()), ..Row::of(wish) }),
        );
        rows.extend(given.into_iter().filter(|row| KEYS.iter().all(|key| key.name != row.key)));
        rows
    }
}
