//! Operations on a real btrfs, as root.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod badinput;
mod base;
mod benches;
mod bombs;
mod bundle;
mod changes;
mod clone;
mod config;
mod confine;
mod connect;
mod consistency;
mod console;
mod copies;
mod cp;
mod cpexact;
mod cpmounts;
mod damage;
mod data;
mod diff;
mod disk;
mod escape;
mod everyday;
mod examples;
mod exec;
mod fork;
mod git;
mod growing;
mod hostile;
mod idle;
mod images;
mod inside;
mod lifecycle;
mod limits;
mod messages;
mod network;
mod options;
mod passphrase;
mod places;
mod pool;
mod postgres;
mod project;
mod pull;
mod quota;
mod race;
mod receive;
mod room;
mod secrets;
mod send;
mod sendvolumes;
mod servers;
mod set;
mod shared;
mod snapshot;
mod sources;
mod sqlite;
mod starts;
mod terminal;
mod tls;
mod together;
mod top;
mod trash;
