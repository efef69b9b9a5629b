//! From a spark's record to an OCI bundle: templates, mounts, the seccomp filter, `/etc` files.
//!
//! What is made here is a bundle that any OCI runtime takes. Nothing here starts or mounts anything.

pub mod etc;
pub mod hosts;
pub mod limits;
pub mod seccomp;
pub mod spec;
pub mod template;
pub mod write;

pub use spec::{Bundle, Input};
