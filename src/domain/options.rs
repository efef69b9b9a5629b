//! What a user may choose about a spark when making it. Stored in its record.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::egress::Egress;
use super::host_entry::{self, HostEntry};
use super::image::FromImage;
use super::limits::Limits;
use super::port::{self, Published};
use super::secret::{Key, Secret, Secrets};
use super::shared::{PathOrder, Shared};
use super::spark::Labels;
use super::volume::{Attached, Data};

/// The options of `spark create`.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct SparkOptions {
    /// Environment of every command, over the bundle's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Directories of the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<BindMount>,
    /// Data volumes of the spark's project.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Attached>,
    pub network: Network,
    /// Ports of the host that lead to it. Not inherited.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Published>,
    /// Those of them that were chosen because they were free, and not named: if one is taken at a start, another is chosen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chosen_ports: Vec<Published>,
    /// What it may reach beyond its project; what the project says if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Whether it reaches the host's own services and link-local addresses.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_host: bool,
    /// Addresses for names, in its `/etc/hosts`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add_host: Vec<HostEntry>,
    pub limits: Limits,
    /// `name`, `uid`, `name:group` or `uid:gid`; root if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's home if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<PathBuf>,
    /// The spark's name if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The bundle template; `default` if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    pub shared: Shared,
    /// A repository that it is made with a clone of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clone: Option<CloneOf>,
    /// Seconds without a process after which it ends by itself; never if 0 or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_stop: Option<u32>,
    /// Where `/spark/bin` is in `PATH`; last if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathOrder>,
    /// The image that its files began as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<FromImage>,
    /// Whether each start runs what the image runs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub run: bool,
    /// References to secrets of its own; never their values.
    #[serde(skip_serializing_if = "Secrets::is_empty")]
    pub secrets: Secrets,
}

/// A clone inside of a repository of the host.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CloneOf {
    /// The directory of the host that the repository is around: its work tree, or a bare repository.
    pub source: PathBuf,
    /// The repository's common git directory, which branches are fetched back into. Empty until a spark is made.
    #[serde(default)]
    pub repository: PathBuf,
    /// Where the clone is inside. Empty until a spark is made.
    #[serde(default)]
    pub path: PathBuf,
    /// Whether uncommitted work was cloned too.
    #[serde(default)]
    pub dirty: bool,
}

/// The template that `--hardened` chooses.
pub const HARDENED: &str = "hardened";

impl SparkOptions {
    /// How the shared directories are mounted. A hardened spark has none of them, whatever its record says.
    pub fn shared_in_effect(&self) -> Shared {
        if self.bundle.as_deref() == Some(HARDENED) { Shared::None } else { self.shared }
    }

    /// Fails for what no command line would have taken: they come from elsewhere.
    pub fn check(&self) -> Result<(), String> {
        for (key, value) in &self.env {
            same_key(key, parse_env(&format!("{key}={value}"))?)?;
        }
        for (key, value) in &self.labels {
            same_key(key, parse_label(&format!("{key}={value}"))?)?;
        }
        self.limits.check()?;
        self.hostname.as_deref().map(parse_hostname).transpose()?;
        if let Some(dir) = &self.workdir {
            parse_inside(&dir.to_string_lossy())?;
        }
        self.user.as_deref().map(parse_user).transpose()?;
        Ok(())
    }
}

/// Checks a user of a spark, as far as that can be done without its files.
pub fn parse_user(user: &str) -> Result<String, String> {
    let parts = user.split(':').count();
    if user.is_empty() || parts > 2 || user.len() > 256 || user.chars().any(char::is_control) {
        return Err(format!(
            "`{}` is not a user: write a name or a number, or USER:GROUP",
            user.escape_default()
        ));
    }
    Ok(user.to_owned())
}

/// Fails for a key that holds the sign which ends keys.
fn same_key(key: &str, parsed: (String, String)) -> Result<(), String> {
    if parsed.0 == key { Ok(()) } else { Err(format!("`{}` is not a key", key.escape_default())) }
}

