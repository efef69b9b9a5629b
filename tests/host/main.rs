//! Operations on a real btrfs, as root.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod badinput;
mod base;
mod bundle;
mod changes;
mod clone;
mod confine;
mod consistency;
mod console;
mod copies;
mod cp;
mod damage;
mod data;
mod diff;
mod escape;
mod examples;
mod exec;
mod fork;
mod git;
mod hostile;
mod inside;
mod lifecycle;
mod limits;
mod options;
mod places;
mod pool;
mod postgres;
mod project;
mod pull;
mod race;
mod receive;
mod send;
mod sendvolumes;
mod shared;
mod snapshot;
mod sqlite;
mod starts;
mod terminal;
mod trash;
