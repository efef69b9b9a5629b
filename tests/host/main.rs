//! Operations on a real btrfs, as root.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod badinput;
mod base;
mod bundle;
mod confine;
mod console;
mod damage;
mod escape;
mod exec;
mod hostile;
mod inside;
mod lifecycle;
mod limits;
mod options;
mod places;
mod pool;
mod project;
mod shared;
mod starts;
mod terminal;
