//! Root filesystems from elsewhere: archives, and the one made of busybox.
//!
//! What is read here is not trusted: everything is made through descriptors below the target, no link is
//! followed, and what an archive may take is bounded. Nothing here knows the pool.

mod archive;
mod compression;
pub mod debian;
mod files;
pub mod minimal;
pub mod unpack;

pub use files::{Limits, Summary, keeps_xattr};
