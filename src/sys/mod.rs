//! System calls, each wrapped once and safely. The only `unsafe` code besides PID 1.
//!
//! Everything here returns [`std::io::Result`]: what was attempted and on what, the caller knows.

#![allow(unsafe_code)]

pub mod argv;
pub mod ask;
mod attack;
pub mod beneath;
pub mod block;
pub mod bpf;
pub mod btrfs;
pub mod caller;
pub mod confine;
pub mod conntrack;
pub mod copy;
pub mod deadline;
pub mod exec;
pub mod file;
pub mod flock;
pub mod held;
pub mod helper;
pub mod host;
pub mod idmap;
pub mod inherited;
pub mod isolated;
pub mod job;
pub mod lifeline;
pub mod locked;
pub mod loopdev;
pub mod mount;
pub mod net;
pub mod netns;
pub mod new_file;
pub mod nft;
pub mod output;
pub mod process;
pub mod program;
pub mod quota;
pub mod run;
pub mod schedule;
pub mod search;
pub mod sockets;
pub mod tally;
pub mod tree;
pub mod tty;
pub mod unfinished;
pub mod wipe;
