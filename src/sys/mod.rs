//! System calls, each wrapped once and safely. The only `unsafe` code besides PID 1.
//!
//! Everything here returns [`std::io::Result`]: what was attempted and on what, the caller knows.

#![allow(unsafe_code)]

pub mod beneath;
pub mod btrfs;
pub mod exec;
pub mod file;
pub mod flock;
pub mod idmap;
pub mod mount;
pub mod net;
pub mod process;
pub mod run;
pub mod tree;
pub mod tty;
