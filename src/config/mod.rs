//! Configuration files: what they may say, and which of them counts.
//!
//! Owns the keys, the trust that each file gets, and the order of the files. Must not know where files are, or what is
//! done with what they say: that is `ops::config`.

mod file;
mod keys;
mod parse;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use keys::Stranger;
pub use keys::{KEYS, Key};

use crate::domain::limits::Defaults;
use crate::domain::name::Name;
use crate::domain::options::Changes;
use crate::error::{Error, Result};
use crate::sys::caller::Caller;

/// What a repository's file is called.
pub const IN_REPOSITORY: &str = ".spark.toml";

/// Whose a file is. The first wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Anybody's: whoever wrote the repository.
    Repository,
    User,
    System,
}

/// A value, as far as TOML knows it. Numbers are texts here: a key's own parser reads `"2G"` and `2` alike.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum Value {
    Text(String),
    Flag(bool),
    List(Vec<String>),
}

/// One thing that a file sets.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: &'static Key,
    /// Of a table, whose entries count one by one.
    pub name: Option<String>,
    pub value: Value,
    pub level: Level,
    pub path: PathBuf,
    pub line: usize,
}

impl Entry {
    fn is_wish(&self) -> bool {
        self.level == Level::Repository && matches!(self.key.stranger, Stranger::Wish(_))
    }

    /// As it would be written at the top of a file: `trash.keep`, `env.LANG`.
    pub fn full_name(&self) -> String {
        match &self.name {
            Some(name) => format!("{}.{name}", self.key.name),
            None => self.key.name.to_owned(),
        }
    }
}

/// What all files together say, typed.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// What a new spark is like where its command line says nothing.
    pub create: Changes,
    /// What it starts from.
    pub base: Option<Name>,
    /// The ports that a repository asks for, as `-p` takes them. Nothing publishes them but the user.
    pub wished_ports: Vec<String>,
    /// The project of commands outside of every repository.
    pub project: Option<Name>,
    /// How long a deleted spark can be brought back.
    pub trash_keep: Option<Duration>,
    /// What `cmd://NAME` runs on the host.
    pub secret_commands: BTreeMap<String, Vec<String>>,
}

/// Where the files are. One that is not there says nothing.
#[derive(Debug, Clone, Default)]
pub struct Files {
    pub user: Option<PathBuf>,
    /// The user's file was named, and has to be there.
    pub user_is_named: bool,
    pub system: Option<PathBuf>,
    /// Finds the default limits of this host, which a repository may lower. None if they do not matter.
    pub defaults: Option<fn() -> Defaults>,
}

/// What the files say.
#[derive(Debug, Clone, Default)]
pub struct Config {
    entries: Vec<Entry>,
    defaults: Option<fn() -> Defaults>,
}

impl Config {
    /// Reads and checks the files that no repository has a say in, whole.
    ///
    /// # Errors
    /// `usage` with file and line for what no file may say, `denied` for a file that somebody else could write.
    pub fn load(files: &Files, caller: &Caller) -> Result<Config> {
        let mut config = Config { entries: Vec::new(), defaults: files.defaults };
        if let Some(path) = &files.user {
            let text = file::of_user(path, caller)?;
            if text.is_none() && files.user_is_named {
                return Err(Error::Usage {
                    message: format!("there is no configuration file {}", path.display()),
                    hint: Some("SPARK_CONFIG names it".into()),
                });
            }
            config.add(text, Level::User, path)?;
        }
        if let Some(path) = &files.system {
            config.add(file::of_system(path)?, Level::System, path)?;
        }
        Ok(config)
    }

    /// The same together with the file at the top of a work tree.
    ///
    /// # Errors
    /// `usage` with file and line for what no file may say, `denied` for what this one may not.
    pub fn with_repository(mut self, top: &Path) -> Result<Config> {
        self.add(file::of_repository(top)?, Level::Repository, &top.join(IN_REPOSITORY))?;
        Ok(self)
    }

    fn add(&mut self, text: Option<String>, level: Level, path: &Path) -> Result<()> {
        if let Some(text) = text {
            self.entries.extend(parse::parse(&text, level, path)?);
        }
        Ok(())
    }

    /// What counts, in the order of [`KEYS`].
    pub fn effective(&self) -> Vec<&Entry> {
        let mut all: HashMap<(&str, Option<&str>), Vec<&Entry>> = HashMap::new();
        for entry in self.entries.iter().filter(|entry| !entry.is_wish()) {
            all.entry((entry.key.name, entry.name.as_deref())).or_default().push(entry);
        }
        let mut chosen: Vec<&Entry> = all.into_values().filter_map(|entries| self.choose(entries)).collect();
        let place = |key: &Key| KEYS.iter().position(|k| k.name == key.name);
        chosen.sort_by(|a, b| (place(a.key), &a.name).cmp(&(place(b.key), &b.name)));
        chosen
    }

    /// The first of several wins. A repository's file makes nothing looser than the user or the system has it, or than it is
    /// by default where neither says anything.
    fn choose<'a>(&self, entries: Vec<&'a Entry>) -> Option<&'a Entry> {
        let first = *entries.iter().min_by_key(|e| e.level)?;
        let own = entries.into_iter().filter(|e| e.level != Level::Repository).min_by_key(|e| e.level);
        let Some(looseness) = first.key.looseness.filter(|_| first.level == Level::Repository) else {
            return Some(first);
        };
        let most = match own {
            Some(own) => Some(looseness(&own.value)),
            None => self.sized(first.key).map(|(most, _)| most),
        };
        if most.is_some_and(|most| looseness(&first.value) >= most) { own } else { Some(first) }
    }

    /// The default of a key, if it is sized to the host, with its looseness.
    fn sized(&self, key: &Key) -> Option<(u64, &'static str)> {
        let sized = key.sized?;
        Some(((sized.of)(&self.defaults?())?, sized.why))
    }

    /// What counts where no file says anything: how it would be written, and where it comes from.
    pub fn default_of(&self, key: &Key) -> Option<(String, &'static str)> {
        let (value, why) = self.sized(key)?;
        Some(((key.sized?.text)(value), why))
    }

    /// What a repository's file asks for, and the user has to grant.
    pub fn wishes(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.is_wish())
    }

    /// What counts and what is asked for, typed.
    ///
    /// # Errors
    /// None for what [`Config::load`] has taken.
    pub fn settings(&self) -> Result<Settings> {
        let mut settings = Settings::default();
        // `ports` is the only key that can be a wish.
        for entry in self.wishes() {
            if let Value::List(ports) = &entry.value {
                settings.wished_ports.extend(ports.iter().cloned());
            }
        }
        for entry in self.effective() {
            let applied =
                (entry.key.apply)(&mut settings, entry.name.as_deref().unwrap_or_default(), &entry.value);
            applied.map_err(|why| parse::at(&entry.path, entry.line, &why, None))?;
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests;
