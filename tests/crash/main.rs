//! Power cuts: everything that reaches the pool's disk during a mix of commands is recorded, and replayed up to a cut.
//! Of what was not flushed by then, a random part is dropped. Whatever is left has to mount, without a repair, and has
//! everything that was acknowledged. Needs the feature `faults`, root and /dev/fuse.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;

mod cuts;
mod disk;
mod record;
mod repair;
mod state;