/// Options that were given on a command line: laid over those that a new spark inherits.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    pub env: Vec<(String, String)>,
    pub mounts: Vec<BindMount>,
    pub volumes: Vec<Attached>,
    /// What becomes of the volumes of the spark that it is made from.
    pub data: Option<Data>,
    pub network: Option<Network>,
    pub ports: Vec<Published>,
    /// Those of them that were chosen, and not named.
    pub chosen_ports: Vec<Published>,
    pub egress: Option<Egress>,
    pub allow_host: bool,
    pub add_host: Vec<HostEntry>,
    pub limits: Limits,
    pub user: Option<String>,
    pub workdir: Option<PathBuf>,
    pub hostname: Option<String>,
    pub labels: Labels,
    pub bundle: Option<String>,
    pub shared: Option<Shared>,
    /// A repository to put a clone of into the new spark.
    pub clone: Option<CloneOf>,
    /// Seconds; 0 is never.
    pub idle_stop: Option<u32>,
    pub path: Option<PathOrder>,
    /// Whether each start runs what the image runs.
    pub run: bool,
    /// Whether each port that the image exposes gets one of the host's.
    pub publish_exposed: bool,
    pub secrets: Vec<(Key, Secret)>,
}

impl Changes {
    /// These, over what is chosen where a command line says nothing: single things replace, environment, secrets, labels,
    /// ports, mounts and volumes add up, by key and by place.
    pub fn under(self, mut defaults: Changes) -> Changes {
        defaults.secrets.extend(self.secrets);
        defaults.env.extend(self.env);
        defaults.mounts.retain(|had| self.mounts.iter().all(|new| new.dst != had.dst));
        defaults.mounts.extend(self.mounts);
        defaults.volumes.retain(|had| self.volumes.iter().all(|new| !new.replaces(had)));
        defaults.volumes.extend(self.volumes);
        defaults.labels.extend(self.labels);
        defaults.ports.extend(self.ports);
        Changes {
            data: self.data.or(defaults.data),
            network: self.network.or(defaults.network),
            egress: self.egress.or(defaults.egress),
            allow_host: self.allow_host || defaults.allow_host,
            add_host: host_entry::over(self.add_host, defaults.add_host),
            limits: self.limits.over(defaults.limits),
            user: self.user.or(defaults.user),
            workdir: self.workdir.or(defaults.workdir),
            hostname: self.hostname.or(defaults.hostname),
            bundle: self.bundle.or(defaults.bundle),
            shared: self.shared.or(defaults.shared),
            clone: self.clone.or(defaults.clone),
            idle_stop: self.idle_stop.or(defaults.idle_stop),
            path: self.path.or(defaults.path),
            run: self.run || defaults.run,
            publish_exposed: self.publish_exposed || defaults.publish_exposed,
            env: defaults.env,
            mounts: defaults.mounts,
            volumes: defaults.volumes,
            labels: defaults.labels,
            ports: defaults.ports,
            chosen_ports: defaults.chosen_ports,
            secrets: defaults.secrets,
        }
    }

    /// Fails for what contradicts itself in a spark that is made with these from one that had `old`.
    pub fn check_over(&self, old: &SparkOptions) -> Result<(), String> {
        let bundle = self.bundle.as_deref().or(old.bundle.as_deref());
        if bundle == Some(HARDENED) && self.shared.is_some() {
            return Err("a hardened spark has no shared directories: leave out `--shared`".into());
        }
        let network = self.network.unwrap_or(old.network);
        match port::ranges(&self.ports).first() {
            Some(port) if network != Network::Project => Err(format!(
                "port `{port}` cannot be published with `--network {network}`: only sparks in their project's network have published ports"
            )),
            _ => Ok(()),
        }
    }

