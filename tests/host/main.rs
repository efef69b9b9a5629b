//! Operations on a real btrfs, as root.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod base;
mod bundle;
mod confine;
mod console;
mod escape;
mod exec;
mod hostile;
mod inside;
mod lifecycle;
mod options;
mod project;
mod shared;
mod terminal;
