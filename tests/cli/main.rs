//! The command line as people and scripts see it, through the program itself. As root, on a real btrfs.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod bases;
mod config;
mod errors;
mod help;
mod places;
mod programs;
mod sparks;
mod states;
mod status;
mod transcript;
