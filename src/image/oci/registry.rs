//! Registries: the OCI distribution protocol, as `oci-client` speaks it.
//!
//! Its runtime lives in whatever thread calls, and ends before that returns: what comes after a pull needs a process
//! with a single thread.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use tokio::runtime::Runtime;

use super::blobs::{Heard, Taking};
use super::credentials;
use super::manifest::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Document, MOST, Manifest, OCI_INDEX, OCI_MANIFEST, choose,
    parse,
};
use super::registries::{self, Endpoint};
use super::source::blame;
use crate::domain::image::{Named, Platform};
use crate::error::{Code, Error, Result};
use crate::sys::net::is_loopback;

/// Layers on their way at a time, as docker has it.
const PARALLEL: usize = 3;
/// How often a layer is tried for whose transfer broke off.
const TRIES: usize = 3;
const KINDS: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];

/// One repository of one registry, or of a mirror of it.
pub(super) struct Remote {
    runtime: Runtime,
    client: Client,
    reference: Reference,
    /// The image, for errors.
    what: String,
    digest: Option<String>,
    /// What it answered first: some registries count the questions.
    answer: Vec<u8>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("reference", &self.reference).finish_non_exhaustive()
    }
}

type Answer<T> = std::result::Result<T, OciDistributionError>;

impl Remote {
    /// Finds who answers for an image: the first mirror that has it, or the registry.
    pub(super) fn open(named: &Named) -> Result<Remote> {
        let sources = registries::sources(named)?;
        let mut before = String::new();
        for (left, source) in (0..sources.len()).rev().zip(&sources) {
            match Remote::reach(source, RegistryOperation::Pull) {
                Ok((remote, _)) => {
                    tracing::info!("{named} comes from {}", source.named);
                    return Ok(remote);
                }
                Err(Error::Registry { action, what, why, code, hint }) if left == 0 => {
                    return Err(Error::Registry { action, what, why: format!("{why}{before}"), code, hint });
                }
                Err(e) if left == 0 => return Err(e),
                Err(e) => {
                    tracing::info!("mirror: {e}");
                    before.push_str(&format!("; its mirror before that: {e}"));
                }
            }
        }
        Err(Error::usage(format!("{named} is nowhere")))
    }

    /// Reaches a registry, by TLS, or without where that is on this host, or one need not know who it is, and it has
    /// none. The flag says whether the image is there; for a push it need not be.
    fn reach(at: &Endpoint, operation: RegistryOperation) -> Result<(Remote, bool)> {
        let first = match Remote::new(at, false)?.probe(operation) {
            Ok((remote, found)) => return Ok((remote, found)),
            Err(e) => e,
        };
        let unreachable = matches!(&first, Error::Registry { code: Code::Network, .. });
        if unreachable && (at.insecure || is_loopback(&at.named.registry)) {
            match Remote::new(at, true)?.probe(operation) {
                Err(Error::Registry { code: Code::Network, .. }) => {}
                answered => return answered,
            }
        }
        Err(first)
    }

