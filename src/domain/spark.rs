//! A spark: its identity, its record, and the states it can be in.

use std::collections::BTreeMap;
use std::fmt;

use super::name::Name;
use super::options::SparkOptions;

/// A point in time, written as RFC 3339 in UTC.
pub type Time = chrono::DateTime<chrono::Utc>;

/// The identity of a spark, base, project or trash entry: a ULID, so that ids sort by time. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl Id {
    /// A new one.
    pub fn generate() -> Id {
        Id(ulid::Ulid::generate().to_string())
    }

    /// The 26 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn value(&self) -> u128 {
        // An `Id` is only ever made of a valid ULID.
        self.0.parse::<ulid::Ulid>().map(u128::from).unwrap_or_default()
    }

    /// Its 128 bits.
    pub fn bytes(&self) -> [u8; 16] {
        self.value().to_be_bytes()
    }

    /// 48 of its random bits: as good as unique among the sparks of one pool.
    pub fn number(&self) -> u64 {
        (self.value() & 0xffff_ffff_ffff) as u64
    }

    /// Its 128 bits as 32 hexadecimal digits, as `/etc/machine-id` wants them.
    pub fn machine_id(&self) -> String {
        format!("{:032x}", self.value())
    }
}

impl std::str::FromStr for Id {
    type Err = String;
    fn from_str(s: &str) -> Result<Id, String> {
        match s.parse::<ulid::Ulid>() {
            Ok(ulid) => Ok(Id(ulid.to_string())),
            Err(_) => Err("not an id".into()),
        }
    }
}

impl TryFrom<String> for Id {
    type Error = String;
    fn try_from(s: String) -> Result<Id, String> {
        s.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a spark is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    Paused,
    Stopped,
    /// It has a directory, but its record or its files are damaged. Nothing is lost; it stays listed.
    Broken,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "stopped",
            State::Broken => "broken",
        })
    }
}

/// Where a spark's first files came from, by the names and ids that it had then.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Origin {
    Base {
        name: Name,
        id: Id,
    },
    /// Another spark, or one of its snapshots.
    Spark {
        project: Name,
        name: Name,
        id: Id,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<Name>,
        /// Those that were forked in one go have this in common.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        race: Option<Id>,
    },
    /// A snapshot of a spark elsewhere, which `receive` received.
    Received {
        name: Name,
        id: Id,
        snapshot: Name,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Base { name, .. } | Origin::Spark { name, snapshot: None, .. } => write!(f, "{name}"),
            Origin::Spark { name, snapshot: Some(snapshot), .. }
            | Origin::Received { name, snapshot, .. } => write!(f, "{name}@{snapshot}"),
        }
    }
}

/// `projects/P/sparks/N/spark.json`: what persists of a spark besides its files. Its name is its directory's.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SparkRecord {
    /// [`super::FORMAT`].
    pub version: u32,
    pub id: Id,
    /// The id its container has. The same as `id`, and recorded so that the mapping reads both ways.
    pub oci_id: String,
    pub created: Time,
    pub origin: Origin,
    #[serde(default)]
    pub options: SparkOptions,
    /// Set for a spark that ends with the command that made it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
    /// Its number in its project's network, for life. None until it has needed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<u16>,
    /// Fields of a later version of this program, kept as they are.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// Labels, sorted.
pub type Labels = BTreeMap<String, String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_make_machine_ids() {
        let id = Id::generate();
        assert_eq!(id.as_str().len(), 26);
        let machine = id.machine_id();
        assert_eq!(machine.len(), 32);
        assert!(machine.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()));
        assert_ne!(machine, Id::generate().machine_id());
        assert!("../../etc".parse::<Id>().is_err());
    }
}
