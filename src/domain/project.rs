//! A project: a namespace for sparks, found from a git repository or named by the user.

use std::path::PathBuf;

use super::spark::{Id, Time};

/// `projects/P/project.json`.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct ProjectRecord {
    /// [`super::FORMAT`].
    pub version: u32,
    pub id: Id,
    pub created: Time,
    /// The repository's common git directory; none for a project that was named by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<PathBuf>,
    /// Fields of a later version of this program, kept as they are.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}
