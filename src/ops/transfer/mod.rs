//! `send` and `receive`: a spark as one stream, for another pool or under another name.

mod format;
mod receive;
mod send;

pub use format::WRITE;
pub use receive::{Received, Request};
pub use send::Sent;

use crate::domain::name::Name;
use crate::domain::options::SparkOptions;
use crate::domain::spark::Id;

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

/// What follows is one subvolume. Data volumes will be sections of another kind, with a name.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Section {
    kind: String,
}

/// The kind of the section that every stream has: the root filesystem.
const ROOT: &str = "root";
