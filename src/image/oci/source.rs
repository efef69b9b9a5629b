//! An image, wherever it is: found and described first, its layers fetched afterwards.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::blobs::{Files, Heard, take, unreadable};
use super::manifest::{Config, Descriptor, Manifest, OCI_MANIFEST, chains, digest_of};
use super::registry::Remote;
use super::{docker, layout};
use crate::domain::image::{Digest, ImageRef, Platform};
use crate::error::{Error, Result};
use crate::image::reading::Plain;
use crate::sys::held::Held;

/// What to find.
#[derive(Debug)]
pub struct Pull<'a> {
    pub image: &'a ImageRef,
    pub platform: &'a Platform,
    /// A directory for what has no name, such as an archive without its compression, and the most bytes of that.
    pub scratch: &'a Path,
    pub limit: u64,
    /// The `spark` program: processes of it decompress.
    pub program: &'a Path,
}

/// One layer.
#[derive(Debug, Clone)]
pub struct Layer {
    pub blob: Descriptor,
    /// Of the archive in it.
    pub diff_id: Digest,
    /// Of it and all layers below.
    pub chain: Digest,
}

/// An image, as far as it is known without its layers.
#[derive(Debug)]
pub struct Image {
    /// As it came, and its digest.
    pub manifest: Vec<u8>,
    pub digest: Digest,
    pub media_type: String,
    /// As it came.
    pub config: Vec<u8>,
    pub parsed: Config,
    /// The lowest first.
    pub layers: Vec<Layer>,
}

impl Image {
    /// Describes an image by its manifest and configuration, which the manifest's digest stands for.
    ///
    /// # Errors
    /// Why it is none that can be used here.
    pub fn new(bytes: Vec<u8>, manifest: Manifest, config: Vec<u8>) -> std::result::Result<Image, String> {
        let parsed = Config::parse(&config, manifest.layers.len())?;
        let chains = chains(&parsed.rootfs.diff_ids);
        let layers = manifest.layers.into_iter().zip(&parsed.rootfs.diff_ids).zip(chains);
        let layers =
            layers.map(|((blob, diff_id), chain)| Layer { blob, diff_id: diff_id.clone(), chain }).collect();
        Ok(Image {
            digest: digest_of(&bytes),
            media_type: manifest.media_type.unwrap_or_else(|| OCI_MANIFEST.into()),
            manifest: bytes,
            config,
            parsed,
            layers,
        })
    }
}

#[derive(Debug)]
enum Source {
    /// With the name of each layer's file. `plain` layers are taken without their compression.
    Files {
        files: Files,
        names: Vec<String>,
        plain: bool,
        program: PathBuf,
    },
    Registry(Box<Remote>),
}

/// An image that was found.
#[derive(Debug)]
pub struct Opened {
    pub image: Image,
    what: String,
    source: Arc<Source>,
}

/// Finds an image, and reads everything of it but its layers.
///
/// # Errors
/// `image` for what is refused, `not_found`, `denied` and `network` from a registry.
pub fn open(pull: &Pull<'_>) -> Result<Opened> {
    let what = pull.image.to_string();
    let refused = |why: String| Error::Image { what: what.clone(), why };
    let of_layout = |files: Files, tag: &Option<String>| {
        let (bytes, manifest, config) =
            layout::find(&files, tag.as_deref(), pull.platform).map_err(refused)?;
        let names = manifest.layers.iter().map(|l| layout::blob(&l.digest)).collect();
        Ok::<_, Error>((
            bytes,
            manifest,
            config,
            Source::Files { files, names, plain: false, program: pull.program.into() },
        ))
    };
    let (bytes, manifest, config, source) = match pull.image {
        ImageRef::Registry(named) => {
            let remote = Remote::open(named)?;
            let (bytes, manifest, config) = remote.find(pull.platform)?;
            (bytes, manifest, config, Source::Registry(Box::new(remote)))
        }
        ImageRef::Layout { dir, tag } => of_layout(Files::dir(dir)?, tag)?,
        ImageRef::LayoutArchive { file, tag } => of_layout(Files::tar(file, pull)?, tag)?,
        ImageRef::DockerArchive { file, name } => {
            let files = Files::tar(file, pull)?;
            let (manifest, config, names) =
                docker::find(&files, name.as_deref(), pull.limit, pull.program).map_err(refused)?;
            let bytes = serde_json::to_vec(&manifest).map_err(|e| refused(e.to_string()))?;
            let program = pull.program.into();
            (bytes, manifest, config, Source::Files { files, names, plain: true, program })
        }
    };
    let image = Image::new(bytes, manifest, config).map_err(refused)?;
    Ok(Opened { image, what, source: Arc::new(source) })
}

