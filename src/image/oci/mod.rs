//! Images of layers: from registries, layouts and archives, and to them.

mod blobs;
mod credentials;
mod docker;
mod json;
mod layout;
mod manifest;
mod registries;
mod registry;
mod source;

pub use manifest::{Config, Descriptor, MOST, Manifest, chains, digest_of};
pub use registry::{Content, Upload, push};
pub use source::{Fetching, Image, Layer, Opened, Pull, open};
pub mod write;
