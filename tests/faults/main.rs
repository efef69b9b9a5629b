//! Crashes: every fault point fails and dies, and commands are killed at random moments. Needs the feature `faults`.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;

mod data;
mod kill;
mod leftovers;
mod points;
mod snapshots;
mod still;
mod transfer;
