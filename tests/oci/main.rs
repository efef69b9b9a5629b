//! `spark-oci` on plain bundles, and under those who drive it: podman, containerd, umoci, readers of its state.
//!
//! The rules are those that youki's integration suite has too; that one is run by hand (docs/interop.md).

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod bundle;
mod caller;
mod cgroups;
mod confine;
mod devices;
mod exec;
mod interop;
mod life;
mod limits;
mod race;
mod runc;