    /// The options of a spark that is made with these from one that had `old`. A host name is not inherited, since two
    /// sparks of one name would be hard to tell apart, and neither are ports, which only one of them can have.
    pub fn over(self, mut old: SparkOptions) -> SparkOptions {
        old.env.extend(self.env);
        old.mounts.retain(|had| self.mounts.iter().all(|new| new.dst != had.dst));
        old.mounts.extend(self.mounts);
        old.volumes.retain(|had| self.volumes.iter().all(|new| !new.replaces(had)));
        old.volumes.extend(self.volumes);
        old.labels.extend(self.labels);
        old.secrets.extend(self.secrets);
        SparkOptions {
            network: self.network.unwrap_or(old.network),
            ports: self.ports,
            chosen_ports: self.chosen_ports,
            egress: self.egress.or(old.egress),
            allow_host: self.allow_host || old.allow_host,
            add_host: host_entry::over(self.add_host, old.add_host),
            limits: self.limits.over(old.limits),
            user: self.user.or(old.user),
            workdir: self.workdir.or(old.workdir),
            hostname: self.hostname,
            bundle: self.bundle.or(old.bundle),
            shared: self.shared.unwrap_or(old.shared),
            clone: self.clone.or(old.clone),
            idle_stop: self.idle_stop.or(old.idle_stop),
            path: self.path.or(old.path),
            run: self.run || old.run,
            ..old
        }
    }
}

/// What a spark sees of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Its project's: the other sparks of it, and what is beyond the host.
    #[default]
    Project,
    /// The host's own.
    Host,
    /// Only a loopback device.
    None,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Network::Project => "project",
            Network::Host => "host",
            Network::None => "none",
        })
    }
}

impl FromStr for Network {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "host" => Ok(Network::Host),
            "none" => Ok(Network::None),
            "project" => Ok(Network::Project),
            _ => Err(format!("`{s}` is not a network: use `project`, `host` or `none`")),
        }
    }
}

/// A directory or file of the host, mounted into a spark: `type=bind,src=/a,dst=/b[,ro]`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BindMount {
    pub src: PathBuf,
    pub dst: PathBuf,
    #[serde(default)]
    pub ro: bool,
}

impl FromStr for BindMount {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (mut src, mut dst, mut ro) = (None, None, false);
        for part in s.split(',') {
            match part.split_once('=').unwrap_or((part, "")) {
                ("type", "bind") => {}
                ("type", other) => return Err(format!("mount type `{other}` is not known: only `bind` is")),
                ("src" | "source", path) => src = Some(PathBuf::from(path)),
                ("dst" | "destination" | "target", path) => dst = Some(PathBuf::from(path)),
                ("ro" | "readonly", "" | "true") => ro = true,
                ("rw", "") => ro = false,
                _ => return Err(format!("`{part}` is not understood: write type=bind,src=DIR,dst=DIR[,ro]")),
            }
        }
        let (Some(src), Some(dst)) = (src, dst) else {
            return Err(format!("`{s}` needs src and dst: write type=bind,src=DIR,dst=DIR[,ro]"));
        };
        check_place("dst", &dst)?;
        Ok(BindMount { src, dst, ro })
    }
}

/// Checks that something can be mounted at a path inside. `what` is how the user calls the path.
pub fn check_place(what: &str, path: &Path) -> Result<(), String> {
    let shown = path.display().to_string();
    let shown = shown.escape_default();
    if !path.is_absolute() || path.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
        return Err(format!("{what} `{shown}` has to be an absolute path without `..`"));
    }
    if path == Path::new("/") || ["/dev", "/proc", "/sys"].iter().any(|own| path.starts_with(own)) {
        return Err(format!(
            "{what} `{shown}` is the spark's own: choose a place outside of /dev, /proc and /sys"
        ));
    }
    Ok(())
}

/// Parses `K=V`; a bare `K` is refused with a way out.
pub fn parse_env(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if valid_key(key) => {
            if value.contains('\0') {
                return Err(format!("the value of `{key}` holds a NUL"));
            }
            Ok((key.to_owned(), value.to_owned()))
        }
        Some(("", _)) => Err("`=…` has no name: write KEY=VALUE".into()),
        Some((key, _)) => Err(format!(
            "`{}` is not a variable's name: it has no blanks and does not begin with a digit",
            key.escape_default()
        )),
        None => Err(format!("`{}` has no value: write KEY=VALUE", text.escape_default())),
    }
}

