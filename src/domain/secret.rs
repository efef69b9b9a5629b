//! Secrets by name and reference. A value is never in a record, and so has no type here.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Where the files of secrets are inside.
pub const DIR: &str = "/run/secrets";
/// Largest value, in bytes.
pub const MAX_VALUE: usize = 256 << 10;
/// Largest value as a variable: what execve(2) takes of one string, `NAME=` and its end included.
pub const MAX_STRING: usize = 128 << 10;
/// All values of a spark together, in bytes.
pub const MAX_ALL: usize = 1 << 20;
/// Most secrets that a spark has, and most of a project.
pub const MOST: usize = 100;
const MAX_KEY: usize = 128;
const MAX_REFERENCE: usize = 1024;

/// What a secret is called inside: the name of a variable and of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

impl Key {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = String;
    fn from_str(s: &str) -> Result<Key, String> {
        let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
        let good = s.len() <= MAX_KEY
            && s.bytes().next().is_some_and(letter)
            && s.bytes().all(|b| letter(b) || b.is_ascii_digit());
        match good {
            true => Ok(Key(s.to_owned())),
            // What is refused may be a value, or have one behind it.
            false => Err(format!(
                "{} not a secret's name: use letters, digits and `_`, at most {MAX_KEY}",
                match s.split_once('=') {
                    Some((before, _)) => format!("`{}=…` is", shown(before)),
                    None => "that is".into(),
                }
            )),
        }
    }
}

impl TryFrom<String> for Key {
    type Error = String;
    fn try_from(s: String) -> Result<Key, String> {
        s.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> String {
        key.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Who knows a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// 1Password.
    Op,
    /// The built-in store.
    Age,
    /// A variable of the caller's environment.
    Env,
    /// A file of the host.
    File,
    /// A command of the caller's configuration, by its name there.
    Cmd,
    /// The standard Unix password store.
    Pass,
}

const SCHEMES: [(Scheme, &str); 6] = [
    (Scheme::Op, "op"),
    (Scheme::Age, "age"),
    (Scheme::Env, "env"),
    (Scheme::File, "file"),
    (Scheme::Cmd, "cmd"),
    (Scheme::Pass, "pass"),
];

/// Where a value is: `op://vault/item[/section]/field`, `age://name`, `env://NAME`, `file:///path`, `cmd://name`,
/// `pass://path`. Not the value, and safe to be seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    scheme: Scheme,
    /// All of it.
    text: String,
}

impl Reference {
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What follows `://`.
    pub fn rest(&self) -> &str {
        self.text.split_once("://").map_or("", |(_, rest)| rest)
    }

    /// The reference to a value in the built-in store.
    ///
    /// # Errors
    /// Why that is no name there.
    pub fn stored(name: &str) -> Result<Reference, String> {
        format!("age://{name}").parse()
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(s: &str) -> Result<Reference, String> {
        // What is refused may be a value that somebody took for a reference: it is not repeated.
        let Some((word, rest)) = s.split_once("://") else {
            return Err("that is not a reference: write one like op://vault/item/field, age://name, \
                        env://NAME, file:///path, cmd://name or pass://path"
                .into());
        };
        let Some((scheme, word)) = SCHEMES.iter().find(|(_, w)| *w == word) else {
            return Err("that is not a reference: it begins with none of op://, age://, env://, file://, \
                        cmd:// and pass://"
                .into());
        };
        if s.len() > MAX_REFERENCE {
            return Err(format!("that {word}:// reference is longer than {MAX_REFERENCE} bytes"));
        }
        if s.chars().any(char::is_control) {
            return Err(format!("that {word}:// reference holds a control character"));
        }
        check(*scheme, rest).map_err(|why| format!("`{}` is not a reference: {why}", shown(s)))?;
        Ok(Reference { scheme: *scheme, text: s.to_owned() })
    }
}

/// What each source asks of its references.
fn check(scheme: Scheme, rest: &str) -> Result<(), &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let parts = || rest.split('/');
    match scheme {
        Scheme::Op => {
            let path = rest.split('?').next().unwrap_or_default();
            if !(3..=4).contains(&path.split('/').count()) || path.split('/').any(|p| p.trim().is_empty()) {
                return Err("write op://vault/item/field or op://vault/item/section/field");
            }
            // `op inject` would see the end of the reference, or a variable, in them.
            if rest.contains(['{', '}', '$', '"', '\\']) {
                return Err("use the ids of what has `{`, `}`, `$`, `\"` or `\\` in its name");
            }
        }
        Scheme::Age => {
            if parts().count() > 3
                || !parts().all(|p| !p.is_empty() && !p.starts_with('.') && p.bytes().all(plain))
            {
                return Err("write age://name with letters, digits, `_`, `-`, `.`, and `/` between parts");
            }
        }
        Scheme::Env => {
            rest.parse::<Key>().map_err(|_| "write env://NAME, with the name of a variable")?;
        }
        Scheme::File => {
            if !rest.starts_with('/') {
                return Err("write an absolute path: file:///path");
            }
        }
        Scheme::Cmd => {
            if rest.is_empty() || !rest.bytes().all(plain) {
                return Err("write cmd://name, with the name of a command in your configuration");
            }
        }
        Scheme::Pass => {
            if rest.starts_with(['-', '/']) || parts().any(|p| matches!(p, "" | "." | "..")) {
                return Err("write pass://path, as `pass show` takes it");
            }
        }
    }
    Ok(())
}

impl TryFrom<String> for Reference {
    type Error = String;
    fn try_from(s: String) -> Result<Reference, String> {
        s.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// How a value reaches what runs inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// As a file, and as a variable of every command.
    #[default]
    Both,
    /// As a file in [`DIR`].
    File,
    /// As a variable of every command.
    Env,
}

impl Delivery {
    pub fn is_file(self) -> bool {
        self != Delivery::Env
    }

