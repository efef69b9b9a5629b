//! Images: where one is, what it is known by, and what is recorded of one that was pulled.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::port::Protocol;
use super::signal;
use super::spark::Time;

/// A SHA-256 digest as images write it: `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest of 32 bytes that a hash function gave.
    pub fn of_hash(hash: &[u8]) -> Digest {
        use fmt::Write as _;
        let mut text = String::from("sha256:");
        for byte in hash {
            let _ = write!(text, "{byte:02x}");
        }
        Digest(text)
    }

    /// With its algorithm.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without its algorithm: fit to be a file's name.
    pub fn hex(&self) -> &str {
        &self.0[7..]
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Digest, String> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Digest(text.to_owned()));
        }
        let shown: String = text.chars().take(100).flat_map(char::escape_default).collect();
        Err(format!("`{shown}` is not a SHA-256 digest"))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Digest, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image in a registry. The registry is always named: there is no default one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// A host, and a port where it is not the usual one.
    pub registry: String,
    pub repository: String,
    /// `latest` if neither it nor a digest was given.
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

/// Where an image is, in the words of skopeo: `HOST/REPOSITORY[:TAG][@DIGEST]`, `oci:DIR[:TAG]`,
/// `oci-archive:FILE[:TAG]` or `docker-archive:FILE[:NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRef {
    Registry(Named),
    /// A directory in the OCI image layout.
    Layout {
        dir: PathBuf,
        tag: Option<String>,
    },
    /// The same in a tar archive.
    LayoutArchive {
        file: PathBuf,
        tag: Option<String>,
    },
    /// What `docker save` and `podman save` write.
    DockerArchive {
        file: PathBuf,
        name: Option<String>,
    },
}

/// The path that means standard input, as `docker-archive:-`.
pub const STDIN: &str = "-";

impl ImageRef {
    /// Whether it is read from a pipe or terminal of whoever calls: its name means another image each time.
    pub fn is_stream(&self) -> bool {
        match self {
            ImageRef::LayoutArchive { file, .. } | ImageRef::DockerArchive { file, .. } => {
                file.as_os_str() == STDIN || file.starts_with("/dev") || file.starts_with("/proc")
            }
            ImageRef::Registry(_) | ImageRef::Layout { .. } => false,
        }
    }
}

impl FromStr for ImageRef {
    type Err = String;

