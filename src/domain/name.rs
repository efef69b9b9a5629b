//! Names of sparks, bases, projects and volumes, and references such as `project/name`.

use std::fmt;
use std::str::FromStr;

/// Longest name, in bytes.
pub const MAX: usize = 63;

/// A name: `[a-z0-9][a-z0-9-]{0,62}`, not ending in `-`. Safe as a file name, a host name and a table cell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}`{shown}` is not a name: {why}")]
pub struct InvalidName {
    /// Where it stands, with a colon and a blank behind, or nothing.
    place: String,
    shown: String,
    why: &'static str,
    near: Option<String>,
}

/// A text as a message shows it.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

impl InvalidName {
    /// Says to which option it was given, and in which value if it is a part of one.
    pub fn given(self, option: Option<&str>, value: &str) -> InvalidName {
        let value = Some(shown(value)).filter(|value| *value != self.shown).map(|value| format!("`{value}`"));
        let words: Vec<_> = option.map(str::to_owned).into_iter().chain(value).collect();
        let place = if words.is_empty() { String::new() } else { words.join(" ") + ": " };
        InvalidName { place, ..self }
    }

    /// Advice, with the nearest valid name where there is one.
    pub fn hint(&self) -> String {
        match &self.near {
            Some(near) => {
                format!("try `{near}`: names are lower-case letters, digits and `-`, at most {MAX}")
            }
            None => format!("names are lower-case letters, digits and `-`, at most {MAX}"),
        }
    }
}

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks that a new spark can have this name. A spark that has it already keeps it.
    ///
    /// # Errors
    /// If programs take the name for the machine that they run on, or for the host: it stands in every `/etc/hosts`.
    pub fn check_for_spark(&self) -> Result<(), InvalidName> {
        let is_reserved = ["localhost", "ip6-"].iter().any(|start| self.0.starts_with(start))
            || ["broadcasthost", "host"].contains(&self.as_str());
        if !is_reserved {
            return Ok(());
        }
        let why = "it means the machine itself, or its host";
        let near = Name::nearest(&format!("my-{}", self.0)).map(String::from);
        Err(InvalidName { place: String::new(), shown: self.0.clone(), why, near })
    }

    /// Makes a name of any text by replacing what is not allowed, or nothing if nothing is left.
    pub fn nearest(text: &str) -> Option<Name> {
        let mut out = String::with_capacity(text.len().min(MAX));
        for c in text.chars().map(|c| c.to_ascii_lowercase()) {
            let c = if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
            if out.len() == MAX || (c == '-' && (out.is_empty() || out.ends_with('-'))) {
                continue;
            }
            out.push(c);
        }
        let trimmed = out.trim_end_matches('-');
        (!trimmed.is_empty()).then(|| Name(trimmed.to_owned()))
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        let why = if s.is_empty() {
            "it is empty"
        } else if s.len() > MAX {
            "it is longer than 63 characters"
        } else if s.starts_with('-') {
            "it begins with `-`"
        } else if s.ends_with('-') {
            "it ends with `-`"
        } else if s.bytes().any(|b| b.is_ascii_uppercase()) {
            "it has upper-case letters"
        } else if s.bytes().any(|b| !(b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')) {
            "it has a character that is not allowed"
        } else {
            return Ok(Name(s.to_owned()));
        };
        let near = Name::nearest(s).map(String::from);
        Err(InvalidName { place: String::new(), shown: shown(s), why, near })
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Self, InvalidName> {
        s.parse()
    }
}

impl From<Name> for String {
    fn from(n: Name) -> String {
        n.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<std::path::Path> for Name {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

/// A spark as the user named it: `name`, or `project/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparkRef {
    /// The project, where one was given.
    pub project: Option<Name>,
    /// The spark.
    pub name: Name,
}

impl FromStr for SparkRef {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        Ok(match s.split_once('/') {
            Some((project, name)) => SparkRef { project: Some(project.parse()?), name: name.parse()? },
            None => SparkRef { project: None, name: s.parse()? },
        })
    }
}

impl fmt::Display for SparkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.project {
            Some(project) => write!(f, "{project}/{}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// A spark, or one of its snapshots: `name`, `project/name`, `name@snapshot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRef {
    pub spark: SparkRef,
    /// The snapshot; the spark as it is now if none.
    pub snapshot: Option<Name>,
}

impl FromStr for SourceRef {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        Ok(match s.split_once('@') {
            Some((spark, snapshot)) => SourceRef { spark: spark.parse()?, snapshot: Some(snapshot.parse()?) },
            None => SourceRef { spark: s.parse()?, snapshot: None },
        })
    }
}

impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            Some(snapshot) => write!(f, "{}@{snapshot}", self.spark),
            None => self.spark.fmt(f),
        }
    }
}

/// A spark to run something in: a named one, or `-` for one that lives as long as the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `-`
    Ephemeral,
    /// `name` or `project/name`
    Named(SparkRef),
}

impl FromStr for Target {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        if s == "-" { Ok(Target::Ephemeral) } else { s.parse().map(Target::Named) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_names_are_refused_each_with_its_reason() {
        let long = "a".repeat(64);
        for (text, why) in [
            ("", "empty"),
            ("a/b", "not allowed"),
            ("..", "not allowed"),
            ("a\0b", "not allowed"),
            (long.as_str(), "longer"),
            ("Web", "upper-case"),
            ("-web", "begins"),
            ("web-", "ends"),
            ("wäb", "not allowed"),
            ("a b", "not allowed"),
        ] {
            let e = text.parse::<Name>().unwrap_err();
            assert!(e.to_string().contains(why), "{text:?}: {e}");
        }
        assert!("a".repeat(63).parse::<Name>().is_ok());
        assert!("0".parse::<Name>().is_ok());
    }

    #[test]
    fn what_means_the_machine_itself_is_no_name_of_a_spark() {
        for text in
            ["localhost", "localhost4", "localhost-1", "ip6-localhost", "ip6-x", "broadcasthost", "host"]
        {
            let e = text.parse::<Name>().unwrap().check_for_spark().unwrap_err();
            assert!(e.hint().contains(&format!("my-{text}")), "{text}: {}", e.hint());
        }
        for text in ["hosts", "host-1", "my-localhost", "ip6", "local"] {
            text.parse::<Name>().unwrap().check_for_spark().unwrap();
        }
    }

    #[test]
    fn control_characters_never_reach_the_message() {
        let e = "a\x1b[31m".parse::<Name>().unwrap_err();
        assert!(!e.to_string().contains('\x1b'));
    }

    #[test]
    fn the_nearest_name_is_itself_a_name() {
        for text in ["My Repo_2", "..web..", "Ünïcode", &"x".repeat(100)] {
            let near = Name::nearest(text).unwrap();
            assert_eq!(near.as_str().parse::<Name>().unwrap(), near);
        }
        assert_eq!(Name::nearest("///"), None);
    }

    #[test]
    fn a_reference_may_name_its_project() {
        let r: SparkRef = "shop/web".parse().unwrap();
        assert_eq!((r.project.unwrap().as_str(), r.name.as_str()), ("shop", "web"));
        assert!("a/b/c".parse::<SparkRef>().is_err());
        assert_eq!("-".parse::<Target>().unwrap(), Target::Ephemeral);
        let r: SourceRef = "shop/web@before".parse().unwrap();
        assert_eq!((r.spark.to_string(), r.to_string()), ("shop/web".into(), "shop/web@before".into()));
        assert!("web@".parse::<SourceRef>().is_err() && "web@a@b".parse::<SourceRef>().is_err());
    }
}
