//! The pool: the btrfs that everything persistent lives on, and the rules by which its files change.
//!
//! The filesystem is the database. A thing is made aside in `staging/` and appears by one rename; it disappears
//! by one rename into `trash/`. Nothing here knows what a container is.

use std::path::Path;

use crate::domain::name::Name;
use crate::domain::place::{Place, PoolPaths};
use crate::error::{Error, Result};

pub mod apply;
pub mod btrfs;
pub mod changes;
pub mod growth;
pub mod image;
pub mod index;
pub mod layout;
pub mod lock;
pub mod making;
pub mod quota;
pub mod record;
pub mod repair;
pub mod room;
pub mod space;
pub mod stage;
pub mod stream;
pub mod trash;

/// An open pool: it is there, mounted, and of a layout that this program knows.
#[derive(Debug, Clone)]
pub struct Pool {
    /// The directories of this installation.
    pub place: Place,
    /// Paths inside.
    pub paths: PoolPaths,
    /// What mounting it has found or done that the user has to know.
    pub notices: Vec<String>,
}

/// The names of the directories in `dir`, sorted. Anything that is not a valid name is passed over.
pub fn names_in(dir: &Path) -> Result<Vec<Name>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", dir)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", dir))?;
        // What is no directory is nothing of ours. A link is none either.
        if !entry.file_type().map_err(Error::io("list", dir))?.is_dir() {
            continue;
        }
        if let Some(name) = entry.file_name().to_str().and_then(|n| n.parse().ok()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