    fn new(at: &Endpoint, plain: bool) -> Result<Remote> {
        let named = &at.named;
        let host = named.registry.as_str();
        // The second of a process is refused, and the first is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            use_monolithic_push: true,
            extra_root_certificates: certificates(host)?,
            accept_invalid_certificates: at.insecure,
            connect_timeout: Some(Duration::from_secs(20)),
            read_timeout: Some(Duration::from_secs(60)),
            user_agent: concat!("spark/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let what = named.to_string();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::sys("start a client of registries"))?;
        let client = {
            let _inside = runtime.enter();
            Client::try_from(config).map_err(|e| refusal("reach", &what, &e))?
        };
        let (registry, repository) = (named.registry.clone(), named.repository.clone());
        let digest = named.digest.as_ref().map(ToString::to_string);
        let reference = match (&digest, &named.tag) {
            (Some(digest), _) => Reference::with_digest(registry, repository, digest.clone()),
            (None, tag) => {
                let tag = tag.clone().unwrap_or_else(|| "latest".into());
                Reference::with_tag(registry, repository, tag)
            }
        };
        let auth = match credentials::find(host, &named.repository)? {
            Some(login) => RegistryAuth::Basic(login.user, login.password.to_string()),
            None => RegistryAuth::Anonymous,
        };
        // Docker's own is at another host than it is called after.
        runtime.block_on(client.store_auth_if_needed(reference.resolve_registry(), &auth));
        Ok(Remote { runtime, client, reference, what, digest, answer: Vec::new() })
    }

    /// Asks for the image, or only whether somebody answers where it is to be pushed.
    fn probe(mut self, operation: RegistryOperation) -> Result<(Remote, bool)> {
        let pull = matches!(operation, RegistryOperation::Pull);
        let asked = self.runtime.block_on(self.client.pull_manifest_raw(
            &self.reference,
            &RegistryAuth::Anonymous,
            &KINDS,
        ));
        match asked {
            Ok((bytes, _)) => {
                self.answer = bytes.to_vec();
                Ok((self, true))
            }
            Err(e) => {
                let error = refusal(if pull { "pull" } else { "push" }, &self.what, &e);
                if !pull && error.code() == Code::NotFound { Ok((self, false)) } else { Err(error) }
            }
        }
    }

    fn manifest(&self, reference: &Reference) -> Result<Vec<u8>> {
        let asked = self.client.pull_manifest_raw(reference, &RegistryAuth::Anonymous, &KINDS);
        let (bytes, _) = self.runtime.block_on(asked).map_err(|e| refusal("pull", &self.what, &e))?;
        Ok(bytes.to_vec())
    }

    fn refused(&self, why: String) -> Error {
        Error::Image { what: self.what.clone(), why }
    }

    /// Finds the image for a platform. Returns the manifest and the configuration, as they came.
    pub(super) fn find(&self, platform: &Platform) -> Result<(Vec<u8>, Manifest, Vec<u8>)> {
        let mut bytes = self.answer.clone();
        if let Some(digest) = &self.digest
            && super::digest_of(&bytes).as_str() != digest
        {
            return Err(self.refused("its manifest is another one than its digest says".into()));
        }
        for _ in 0..2 {
            if bytes.len() as u64 > MOST {
                return Err(self.refused("its manifest is too large".into()));
            }
            match parse(&bytes).map_err(|why| self.refused(why))? {
                Document::Manifest(manifest) => {
                    let config = self.runtime.block_on(self.small(&manifest.config))?;
                    return Ok((bytes, manifest, config));
                }
                Document::Index(index) => {
                    let entries: Vec<&Descriptor> = index.manifests.iter().collect();
                    let digest = choose(&entries, platform).map_err(|why| self.refused(why))?.digest.clone();
                    bytes = self.manifest(&self.reference.clone_with_digest(digest.to_string()))?;
                    if super::digest_of(&bytes) != digest {
                        return Err(
                            self.refused("a manifest of it is another one than its digest says".into())
                        );
                    }
                }
            }
        }
        Err(self.refused("its indexes lead on and on".into()))
    }

    /// A blob that fits into memory.
    async fn small(&self, blob: &Descriptor) -> Result<Vec<u8>> {
        let failed = |e: &OciDistributionError| refusal("pull", &self.what, e);
        let asked = self.client.pull_blob_stream(&self.reference, blob.digest.as_str()).await;
        let mut stream = asked.map_err(|e| failed(&e))?.stream;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece.map_err(|e| failed(&e.into()))?);
            if bytes.len() as u64 > blob.size.min(MOST) {
                return Err(self.refused("its configuration is larger than it should be".into()));
            }
        }
        if super::digest_of(&bytes) != blob.digest {
            return Err(self.refused("its configuration is not what it should be".into()));
        }
        Ok(bytes)
    }

    /// Fetches layers into files, several at a time, and tells of each. Those after one that failed are not begun.
    pub(super) fn fetch(
        &self,
        all: Vec<(usize, Descriptor, PathBuf)>,
        heard: &Heard,
        done: &Sender<(usize, Result<PathBuf>)>,
    ) {
        self.runtime.block_on(async {
            let fetched = stream::iter(all).map(|(i, blob, path)| async move {
                let result = self.layer(&blob, &path, heard).await;
                (i, result.map(|()| path))
            });
            let mut fetched = std::pin::pin!(fetched.buffer_unordered(PARALLEL));
            while let Some((i, result)) = fetched.next().await {
                let failed = result.is_err();
                if done.send((i, result)).is_err() || failed {
                    return;
                }
            }
        });
    }

    /// Fetches one layer. A transfer that broke off goes on where it was.
    async fn layer(&self, blob: &Descriptor, path: &Path, heard: &Heard) -> Result<()> {
        let mut taking = Taking::begin(path, blob, heard).map_err(|e| blame(&self.what, path, e))?;
        for left in (0..TRIES).rev() {
            match self.more(&mut taking, blob).await {
                Ok(()) => break,
                Err(Failed::There(e)) if left > 0 && !heard.stop.load(Ordering::Relaxed) => {
                    tracing::debug!("{}: {e}: once more", self.what);
                }
                Err(Failed::There(e)) => return Err(refusal("pull", &self.what, &e)),
                Err(Failed::Here(e)) => return Err(blame(&self.what, path, e)),
            }
        }
        taking.finish().map_err(|e| blame(&self.what, path, e))
    }

    /// Has the registry take a blob from another repository of its own. Says whether it did.
    async fn mount(&self, from: Option<&Named>, digest: &str) -> bool {
        let (registry, repository) = (self.reference.registry(), self.reference.repository());
        let Some(from) = from.filter(|f| f.registry == registry && f.repository != repository) else {
            return false;
        };
        let from = Reference::with_tag(from.registry.clone(), from.repository.clone(), "latest".into());
        self.client.mount_blob(&self.reference, &from, digest).await.is_ok()
    }

    async fn more(&self, taking: &mut Taking<'_>, blob: &Descriptor) -> std::result::Result<(), Failed> {
        let digest = blob.digest.as_str();
        if taking.left() == 0 {
            return Ok(());
        }
        // A part is not hashed by the client, which we do anyway; the whole it would hash too.
        let at = blob.size - taking.left();
        let asked = self.client.pull_blob_stream_partial(&self.reference, digest, at, None).await;
        let mut stream = match asked.map_err(Failed::There)? {
            BlobResponse::Partial(part) => part.stream,
            BlobResponse::Full(whole) => {
                taking.restart().map_err(Failed::Here)?;
                whole.stream
            }
        };
        while let Some(piece) = stream.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                // The client compares digests too, where it can, and ours tells what is wrong.
                Err(e) if e.get_ref().is_some_and(|e| e.is::<DigestError>()) => return Ok(()),
                Err(e) => return Err(Failed::There(e.into())),
            };
            taking.write(&piece).map_err(Failed::Here)?;
        }
        Ok(())
    }
}

