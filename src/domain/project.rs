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
    #[serde(default, skip_serializing_if = "Option::is_none", with = "any_path")]
    pub git: Option<PathBuf>,
    /// Fields of a later version of this program, kept as they are.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// Absolute paths in JSON: as they are where they are UTF-8, else as `hex:` and their bytes, so that no two
/// paths become one. An absolute path never begins with `hex:`.
mod any_path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(path: &Option<PathBuf>, s: S) -> Result<S::Ok, S::Error> {
        match path {
            None => s.serialize_none(),
            Some(path) => match path.to_str() {
                Some(text) => s.serialize_some(text),
                None => {
                    let hex: String =
                        path.as_os_str().as_bytes().iter().map(|b| format!("{b:02x}")).collect();
                    s.serialize_some(&format!("hex:{hex}"))
                }
            },
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<PathBuf>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else {
            return Ok(None);
        };
        let Some(hex) = text.strip_prefix("hex:") else {
            return Ok(Some(text.into()));
        };
        let bytes: Option<Vec<u8>> = hex
            .as_bytes()
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok()))
            .collect();
        let bytes = bytes.ok_or_else(|| D::Error::custom("a path in hexadecimal that is none"))?;
        Ok(Some(OsString::from_vec(bytes).into()))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_path_of_any_bytes_survives_the_record() {
        for bytes in [&b"/src/shop/.git"[..], b"/src/\xff\xfe/.git", "/src/🦀/.git".as_bytes()] {
            let git = PathBuf::from(OsStr::from_bytes(bytes));
            let record = ProjectRecord {
                version: 1,
                id: Id::generate(),
                created: Time::UNIX_EPOCH,
                git: Some(git.clone()),
                rest: Default::default(),
            };
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<ProjectRecord>(&text).unwrap().git, Some(git));
        }
    }

    #[test]
    fn a_record_without_a_repository_reads_and_bad_hexadecimal_does_not() {
        let id = Id::generate();
        let text = format!(r#"{{"version":1,"id":"{id}","created":"2026-01-01T00:00:00Z""#);
        assert_eq!(serde_json::from_str::<ProjectRecord>(&format!("{text}}}")).unwrap().git, None);
        let bad = format!(r#"{text},"git":"hex:zz"}}"#);
        assert!(serde_json::from_str::<ProjectRecord>(&bad).is_err());
    }
}
