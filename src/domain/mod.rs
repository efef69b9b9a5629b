//! Plain types and their rules. Nothing here reads, writes or asks the system anything.

pub mod base;
pub mod egress;
pub mod forward;
pub mod host_entry;
pub mod ids;
pub mod image;
pub mod limits;
pub mod location;
pub mod name;
pub mod options;
pub mod place;
pub mod port;
pub mod project;
pub mod secret;
pub mod shared;
pub mod signal;
pub mod snapshot;
pub mod spark;
pub mod subnet;
pub mod volume;

/// Newest version of every record on disk. A newer one is refused rather than guessed at.
pub const FORMAT: u32 = 1;
