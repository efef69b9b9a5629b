//! A data volume: a named directory of its own, which outlives the sparks that it is attached to.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::name::Name;
use super::options::check_place;
use super::spark::{Id, Time};

/// `projects/P/data/V/volume.json`. The volume's name is its directory's; who has it attached stands in the sparks'
/// records.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct VolumeRecord {
    /// [`super::FORMAT`].
    pub version: u32,
    pub id: Id,
    pub created: Time,
    /// The volume that it was copied from, by the name that it had then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Name>,
    /// Fields of a later version of this program, kept as they are.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// A volume of the spark's own project at a path inside: `VOLUME:PATH[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attached {
    pub volume: Name,
    pub path: PathBuf,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ro: bool,
}

impl Attached {
    /// Whether a spark cannot have both: one place holds one volume, and one volume is at one place.
    pub fn replaces(&self, other: &Attached) -> bool {
        self.volume == other.volume || self.path == other.path
    }
}

impl FromStr for Attached {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (volume, rest) = s
            .split_once(':')
            .ok_or_else(|| format!("`{}` has no path: write VOLUME:PATH[:ro]", s.escape_default()))?;
        if volume.starts_with(['/', '.']) {
            let shown = volume.escape_default();
            return Err(format!(
                "`{shown}` is a path of the host: mount it with `--mount`, or name a volume"
            ));
        }
        let volume = volume.parse::<Name>().map_err(|e| e.to_string())?;
        let (path, ro) = match rest.rsplit_once(':') {
            Some((path, "ro")) => (path, true),
            Some((path, "rw")) => (path, false),
            Some((_, other)) => return Err(format!("`{}` is neither `ro` nor `rw`", other.escape_default())),
            None => (rest, false),
        };
        Ok(Attached { volume, path: parse_path(path)?, ro })
    }
}

/// What becomes of a volume in a snapshot or a fork of a spark that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Data {
    /// The very same volume.
    Share,
    /// A copy, of the same instant as the root.
    Copy,
    None,
}

impl FromStr for Data {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "share" => Ok(Data::Share),
            "copy" => Ok(Data::Copy),
            "none" => Ok(Data::None),
            _ => Err(format!("`{}` is not one of share, copy, none", s.escape_default())),
        }
    }
}

/// Checks a path inside at which a volume can be.
pub fn parse_path(text: &str) -> Result<PathBuf, String> {
    if text.contains('\0') {
        return Err("a path cannot hold a NUL".into());
    }
    let path: PathBuf = text.into();
    check_place("path", &path)?;
    // Components leave out what means nothing, so that one place has one spelling.
    Ok(path.components().collect())
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.volume, self.path.display(), if self.ro { ":ro" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_reads_as_it_is_written_and_stays_inside() {
        for (text, shown) in
            [("v:/data", "v:/data"), ("v:/a/./b/:ro", "v:/a/b:ro"), ("v-1:/data:rw", "v-1:/data")]
        {
            assert_eq!(text.parse::<Attached>().unwrap().to_string(), shown);
        }
        for bad in [
            "v",
            "v:",
            "v:data",
            "v:/",
            "v:/a/..",
            "v:/proc/x",
            "v:/dev",
            "V:/a",
            "/srv:/a",
            "./x:/a",
            ":/a",
            "v:/a:x",
            "v:/a\0b",
        ] {
            assert!(bad.parse::<Attached>().is_err(), "{bad}");
        }
    }
}
