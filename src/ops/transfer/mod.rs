//! `send` and `receive`: a spark as one stream, for another pool or under another name.

mod drafts;
mod format;
mod incoming;
mod parse;
mod receive;
mod send;

pub use format::WRITE;
pub(super) use parse::PARSER;
pub use receive::{Received, Request};
pub use send::Sent;

use crate::domain::name::Name;
use crate::domain::options::SparkOptions;
use crate::domain::spark::Id;
use crate::domain::volume::Attached;

/// What a stream begins with: what is in it, and what it can be applied to.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Header {
    spark: Spark,
    snapshot: Point,
    /// The snapshot that the receiver has to have. None if the stream is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<Point>,
}

/// The spark that was sent, as it was called and set up there.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Spark {
    name: Name,
    id: Id,
    options: SparkOptions,
}

/// A snapshot where it was sent.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Point {
    name: Name,
    id: Id,
    /// Its subvolume's.
    uuid: String,
}

/// What follows is one subvolume, and this is known of it besides its kind.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Section<T = serde_json::Map<String, serde_json::Value>> {
    kind: String,
    #[serde(flatten)]
    what: T,
}

/// The kind of the section that every stream has, and begins with: the root filesystem.
const ROOT: &str = "root";
/// The kind of sections of data volumes, whose copies the snapshot holds.
const VOLUME: &str = "volume";
/// Data volumes that a stream may have.
const MOST_VOLUMES: usize = 64;

/// A data volume, as it was called and attached where it was sent.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Volume {
    #[serde(flatten)]
    attached: Attached,
    /// Its copy's.
    uuid: String,
    /// That of its copy in the parent snapshot. None if the volume is whole, as it may be in an increment too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
}
