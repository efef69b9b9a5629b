//! Plain types and their rules. Nothing here reads, writes or asks the system anything.

pub mod base;
pub mod ids;
pub mod limits;
pub mod location;
pub mod name;
pub mod options;
pub mod place;
pub mod project;
pub mod snapshot;
pub mod spark;
pub mod volume;

/// Newest version of every record on disk. A newer one is refused rather than guessed at.
pub const FORMAT: u32 = 1;
