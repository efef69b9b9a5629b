//! Where images of a registry really are: podman's `registries.conf`, by containers-registries.conf(5) in its second
//! version. Mirrors, other locations, registries without TLS and such as are blocked.
//!
//! Files are read as the user who called. Search registries and aliases are not: images have whole names here.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::domain::image::Named;
use crate::error::{Code, Error, Result};
use crate::sys::caller::Caller;

/// Most bytes of one file.
const MOST: u64 = 1 << 20;
const SYSTEM: &str = "/etc/containers";
const NAME: &str = "registries.conf";

/// A place where an image may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) named: Named,
    /// Whether one need not know who answers: no TLS, or by whatever certificate.
    pub(super) insecure: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Written {
    registry: Vec<Table>,
    /// What the first version of the format has instead.
    registries: Option<toml::Table>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Table {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
    #[serde(skip)]
    file: PathBuf,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: PullFrom,
}

/// Which images a mirror is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFrom {
    #[default]
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

/// Where to ask for an image, in this order.
///
/// # Errors
/// `denied` where its registry is blocked; `usage` for a file that is damaged.
pub(super) fn sources(named: &Named) -> Result<Vec<Endpoint>> {
    match find(&tables()?, named)? {
        Some(table) => table.sources(named),
        None => Ok(vec![Endpoint { named: named.clone(), insecure: false }]),
    }
}

/// Where to send an image: to where its name says.
///
/// # Errors
/// As of [`sources`].
pub(super) fn target(named: &Named) -> Result<Endpoint> {
    let insecure = find(&tables()?, named)?.is_some_and(|table| table.insecure);
    Ok(Endpoint { named: named.clone(), insecure })
}

/// All tables. One of a later file replaces those of its prefix.
fn tables() -> Result<Vec<Table>> {
    let caller = Caller::find().map_err(Error::sys("find who calls"))?;
    let own = caller.home.join(".config/containers");
    let mut all: Vec<Table> = Vec::new();
    let mut add = |path: &Path| -> Result<bool> {
        let Some(text) = read(path, &caller)? else { return Ok(false) };
        let tables = parse(&text, path)?;
        all.retain(|had| tables.iter().all(|new| new.prefix != had.prefix));
        all.extend(tables);
        Ok(true)
    };
    match std::env::var_os("CONTAINERS_REGISTRIES_CONF").filter(|path| !path.is_empty()) {
        Some(path) => {
            if !add(Path::new(&path))? {
                return Err(Error::io("read", path)(io::Error::from_raw_os_error(libc::ENOENT)));
            }
        }
        None => _ = add(&own.join(NAME))? || add(&Path::new(SYSTEM).join(NAME))?,
    }
    for dir in [Path::new(SYSTEM), &own] {
        for path in parts(&dir.join(format!("{NAME}.d")), &caller)? {
            add(&path)?;
        }
    }
    Ok(all)
}

/// The files of a directory, in the order of their names.
fn parts(dir: &Path, caller: &Caller) -> Result<Vec<PathBuf>> {
    let listed = caller.act(|| fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect());
    let mut all: Vec<PathBuf> = match listed {
        Err(e) if is_missing(&e) => Vec::new(),
        listed => listed.map_err(Error::io("read", dir))?,
    };
    all.retain(|path| path.extension().is_some_and(|e| e == "conf"));
    all.sort();
    Ok(all)
}

fn is_missing(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn read(path: &Path, caller: &Caller) -> Result<Option<String>> {
    let text = caller.act(|| {
        let file = File::open(path)?;
        let mut text = String::new();
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        file.take(MOST + 1).read_to_string(&mut text)?;
        // Half of it might not say any more whom it blocks.
        if text.len() as u64 > MOST { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
    });
    match text {
        Ok(text) => Ok(Some(text)),
        Err(e) if is_missing(&e) => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

fn parse(text: &str, path: &Path) -> Result<Vec<Table>> {
    let refused = |why: String| Error::Usage {
        message: format!("{}: {why}", path.display()),
        hint: Some("see containers-registries.conf(5)".into()),
    };
    let written: Written = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        refused(format!("line {line}: {}", e.message()))
    })?;
    if written.registries.is_some() {
        return Err(refused("it is in the first version of its format, which is not supported".into()));
    }
    let mut tables = written.registry;
    for table in &mut tables {
        table.file = path.to_owned();
        table.check().map_err(refused)?;
    }
    Ok(tables)
}

impl Table {
    fn check(&mut self) -> std::result::Result<(), String> {
        let plain = |text: &str| text.trim_end_matches('/').to_owned();
        (self.prefix, self.location) = (plain(&self.prefix), plain(&self.location));
        if self.prefix.is_empty() {
            self.prefix.clone_from(&self.location);
        }
        if self.prefix.is_empty() {
            return Err("a [[registry]] has neither `prefix` nor `location`".into());
        }
        let shown = self.prefix.escape_default();
        if self.location.is_empty() && !self.prefix.starts_with("*.") {
            return Err(format!("[[registry]] `{shown}` has no `location`"));
        }
        for mirror in &mut self.mirror {
            mirror.location = plain(&mirror.location);
            if mirror.location.is_empty() {
                return Err(format!("a mirror of `{shown}` has no `location`"));
            }
            if self.mirror_by_digest_only && mirror.pull_from_mirror != PullFrom::All {
                return Err(format!(
                    "`pull-from-mirror` is not for `{shown}`, which has `mirror-by-digest-only`"
                ));
            }
        }
        Ok(())
    }

    fn sources(&self, named: &Named) -> Result<Vec<Endpoint>> {
        let digested = named.digest.is_some();
        let asked = |mirror: &&Mirror| match mirror.pull_from_mirror {
            PullFrom::All => digested || !self.mirror_by_digest_only,
            PullFrom::DigestOnly => digested,
            PullFrom::TagOnly => !digested,
        };
        let mirrors = self.mirror.iter().filter(asked).map(|mirror| (&mirror.location, mirror.insecure));
        mirrors
            .chain([(&self.location, self.insecure)])
            .map(|(location, insecure)| Ok(Endpoint { named: self.rewritten(named, location)?, insecure }))
            .collect()
    }

    /// An image at another place: that stands for the prefix.
    fn rewritten(&self, named: &Named, location: &str) -> Result<Named> {
        let text = named.to_string();
        if location.is_empty() {
            return Ok(named.clone());
        }
        let rest = matched(&text, &self.prefix).map_or("", |length| &text[length..]);
        format!("{location}{rest}").parse().map_err(|why| Error::Usage {
            message: format!("{} sends {text} to what is no image: {why}", self.file.display()),
            hint: None,
        })
    }
}

/// The table of an image, if there is one: that with the longest prefix.
fn find<'a>(tables: &'a [Table], named: &Named) -> Result<Option<&'a Table>> {
    let text = named.to_string();
    let fitting = tables.iter().filter(|table| matched(&text, &table.prefix).is_some());
    let found = fitting.max_by_key(|table| table.prefix.len());
    match found {
        Some(table) if table.blocked => Err(Error::Registry {
            action: "use",
            what: text,
            why: format!("`{}` is blocked in {}", table.prefix.escape_default(), table.file.display()),
            code: Code::Denied,
            hint: None,
        }),
        found => Ok(found),
    }
}

/// How much of an image's name a prefix stands for, if it fits.
fn matched(text: &str, prefix: &str) -> Option<usize> {
    let host = text.split('/').next().unwrap_or_default();
    if let Some(domain) = prefix.strip_prefix('*') {
        let end = host.rfind(':').unwrap_or(host.len());
        let end = if domain.contains(':') { host.len() } else { end };
        return host[..end].ends_with(domain).then_some(end);
    }
    let rest = text.strip_prefix(prefix)?;
    // After a host alone, `:` begins a port, and that is another registry.
    let ends: &[char] = if prefix.contains('/') { &['/', ':', '@'] } else { &['/'] };
    (rest.is_empty() || rest.starts_with(ends)).then_some(prefix.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const CONF: &str = r#"
        unqualified-search-registries = ["h.x"]
        short-name-mode = "enforcing"

        [[registry]]
        prefix = "h.x/foo"
        location = "inside.x/bar"
        [[registry.mirror]]
        location = "m.x/mirror-for-foo"
        [[registry.mirror]]
        location = "t.x"
        insecure = true
        pull-from-mirror = "tag-only"
        [[registry.mirror]]
        location = "d.x/foo"
        pull-from-mirror = "digest-only"

        [[registry]]
        location = "h.x"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "m.x"

        [[registry]]
        prefix = "*.wild.x"
        insecure = true

        [[registry]]
        location = "h.x/bad"
        blocked = true
    "#;

    fn sources(text: &str) -> Result<Vec<String>> {
        let (tables, named) = (parse(CONF, Path::new("/f.conf"))?, text.parse::<Named>().unwrap());
        let all = match find(&tables, &named)? {
            Some(table) => table.sources(&named)?,
            None => Vec::new(),
        };
        Ok(all.iter().map(|e| format!("{}{}", e.named, if e.insecure { " insecure" } else { "" })).collect())
    }

    #[test]
    fn the_longest_prefix_says_where_an_image_is() {
        let d = format!("sha256:{}", "a".repeat(64));
        for (image, places) in [
            (
                "h.x/foo/app:1".to_owned(),
                vec![
                    "m.x/mirror-for-foo/app:1".to_owned(),
                    "t.x/app:1 insecure".into(),
                    "inside.x/bar/app:1".into(),
                ],
            ),
            (
                format!("h.x/foo@{d}"),
                vec![format!("m.x/mirror-for-foo@{d}"), format!("d.x/foo@{d}"), format!("inside.x/bar@{d}")],
            ),
            ("h.x/food:1".into(), vec!["h.x/food:1".into()]),
            (format!("h.x/app@{d}"), vec![format!("m.x/app@{d}"), format!("h.x/app@{d}")]),
            ("h.x:5000/app:1".into(), vec![]),
            ("a.b.wild.x:5000/app:1".into(), vec!["a.b.wild.x:5000/app:1 insecure".into()]),
            ("wild.x/app:1".into(), vec![]),
            ("other.x/h.x/foo:1".into(), vec![]),
        ] {
            assert_eq!(sources(&image).unwrap(), places, "{image}");
        }
        // What is left of the name has to be one.
        assert!(sources("h.x/foo:1").unwrap_err().to_string().contains("/f.conf sends h.x/foo:1 to"));
        let e = sources("h.x/bad/app:1").unwrap_err();
        assert_eq!(e.code(), Code::Denied);
        assert!(e.to_string().contains("`h.x/bad` is blocked in /f.conf"), "{e}");
    }

    #[test]
    fn a_file_that_says_nothing_that_can_be_done_is_refused_by_its_name() {
        for (text, why) in [
            ("[[registry]]\ninsecure = 1\n", "line 2"),
            ("[[registry]]\n", "neither"),
            ("[[registry]]\nprefix = \"h.x\"\n", "no `location`"),
            ("[[registry]]\nlocation = \"h.x\"\n[[registry.mirror]]\n", "no `location`"),
            ("[registries.search]\nregistries = []\n", "first version"),
        ] {
            let message = parse(text, Path::new("/f.conf")).unwrap_err().to_string();
            assert!(message.starts_with("/f.conf: ") && message.contains(why), "{message}");
        }
    }
}
