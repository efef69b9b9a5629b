//! Where files are: a path of the host, or `spark:path`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use super::name::{InvalidName, SourceRef};

/// A path, and whose it is. Kept as it was written: a `/` or `/.` at its end has a meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A path of the host.
    Host(OsString),
    /// A path inside a spark or one of its snapshots, from its root.
    Inside { source: SourceRef, path: OsString },
}

impl Location {
    /// Reads `path`, `spark:path` or `spark@snapshot:path`. What begins with `/` or `.` is of the host, so a path that
    /// holds a colon can be written `./a:b`.
    ///
    /// # Errors
    /// If what stands before the colon is no name.
    pub fn parse(text: &OsStr) -> Result<Location, InvalidName> {
        let bytes = text.as_bytes();
        match bytes.iter().position(|b| *b == b':') {
            Some(colon) if !bytes.starts_with(b"/") && !bytes.starts_with(b".") => Ok(Location::Inside {
                source: String::from_utf8_lossy(&bytes[..colon]).parse()?,
                path: OsStr::from_bytes(&bytes[colon + 1..]).to_owned(),
            }),
            _ => Ok(Location::Host(text.to_owned())),
        }
    }

    /// The path, without whose it is.
    pub fn path(&self) -> &OsStr {
        match self {
            Location::Host(path) | Location::Inside { path, .. } => path,
        }
    }

    /// The bytes of [`Location::path`].
    pub fn bytes(&self) -> &[u8] {
        self.path().as_bytes()
    }

    /// The spark, if it is one's.
    pub fn spark(&self) -> Option<&SourceRef> {
        match self {
            Location::Host(_) => None,
            Location::Inside { source, .. } => Some(source),
        }
    }

    /// As it was written.
    pub fn written(&self) -> OsString {
        match self {
            Location::Host(path) => path.clone(),
            Location::Inside { source, path } => {
                let mut text = OsString::from(format!("{source}:"));
                text.push(path);
                text
            }
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written().to_string_lossy().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Location, InvalidName> {
        Location::parse(OsStr::new(text))
    }

    #[test]
    fn what_stands_before_a_colon_is_a_spark_unless_it_is_a_path() {
        for host in ["a", "/a:b", "./a:b", "../a:b", ".a:b", "a/b"] {
            assert_eq!(parse(host).unwrap(), Location::Host(host.into()), "{host}");
        }
        for (text, spark, path) in [
            ("web:/etc", "web", "/etc"),
            ("shop/web@before:a:b/.", "shop/web@before", "a:b/."),
            ("a:", "a", ""),
        ] {
            let expected = Location::Inside { source: spark.parse().unwrap(), path: path.into() };
            assert_eq!(parse(text).unwrap(), expected, "{text}");
            assert_eq!(expected.to_string(), text);
        }
        for bad in ["Web:/a", ":a", "a/b/c:d", "web@:x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_may_hold_any_byte() {
        let text = OsStr::from_bytes(b"web:/\xff\n");
        assert_eq!(Location::parse(text).unwrap().path().as_bytes(), b"/\xff\n");
        assert_eq!(Location::parse(text).unwrap().written(), text);
    }
}