/// Whose fault it is: of the way to the registry, or of this host or what came.
enum Failed {
    There(OciDistributionError),
    Here(io::Error),
}

/// What goes to a registry.
#[derive(Debug)]
pub struct Upload {
    pub blobs: Vec<(Descriptor, Content)>,
    pub manifest: Vec<u8>,
    pub media_type: String,
    /// Where the same registry may have some of the blobs already.
    pub from: Option<Named>,
}

/// Where the bytes of a blob are.
#[derive(Debug)]
pub enum Content {
    File(PathBuf),
    Bytes(Vec<u8>),
}

/// Sends an image to a registry: its blobs, unless they are there, and then its manifest, which is what makes it one.
/// `progress` hears how many bytes of all of them are there.
pub fn push(named: &Named, upload: &Upload, progress: &dyn Fn(u64)) -> Result<()> {
    let (remote, _) = Remote::reach(&registries::target(named)?, RegistryOperation::Push)?;
    let failed = |e: &OciDistributionError| refusal("push", &remote.what, e);
    remote.runtime.block_on(async {
        let mut sent = 0;
        for (blob, content) in &upload.blobs {
            let digest = blob.digest.as_str();
            let there = remote.client.blob_exists(&remote.reference, digest).await.map_err(|e| failed(&e))?;
            if !there && !remote.mount(upload.from.as_ref(), digest).await {
                let read = Arc::new(AtomicU64::new(0));
                let data = pieces(content, read.clone())?;
                let push = remote.client.push_blob_stream(&remote.reference, data, digest, Some(blob.size));
                let told = || progress(sent + read.load(Ordering::Relaxed));
                telling(push, &told).await.map_err(|e| failed(&e))?;
            }
            sent += blob.size;
            progress(sent);
        }
        let kind = upload.media_type.parse().map_err(|_| Error::Image {
            what: remote.what.clone(),
            why: "its manifest has no kind".into(),
        })?;
        let sent = remote.client.push_manifest_raw(&remote.reference, upload.manifest.clone(), kind).await;
        sent.map(drop).map_err(|e| failed(&e))
    })
}

