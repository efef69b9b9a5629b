//! Running sparks: the only user of libcontainer.
//!
//! libcontainer is called only in processes with one thread: it clones and runs ordinary Rust in the child. What
//! changes its caller for good (mount namespace, dumpable flag) happens in a forked helper.

#![allow(unsafe_code)]

pub mod attach;
pub mod cgroup;
pub mod closing;
pub mod confine;
mod devices;
pub mod enter;
pub mod ids;
pub mod init;
pub mod labels;
pub mod launch;
pub mod live;
pub mod log;
pub mod place;
pub mod report;
pub mod secrets;
pub mod streams;
pub mod strict;
pub mod traffic;
pub mod users;
pub mod youki;