    fn from_str(text: &str) -> Result<ImageRef, String> {
        let place = |rest: &str| -> Result<(PathBuf, Option<String>), String> {
            let (path, tag) = match rest.split_once(':') {
                Some((path, tag)) => (path, Some(tag)),
                None => (rest, None),
            };
            let plain = |t: &str| !t.is_empty() && t.len() <= 512 && t.bytes().all(|b| b.is_ascii_graphic());
            if path.is_empty() || tag.is_some_and(|t| !plain(t)) {
                return Err(format!("`{}` names no image: write oci:DIR:TAG", text.escape_default()));
            }
            Ok((path.into(), tag.map(str::to_owned)))
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            return place(rest).map(|(dir, tag)| ImageRef::Layout { dir, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            return place(rest).map(|(file, tag)| ImageRef::LayoutArchive { file, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return place(rest).map(|(file, name)| ImageRef::DockerArchive { file, name });
        }
        text.strip_prefix("docker://").unwrap_or(text).parse().map(ImageRef::Registry)
    }
}

/// Checks that a registry is a host, and a port maybe, and nothing that would be a path or an address.
fn check_host(registry: &str) -> Result<(), &'static str> {
    let host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    let odd = registry.is_empty() || registry.len() > 255 || registry.starts_with(['-', '.']);
    if odd || !registry.bytes().all(host) { Err("its registry is no host") } else { Ok(()) }
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Named, String> {
        let bad = |why: &str| format!("`{}` is not an image's name: {why}", text.escape_default());
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (registry, path) = rest.split_once('/').unwrap_or(("", rest));
        // As docker tells a host from a user's name.
        if !(registry.contains(['.', ':']) || registry == "localhost") {
            let whole = if rest.contains('/') { "" } else { "library/" };
            let why = format!("it has to begin with a registry, as in docker.io/{whole}{text}");
            return Err(bad(&why.escape_default().to_string()));
        }
        check_host(registry).map_err(bad)?;
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        let part = |p: &str| {
            !p.is_empty()
                && p.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
                && p.as_bytes()[0].is_ascii_alphanumeric()
        };
        if repository.len() > 255 || !repository.split('/').all(part) {
            return Err(bad("its repository has to be of lower-case letters, digits, `.`, `_`, `-` and `/`"));
        }
        let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if tag.is_some_and(|t| t.is_empty() || t.len() > 128 || !t.bytes().all(letter)) {
            return Err(bad("its tag has to be of letters, digits, `.`, `_` and `-`"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        let mut repository = repository.to_owned();
        if registry == "docker.io" && !repository.contains('/') {
            repository.insert_str(0, "library/");
        }
        Ok(Named { registry: registry.into(), repository, tag, digest })
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, tag) = match self {
            ImageRef::Registry(named) => return named.fmt(f),
            ImageRef::Layout { dir, tag } => ("oci", dir, tag),
            ImageRef::LayoutArchive { file, tag } => ("oci-archive", file, tag),
            ImageRef::DockerArchive { file, name } => ("docker-archive", file, name),
        };
        write!(f, "{transport}:{}", path.display())?;
        tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

impl ImageRef {
    /// What a base of it is called unless told otherwise: the last part of its repository, and its tag. Not always a
    /// name.
    pub fn base_name(&self) -> String {
        let of_path =
            |path: &std::path::Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (name, tag) = match self {
            ImageRef::Registry(named) => {
                let last = named.repository.rsplit('/').next().unwrap_or_default();
                (last.to_owned(), named.tag.clone())
            }
            ImageRef::Layout { dir, tag } => (of_path(dir), tag.clone()),
            ImageRef::LayoutArchive { file, tag } => (of_path(file), tag.clone()),
            ImageRef::DockerArchive { file, .. } => (of_path(file), None),
        };
        let whole = match tag.filter(|tag| tag != "latest") {
            Some(tag) => format!("{name}-{tag}"),
            None => name,
        };
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        whole.chars().map(plain).take(63).collect::<String>().trim_matches('-').to_owned()
    }
}

/// Where an image is for: `linux/ARCHITECTURE[/VARIANT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    pub architecture: String,
    pub variant: Option<String>,
}

impl Default for Platform {
    /// This host's.
    fn default() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Platform { architecture: architecture.into(), variant: variant.map(str::to_owned) }
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Platform, String> {
        let bad = || format!("`{}` is not a platform: write linux/ARCHITECTURE", text.escape_default());
        let mut parts = text.strip_prefix("linux/").ok_or_else(bad)?.split('/').map(str::to_owned);
        let architecture = parts.next().filter(|a| !a.is_empty()).ok_or_else(bad)?;
        let variant = parts.next();
        if parts.next().is_some() { Err(bad()) } else { Ok(Platform { architecture, variant }) }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// What a base has of the image that it was made from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FromImage {
    /// What it was pulled as.
    pub reference: String,
    /// Of its manifest, which is kept in the pool.
    pub digest: Digest,
    /// What sparks get from it.
    #[serde(default)]
    pub config: ImageConfig,
}

/// As many ports as it makes sense to open at once.
const MOST_PORTS: usize = 256;

/// What an image says about running it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<PathBuf>,
    /// `80/tcp`, `53/udp`, `8000-8010`: opened only if one asks for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// Directories that the image wants to be volumes: in a spark, they are part of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// What ends what the image runs, if not SIGTERM: `SIGQUIT`, `3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

impl ImageConfig {
    /// The command line of what the image runs. Empty if it says nothing.
    pub fn command(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }

    /// The ports that it exposes, each once.
    ///
    /// # Errors
    /// Why, for more than one could mean.
    pub fn exposed(&self) -> Result<Vec<(Protocol, u16)>, String> {
        let mut all = std::collections::BTreeSet::new();
        for text in &self.exposed_ports {
            let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => continue,
            };
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else { continue };
            all.extend((first.max(1)..=last).map(|port| (protocol, port)));
            if all.len() > MOST_PORTS {
                return Err(format!("its image exposes more than {MOST_PORTS} ports"));
            }
        }
        Ok(all.into_iter().collect())
    }

    /// The number of the signal that ends what the image runs.
    pub fn stop_signal(&self) -> i32 {
        let named = self.stop_signal.as_deref().and_then(|name| signal::number(name).ok());
        named.unwrap_or(libc::SIGTERM)
    }
}

/// `images/layers/CHAIN/layer.json`: a layer upon all those below it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct LayerRecord {
    /// [`super::FORMAT`].
    pub version: u32,
    pub created: Time,
    /// The chain below it, none for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// Of its archive, without compression.
    pub diff_id: Digest,
    /// Of `blob`, the archive as it came, and its bytes.
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
    /// Fields of a later version of this program, kept as they are.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// `images/manifests/DIGEST/image.json`, beside `manifest.json` and `config.json` as they came.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct ManifestRecord {
    /// [`super::FORMAT`].
    pub version: u32,
    pub created: Time,
    /// What it was first pulled as.
    pub reference: String,
    pub media_type: String,
    /// Its layers, the lowest first, each by its chain.
    pub chains: Vec<Digest>,
    /// Fields of a later version of this program, kept as they are.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Result<Named, String> {
        text.parse()
    }

    #[test]
    fn a_registry_has_to_be_named() {
        let image = named("registry.example/team/app:1.2").unwrap();
        assert_eq!((image.registry.as_str(), image.repository.as_str()), ("registry.example", "team/app"));
        assert_eq!(image.to_string(), "registry.example/team/app:1.2");
        assert_eq!(named("localhost/app").unwrap().tag.as_deref(), Some("latest"));
        assert_eq!(named("127.0.0.1:5000/app").unwrap().registry, "127.0.0.1:5000");
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(named(&format!("h.x/app@{digest}")).unwrap().tag, None);
        for bad in [
            "app",
            "team/app",
            "h.x/",
            "h.x/App",
            "h.x/a:",
            "h.x/a@sha256:1",
            "h.x/a/../b",
            "h.x/a b",
            "-h.x/a",
        ] {
            assert!(named(bad).is_err(), "{bad}");
        }
        // As docker and podman have it.
        assert_eq!(named("docker.io/alpine:3").unwrap().to_string(), "docker.io/library/alpine:3");
        assert_eq!(named("docker.io/team/app:3").unwrap().to_string(), "docker.io/team/app:3");
        assert!("h.x/-".parse::<ImageRef>().is_err() && "oci:".parse::<ImageRef>().is_err());
    }

    #[test]
    fn transports_are_those_of_skopeo_and_give_a_base_its_name() {
        for (text, base) in [
            ("oci:/srv/app:v1.0", "app-v1-0"),
            ("oci-archive:app.tar", "app"),
            ("docker-archive:/x/web.tar:h.x/web:1", "web"),
            ("h.x/team/py_thon:3.12", "py-thon-3-12"),
            ("h.x/team/app", "app"),
        ] {
            let image: ImageRef = text.parse().unwrap();
            assert_eq!(image.base_name(), base, "{text}");
            assert_eq!(image.to_string().parse::<ImageRef>().unwrap(), image);
        }
    }

    #[test]
    fn exposed_ports_are_numbers_ranges_and_protocols() {
        let exposed = |ports: &[&str]| {
            let exposed_ports = ports.iter().map(ToString::to_string).collect();
            ImageConfig { exposed_ports, ..ImageConfig::default() }.exposed()
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let all = exposed(&["81-82", "53/udp", "80/tcp", "80", "9/sctp", "x", "0-1"]).unwrap();
        assert_eq!(all, [(tcp, 1), (tcp, 80), (tcp, 81), (tcp, 82), (udp, 53)]);
        assert!(exposed(&["1-65535"]).is_err() && exposed(&["9-1"]).unwrap().is_empty());
    }

    #[test]
    fn a_digest_is_sha256_in_lower_case() {
        assert!(format!("sha256:{}", "0f".repeat(32)).parse::<Digest>().is_ok());
        for bad in ["", "sha256:", "sha512:00", &format!("sha256:{}", "F".repeat(64)), &"a".repeat(71)] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert_eq!(Digest::of_hash(&[1; 32]).hex(), "01".repeat(32));
    }
}
