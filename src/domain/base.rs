//! A base: a read-only root filesystem that sparks start from.

use super::image::FromImage;
use super::spark::{Id, Origin, Time};

/// `bases/B/base.json`.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct BaseRecord {
    /// [`super::FORMAT`].
    pub version: u32,
    pub id: Id,
    pub created: Time,
    /// How it was made, in words: `bootstrap bookworm`, `import rootfs.tar.zst`.
    pub origin: String,
    /// The spark that it was saved from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Origin>,
    /// The image that its files began as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<FromImage>,
    /// Fields of a later version of this program, kept as they are.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}