fn valid_key(key: &str) -> bool {
    !key.is_empty()
        && !key.as_bytes()[0].is_ascii_digit()
        && key.bytes().all(|b| b.is_ascii_graphic() && b != b'=')
}

/// Parses a label, `KEY=VALUE`.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !text.chars().any(char::is_control) => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err(format!("`{}` is not a label: write KEY=VALUE", text.escape_default())),
    }
}

/// Parses an environment file: `KEY=VALUE` lines, blank lines and `#` comments. Errors carry the line. A byte-order mark,
/// as editors of Windows put at the start, is skipped.
pub fn parse_env_file(text: &str) -> Result<Vec<(String, String)>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut out = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        out.push(parse_env(line).map_err(|e| format!("line {}: {e}", number + 1))?);
    }
    Ok(out)
}

/// Checks a host name: RFC 1123 labels, 64 bytes at most, as `sethostname(2)` takes it.
pub fn parse_hostname(text: &str) -> Result<String, String> {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if text.len() <= 64 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{}` is not a host name: use letters, digits, `-` and `.`, at most 64",
            text.escape_default()
        ))
    }
}

/// Checks an absolute path inside a spark.
pub fn parse_inside(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') && !text.contains('\0') {
        Ok(text.into())
    } else {
        Err(format!("`{}` has to be an absolute path", text.escape_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_needs_both_ends_and_stays_inside() {
        let m: BindMount = "type=bind,src=/a,dst=/b,ro".parse().unwrap();
        assert_eq!(m, BindMount { src: "/a".into(), dst: "/b".into(), ro: true });
        for bad in [
            "src=/a",
            "dst=/b",
            "type=tmpfs,dst=/a",
            "src=/a,dst=b",
            "src=/a,dst=/x/../..",
            "src=/a,dst=/",
            "src=/a,dst=/proc/1",
            "what",
        ] {
            assert!(bad.parse::<BindMount>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_given_wins_over_what_is_inherited_and_a_host_name_is_not() {
        let mount = |src: &str, dst: &str| BindMount { src: src.into(), dst: dst.into(), ro: false };
        let old = SparkOptions {
            env: [("A".into(), "old".into()), ("B".into(), "old".into())].into(),
            mounts: vec![mount("/a", "/x"), mount("/b", "/y")],
            hostname: Some("old".into()),
            user: Some("u".into()),
            ..Default::default()
        };
        let new = Changes {
            env: vec![("A".into(), "new".into())],
            mounts: vec![mount("/c", "/y")],
            ..Default::default()
        }
        .over(old);
        assert_eq!((new.env["A"].as_str(), new.env["B"].as_str()), ("new", "old"));
        assert_eq!(new.mounts, [mount("/a", "/x"), mount("/c", "/y")]);
        assert_eq!((new.hostname, new.user.as_deref()), (None, Some("u")));
    }

    #[test]
    fn an_environment_file_names_the_bad_line() {
        let ok = parse_env_file("# c\n\nA=1\nexport B=x=y\n").unwrap();
        assert_eq!(ok, [("A".into(), "1".into()), ("B".into(), "x=y".into())]);
        let marked = parse_env_file("\u{feff}A=1\r\nB=\u{feff}2\r\n").unwrap();
        assert_eq!(marked, [("A".into(), "1".into()), ("B".into(), "\u{feff}2".into())]);
        assert!(parse_env_file("A=1\nnope\n").unwrap_err().starts_with("line 2:"));
        assert!(parse_env("1A=x").is_err() && parse_env("=x").is_err() && parse_env("A=x\0").is_err());
    }

    #[test]
    fn host_names_follow_rfc_1123() {
        assert!(parse_hostname("web-1.shop").is_ok());
        assert!(
            parse_hostname("-web").is_err() && parse_hostname("a b").is_err() && parse_hostname("").is_err()
        );
    }
}
