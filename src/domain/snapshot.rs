//! A snapshot: a read-only copy of a spark's root, as it was at one moment.

use super::name::Name;
use super::spark::{Id, Time};
use super::volume::{Attached, Data};

/// Why a snapshot was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Somebody gave it a name.
    Named,
    /// It is called by its time, and thinned out by `--keep`.
    Timed,
    /// What `send` sent, kept so that the next time only what differs from it has to be.
    Sent,
    /// What `receive` received, as it was where it came from.
    Received,
    /// What was there before a restore, an undo or a pick: what `undo` goes back to.
    Undo,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Kind::Named => "named",
            Kind::Timed => "timed",
            Kind::Sent => "sent",
            Kind::Received => "received",
            Kind::Undo => "undo",
        })
    }
}

/// What a received snapshot is a copy of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Source {
    /// The snapshot's id and its subvolume's UUID where it came from: both, since ids outlive a copy of the files.
    pub id: Id,
    pub uuid: String,
    /// The UUID of the subvolume that it was received into: one with another UUID is no faithful copy.
    pub copy: String,
}

/// What the copy of a volume in a received snapshot is a copy of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VolumeSource {
    /// As the volume was called where it came from.
    pub volume: Name,
    /// As in [`Source`].
    pub uuid: String,
    pub copy: String,
}

/// `snapshots/S/snapshot.json`. The snapshot's name is its directory's.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SnapshotRecord {
    /// [`super::FORMAT`].
    pub version: u32,
    pub id: Id,
    pub created: Time,
    pub kind: Kind,
    /// Words of the user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Of [`Kind::Undo`]: the UUID of the subvolume that was the spark's root, and is this one's once it has been
    /// exchanged for the new root. Until then this is a leftover of a restore that did not happen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<String>,
    /// Set from the first undo on: what is in it is somebody's data before an exchange as well as after it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undone: bool,
    /// The data volumes that the spark had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Kept>,
    /// Of [`Kind::Received`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Fields of a later version of this program, kept as they are.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// A data volume of a spark, and what a snapshot has of it.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Kept {
    #[serde(flatten)]
    pub attached: Attached,
    /// Copied ones are in the snapshot; of others only this is known.
    pub data: Data,
    /// As in [`SnapshotRecord::replaced`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<String>,
    /// As in [`SnapshotRecord::source`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VolumeSource>,
}

impl SnapshotRecord {
    /// That of a snapshot which is made now.
    pub fn new(kind: Kind) -> SnapshotRecord {
        SnapshotRecord {
            version: super::FORMAT,
            id: Id::generate(),
            created: chrono::Utc::now(),
            kind,
            label: None,
            replaced: None,
            undone: false,
            volumes: Vec::new(),
            source: None,
            rest: Default::default(),
        }
    }
}

/// The name of a snapshot taken at a time, to the second: `20261124-183005`, in UTC. `number` tells those of one second
/// apart.
pub fn timed_name(prefix: &str, at: Time, number: u32) -> Name {
    let stamp = at.format("%Y%m%d-%H%M%S");
    let text = match number {
        0 => format!("{prefix}{stamp}"),
        _ => format!("{prefix}{stamp}-{}", number + 1),
    };
    Name::nearest(&text).unwrap_or_else(|| unreachable!("digits make a name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_second_differ_and_sort_by_time() {
        let at = "2026-11-24T18:30:05Z".parse().unwrap();
        assert_eq!(timed_name("", at, 0).as_str(), "20261124-183005");
        assert_eq!(timed_name("undo-", at, 1).as_str(), "undo-20261124-183005-2");
    }
}
