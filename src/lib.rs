//! Sparks: instant sandboxes with persistent filesystems.
//!
//! A spark is a btrfs subvolume with a record beside it; while it runs it is an OCI container that
//! libcontainer makes from a bundle. There is no daemon: every command opens the pool, does one thing under a
//! lock, and ends.
//!
//! The layers, from the ground up (`tests/layers.rs` holds the source to it):
//!
//! | layer | modules | may use |
//! |---|---|---|
//! | words | [`domain`] | nothing of ours |
//! | errors | [`error`], [`fault`] | `domain` |
//! | system calls | [`sys`] | nothing of ours |
//! | parts | [`pool`], [`bundle`], [`runtime`], [`image`], [`net`], [`secrets`], [`config`] | the above, and not each other |
//! | operations | [`ops`] | all of the above |
//! | standing by | [`foreground`] | `ops`, `domain`, `error` |
//! | faces | [`cli`], [`oci`], [`shim`] | `foreground`, `ops`, `domain`, `error` |
//!
//! Programs use [`ops::Sparks`]; see `examples/library.rs`.

pub mod bundle;
pub mod cli;
pub mod config;
pub mod domain;
pub mod error;
pub mod fault;
pub mod foreground;
pub mod image;
pub mod net;
pub mod oci;
pub mod ops;
pub mod pool;
pub mod runtime;
pub mod secrets;
pub mod shim;
pub mod sys;
#[cfg(test)]
mod wrong_values;

pub use error::{Error, Result};
