//! Crashes: every fault point fails and dies, and commands are killed at random moments. Needs the feature `faults`.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;

#[allow(dead_code)]
#[path = "../oci/bundle.rs"]
mod bundle;
mod canary;
mod data;
mod dumps;
mod ends;
mod enter;
mod files;
mod images;
mod kill;
mod leftovers;
mod lives;
mod oci;
mod points;
mod pool;
mod reading;
mod secrets;
mod snapshots;
mod still;
mod transfer;
mod trash;