/// Layers on their way into a directory, in a thread that ends with this, wanted or not: what follows a pull needs
/// a process that has only one.
#[derive(Debug)]
pub struct Fetching {
    thread: Option<JoinHandle<()>>,
    done: Receiver<(usize, Result<PathBuf>)>,
    arrived: HashMap<usize, Result<PathBuf>>,
    heard: Arc<Heard>,
}

impl Opened {
    /// Begins to fetch layers, by their numbers. Each becomes a file in `dir`, verified.
    pub fn fetch(&self, wanted: Vec<usize>, dir: &Path) -> Result<Fetching> {
        let (sender, done) = mpsc::channel();
        let heard = Arc::new(Heard::default());
        let all: Vec<(usize, Descriptor, PathBuf)> = wanted
            .into_iter()
            .map(|i| (i, self.image.layers[i].blob.clone(), dir.join(format!("layer-{i}"))))
            .collect();
        let (source, what, shared) = (self.source.clone(), self.what.clone(), heard.clone());
        let work = move || match &*source {
            Source::Files { files, names, plain, program } => {
                for (i, blob, path) in all {
                    let opened = files
                        .open(&names[i])
                        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, unreadable(&names[i], &e)));
                    let taken = opened.and_then(|(from, _)| match plain {
                        true => take(Plain::of(program, from)?, &path, &blob, &shared),
                        false => take(from, &path, &blob, &shared),
                    });
                    let taken = taken.map(|()| path.clone()).map_err(|e| blame(&what, &path, e));
                    if sender.send((i, taken)).is_err() {
                        return;
                    }
                }
            }
            Source::Registry(remote) => remote.fetch(all, &shared, &sender),
        };
        let thread = std::thread::Builder::new().name("layers".into()).spawn(work);
        let thread = Some(thread.map_err(Error::sys("start a thread"))?);
        Ok(Fetching { thread, done, arrived: HashMap::new(), heard })
    }
}

/// Whose fault it is that a layer could not be written to a file.
pub(super) fn blame(what: &str, path: &Path, e: io::Error) -> Error {
    match e.raw_os_error() {
        Some(_) => Error::io("write", path)(e),
        None => Error::Image { what: what.to_owned(), why: e.to_string() },
    }
}

impl Fetching {
    /// Waits for one layer. `progress` hears how many bytes of all of them there are. A signal that is held back ends the
    /// wait with an error.
    pub fn wait(&mut self, layer: usize, signals: &Held, progress: &dyn Fn(u64)) -> Result<PathBuf> {
        loop {
            if let Some(arrived) = self.arrived.remove(&layer) {
                return arrived;
            }
            match self.done.recv_timeout(Duration::from_millis(100)) {
                Ok((i, result)) => drop(self.arrived.insert(i, result)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let gone = io::ErrorKind::BrokenPipe;
                    return Err(Error::sys("fetch layers")(gone.into()));
                }
            }
            progress(self.heard.bytes.load(Ordering::Relaxed));
            if signals.has_arrived().map_err(Error::sys("look for signals"))? {
                // The thread may wait for a registry, and this process is about to end: nobody waits for the thread.
                self.heard.stop.store(true, Ordering::Relaxed);
                self.thread = None;
                return Err(Error::sys("go on after a signal")(io::ErrorKind::Interrupted.into()));
            }
        }
    }

    /// Whether all of them are here, or failed.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.heard.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
