//! Operations on a real btrfs, as root.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod base;
