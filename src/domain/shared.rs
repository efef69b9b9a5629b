//! `/spark/bin`, `/spark/all` and `/spark/proj`: who may write them, and where programs in them are found.

use std::str::FromStr;

/// How `/spark/bin`, `/spark/all` and `/spark/proj` are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shared {
    /// `/spark/bin` and `/spark/all`, which all projects have, read-only; `/spark/proj` writable.
    ///
    /// Old versions wrote `rw` into the record of every spark, whether the user had asked for it or not.
    #[default]
    #[serde(alias = "rw")]
    Default,
    /// All three writable: `rw` on a command line, which in a record is an old version's.
    #[serde(rename = "writable")]
    Rw,
    /// All three read-only.
    Ro,
    /// None of them mounted.
    None,
}

impl Shared {
    /// The directories that are mounted, and whether read-only. The names are those below `/spark`.
    pub fn mounts(self) -> &'static [(&'static str, bool)] {
        match self {
            Shared::Default => &[("bin", true), ("all", true), ("proj", false)],
            Shared::Rw => &[("bin", false), ("all", false), ("proj", false)],
            Shared::Ro => &[("bin", true), ("all", true), ("proj", true)],
            Shared::None => &[],
        }
    }
}

impl FromStr for Shared {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "default" => Ok(Shared::Default),
            "rw" => Ok(Shared::Rw),
            "ro" => Ok(Shared::Ro),
            "none" => Ok(Shared::None),
            _ => Err(format!("`{}` is not one of default, rw, ro, none", s.escape_default())),
        }
    }
}

/// Where `/spark/bin` is in `PATH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathOrder {
    /// Before all else: what is there shadows the spark's own programs.
    First,
    Last,
    /// Not at all.
    None,
}

impl PathOrder {
    /// `PATH` with `/spark/bin` where this says.
    pub fn apply(self, path: &str) -> String {
        const BIN: &str = "/spark/bin";
        let mut dirs: Vec<&str> = path.split(':').filter(|dir| *dir != BIN).collect();
        match self {
            PathOrder::First => dirs.insert(0, BIN),
            PathOrder::Last => dirs.push(BIN),
            PathOrder::None => {}
        }
        dirs.join(":")
    }
}

impl FromStr for PathOrder {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "first" => Ok(PathOrder::First),
            "last" => Ok(PathOrder::Last),
            "none" => Ok(PathOrder::None),
            _ => Err(format!("`{}` is not one of first, last, none", s.escape_default())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_old_record_says_of_every_spark_is_no_wish() {
        let read = |text: &str| serde_json::from_str::<Shared>(text).unwrap();
        assert_eq!(read("\"rw\""), Shared::Default);
        for (text, shared) in [("\"ro\"", Shared::Ro), ("\"none\"", Shared::None)] {
            assert_eq!(read(text), shared);
        }
        for shared in [Shared::Default, Shared::Rw, Shared::Ro, Shared::None] {
            assert_eq!(read(&serde_json::to_string(&shared).unwrap()), shared);
        }
    }
}
