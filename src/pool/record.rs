//! Records: small JSON files, replaced whole, with a version.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::domain::FORMAT;
use crate::error::{Error, Result};
use crate::sys;

/// Larger than any record of ours. What is larger is not one.
const MAX: u64 = 1 << 20;

#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

/// Reads a record. `None` if there is none.
///
/// # Errors
/// `corrupt` if it is not a file, not JSON, not complete, or of a newer version.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path)(e)),
    };
    let content = match sys::file::read_bounded(file, MAX) {
        Ok(content) => content,
        Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(Error::corrupt(path, e)),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let versioned: Versioned = serde_json::from_slice(&content).map_err(|e| Error::corrupt(path, e))?;
    if versioned.version > FORMAT {
        return Err(Error::Corrupt {
            path: path.to_owned(),
            why: format!("it has format {}, and this spark knows {FORMAT}", versioned.version),
            hint: Some("a newer spark wrote it: upgrade this one".into()),
        });
    }
    serde_json::from_slice(&content).map(Some).map_err(|e| Error::corrupt(path, e))
}

/// The bytes of a record as they are written.
pub fn bytes<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    let mut out = serde_json::to_vec_pretty(record)
        .map_err(|e| Error::Sys { action: "write a record", source: io::Error::other(e) })?;
    out.push(b'\n');
    Ok(out)
}

/// Replaces a record. It survives a crash once this returned.
pub fn replace<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    sys::file::replace(path, &bytes(record)?).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    struct R {
        version: u32,
        a: u32,
    }

    #[test]
    fn what_is_not_a_record_is_corrupt_and_what_is_missing_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        assert!(read::<R>(&path).unwrap().is_none());
        for bad in ["", "{", "[]", "{\"version\":1", "{\"version\":1}", "{\"version\":2,\"a\":1}", "null"] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(read::<R>(&path).unwrap_err().code(), Code::Corrupt, "{bad}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(read::<R>(&path).unwrap_err().code(), Code::Corrupt);
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        replace(&path, &R { version: 1, a: 7 }).unwrap();
        assert_eq!(read::<R>(&path).unwrap().unwrap().a, 7);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
