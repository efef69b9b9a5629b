//! Root filesystems from elsewhere: archives, images, and the one made of busybox.
//!
//! What is read here is not trusted: everything is made through descriptors below the target, no link is
//! followed, and what an archive may take is bounded. Nothing here knows the pool.

mod archive;
mod compression;
pub mod containerd;
pub mod debian;
mod files;
mod layer;
pub mod links;
pub mod minimal;
pub mod oci;
pub mod pack;
pub mod reading;
mod records;
mod sparse;
pub mod unpack;

pub use files::{Limits, Summary, keeps_value};
pub use reading::Source;