    pub fn is_env(self) -> bool {
        self != Delivery::File
    }

    fn is_both(&self) -> bool {
        *self == Delivery::Both
    }
}

/// A secret as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Secret {
    #[serde(rename = "ref")]
    pub reference: Reference,
    #[serde(rename = "as", default, skip_serializing_if = "Delivery::is_both")]
    pub delivery: Delivery,
}

/// Secrets, by what they are called inside.
pub type Secrets = BTreeMap<Key, Secret>;

/// `KEY`, `KEY:file` or `KEY:env`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub key: Key,
    pub delivery: Delivery,
}

impl FromStr for Named {
    type Err = String;
    fn from_str(s: &str) -> Result<Named, String> {
        let (key, delivery) = match s.split_once(':') {
            None => (s, Delivery::Both),
            Some((key, "file")) => (key, Delivery::File),
            Some((key, "env")) => (key, Delivery::Env),
            Some(_) => return Err("that is not understood: write KEY, KEY:file or KEY:env".into()),
        };
        Ok(Named { key: key.parse()?, delivery })
    }
}

/// Parses `KEY[:file|:env]=REF`. Of what is wrong behind the `=`, nothing is repeated: it may be a value.
pub fn parse_secret(text: &str) -> Result<(Key, Secret), String> {
    let Some((named, reference)) = text.split_once('=') else {
        return Err("write KEY=REF, such as TOKEN=op://vault/item/field".into());
    };
    let Named { key, delivery } = named.parse()?;
    let reference = reference.parse().map_err(|why| format!("the reference of `{key}`: {why}"))?;
    Ok((key, Secret { reference, delivery }))
}

fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

/// `projects/P/secrets.json`: what all sparks of a project get.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct ProjectSecrets {
    /// [`super::FORMAT`].
    pub version: u32,
    #[serde(default)]
    pub secrets: Secrets,
    /// Fields of a later version of this program, kept as they are.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

impl Default for ProjectSecrets {
    fn default() -> Self {
        ProjectSecrets { version: super::FORMAT, secrets: Secrets::new(), rest: Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_of_every_source_are_told_from_what_is_none() {
        for good in [
            "op://vault/item/field",
            "op://My Vault/item/section/field?attribute=otp",
            "age://shop/TOKEN",
            "env://TOKEN",
            "file:///etc/token",
            "cmd://vault-token",
            "pass://shop/db password",
        ] {
            assert_eq!(good.parse::<Reference>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "hunter2",
            "https://x/y/z",
            "op://vault/item",
            "op://a//b",
            "op://a/b/c/d/e",
            "op://v/i/{{f",
            "op://v/i/$HOME",
            "op://v/i/f\n",
            "op://v/i/f\0",
            "age://../identity",
            "age://.hidden",
            "age://",
            "env://A=B",
            "file://token",
            "cmd://rm -rf",
            "cmd:///bin/sh",
            "pass://--help",
            "pass://../x",
            &format!("file:///{}", "x".repeat(2000)),
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_value_given_for_a_reference_is_not_repeated() {
        let e = parse_secret("TOKEN=hunter2").unwrap_err();
        assert!(e.contains("TOKEN") && !e.contains("hunter2"), "{e}");
        let e = parse_secret("TOKEN=hunter2://swordfish").unwrap_err();
        assert!(!e.contains("hunter2") && !e.contains("swordfish"), "{e}");
        for bad in ["hunter2", "T:hunter2=env://X", "T hunter2=env://X"] {
            assert!(!parse_secret(bad).unwrap_err().contains("hunter2"));
        }
        for bad in ["hunter2!", "T=hunter2", "T:hunter2", "T:file=hunter2"] {
            assert!(!bad.parse::<Named>().unwrap_err().contains("hunter2"));
        }
    }

    #[test]
    fn delivery_is_chosen_behind_the_name() {
        let of = |text| parse_secret(text).map(|(key, secret)| (key.to_string(), secret.delivery));
        assert_eq!(of("A=env://B"), Ok(("A".into(), Delivery::Both)));
        assert_eq!(of("A:file=env://B"), Ok(("A".into(), Delivery::File)));
        assert_eq!(of("A:env=env://B"), Ok(("A".into(), Delivery::Env)));
        assert!(of("A:x=env://B").is_err() && of("1A=env://B").is_err() && of("../A=env://B").is_err());
    }

    #[test]
    fn a_record_holds_the_reference_and_reads_back() {
        let (key, secret) = parse_secret("A:env=age://x").unwrap();
        let text = serde_json::to_string(&Secrets::from([(key, secret.clone())])).unwrap();
        assert_eq!(text, r#"{"A":{"ref":"age://x","as":"env"}}"#);
        assert_eq!(serde_json::from_str::<Secrets>(&text).unwrap().values().next(), Some(&secret));
        assert!(serde_json::from_str::<Secrets>(r#"{"../A":{"ref":"age://x"}}"#).is_err());
        assert!(serde_json::from_str::<Secrets>(r#"{"A":{"ref":"x"}}"#).is_err());
    }
}