/// Waits for something, and has its progress told meanwhile.
async fn telling<T>(work: impl Future<Output = T>, tell: &dyn Fn()) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_millis(100)) => tell(),
        }
    }
}

type Piece = Answer<bytes::Bytes>;

/// The bytes of a blob, counted as they are read.
fn pieces(
    content: &Content,
    read: Arc<AtomicU64>,
) -> Result<impl futures_util::Stream<Item = Piece> + Send + 'static + use<>> {
    let from: Box<dyn Read + Send> = match content {
        Content::File(path) => Box::new(std::fs::File::open(path).map_err(Error::io("open", path))?),
        Content::Bytes(bytes) => Box::new(io::Cursor::new(bytes.clone())),
    };
    Ok(stream::unfold((from, read), |(mut from, read)| async move {
        let mut buffer = vec![0; 256 << 10];
        match from.read(&mut buffer) {
            Ok(0) => None,
            Ok(n) => {
                buffer.truncate(n);
                read.fetch_add(n as u64, Ordering::Relaxed);
                Some((Ok(buffer.into()), (from, read)))
            }
            Err(e) => Some((Err(e.into()), (from, read))),
        }
    }))
}

/// The authorities that docker and podman trust for one registry, besides the system's.
fn certificates(registry: &str) -> Result<Vec<Certificate>> {
    let mut all = Vec::new();
    for dir in ["/etc/docker/certs.d", "/etc/containers/certs.d"] {
        let dir = Path::new(dir).join(registry);
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for path in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "crt"))
        {
            let data = std::fs::read(&path).map_err(Error::io("read", &path))?;
            all.push(Certificate { encoding: CertificateEncoding::Pem, data });
        }
    }
    Ok(all)
}

/// The error for what a registry, or the way to it, answered.
fn refusal(action: &'static str, what: &str, e: &OciDistributionError) -> Error {
    use OciDistributionError as E;
    let host = what.split('/').next().unwrap_or_default();
    let login = || Some(format!("log in with `podman login {host}` or `docker login {host}`"));
    let status = |code: u16| match code {
        401 | 403 => (Code::Denied, login()),
        404 => (Code::NotFound, None),
        _ => (Code::Network, None),
    };
    let (code, hint) = match e {
        E::UnauthorizedError { .. } | E::AuthenticationFailure(_) => (Code::Denied, login()),
        E::RegistryError { envelope, .. } => match envelope.errors.first().map(|e| &e.code) {
            Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => (Code::Denied, login()),
            Some(OciErrorCode::Toomanyrequests) => (Code::Network, Some("try again later, or log in".into())),
            Some(
                OciErrorCode::ManifestUnknown
                | OciErrorCode::NameUnknown
                | OciErrorCode::NotFound
                | OciErrorCode::BlobUnknown
                | OciErrorCode::ManifestBlobUnknown,
            ) => (Code::NotFound, None),
            _ => (Code::Network, None),
        },
        E::ServerError { code, .. } => status(*code),
        E::RequestError(e) => e.status().map_or((Code::Network, None), |s| status(s.as_u16())),
        E::IoError(_) | E::RegistryTokenDecodeError(_) => (Code::Network, None),
        _ => (Code::Image, None),
    };
    Error::Registry { action, what: what.to_owned(), why: why(e), code, hint }
}

/// All that an error knows: what is at the end of the chain is what helps.
fn why(e: &OciDistributionError) -> String {
    let text = match e {
        OciDistributionError::UnauthorizedError { .. } => {
            "it wants to know who asks, or does not let you".to_owned()
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            let said: Vec<_> = envelope.errors.iter().map(|e| e.message.as_str()).collect();
            format!("the registry says: {}", said.join(", "))
        }
        OciDistributionError::ServerError { code, message, .. } => {
            format!("the registry answers with {code}: {}", message.trim())
        }
        e => {
            let (mut text, mut source) = (e.to_string(), std::error::Error::source(e));
            while let Some(inner) = source {
                let more = inner.to_string();
                if !text.contains(&more) {
                    text = format!("{text}: {more}");
                }
                source = inner.source();
            }
            text
        }
    };
    let text: String = text.chars().take(500).collect();
    text.lines().map(shown_line).collect::<Vec<_>>().join(" ")
}

fn shown_line(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).collect()
}
