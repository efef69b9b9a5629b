//! `spark base export`: a base as an image, or as a plain archive.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::super::{Observer, Sparks};
use crate::domain::base::BaseRecord;
use crate::domain::image::{Digest, FromImage, LayerRecord, ManifestRecord};
use crate::domain::name::Name;
use crate::error::{Error, Result};
use crate::fault;
use crate::image::oci::write::{self, LayerFile, NewLayer, Whole};
use crate::image::oci::{Descriptor, MOST};
use crate::image::pack::{self, Holes, Packed, Step};
use crate::pool::{changes, record};
use crate::sys;
use crate::sys::caller::Caller;
use crate::sys::output::Output;

/// What a write to a stream is called that nobody reads any more.
const WRITE: &str = super::super::transfer::WRITE;

/// Why two trees cannot be compared, if that is the reason of an error.
fn incomparable(e: &Error) -> Option<&'static str> {
    match e {
        // The kernel compares no paths that are longer than it takes.
        Error::Sys { source, .. } if source.raw_os_error() == Some(libc::ENAMETOOLONG) => {
            Some("a path is too long")
        }
        Error::NotSupported { .. } => Some("too much differs"),
        _ => None,
    }
}

/// Writes, and remembers the error of a write.
struct Watched {
    file: File,
    failed: Option<i32>,
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes);
        if let Err(e) = &written
            && e.kind() != io::ErrorKind::Interrupted
        {
            self.failed = e.raw_os_error();
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Where a base is to be written. `-` in the place of a file is standard output.
#[derive(Debug)]
pub enum Export {
    /// A directory in the OCI image layout, and the image's name in it.
    Layout { dir: PathBuf, tag: Option<String> },
    /// What `docker load` reads, and the image's name.
    DockerArchive { file: PathBuf, name: Option<String> },
    /// Its files, in a tar archive.
    Tar(PathBuf),
}

impl Sparks {
    /// Writes a base to a file or directory of the caller's: as an image, the layers of the one that it was made from
    /// and one more of what differs; or as its files. The same base gives the same bytes.
    pub fn base_export(&self, name: &Name, to: Export, observer: &dyn Observer) -> Result<()> {
        let (_, record, root) = self.find_base(Some(name))?;
        let scratch = self.pool.stage()?;
        match to {
            Export::Tar(file) => self.write_file(&file, |out| {
                observer.step("packing", None);
                let (_, packed) = pack::pack_all(&root, out, Holes::Kept, &|bytes| observer.advance(bytes))?;
                packed.notices().for_each(|notice| observer.notice(&notice));
                Ok(())
            }),
            Export::DockerArchive { file, name: tag } => {
                let whole = self.whole(&record, &root, scratch.path(), observer)?;
                let tag = tag.unwrap_or_else(|| format!("localhost/{name}:latest"));
                observer.step("writing", None);
                let program = self.reader()?;
                self.write_file(&file, |out| {
                    write::docker_archive(&whole, &tag, program, out).map_err(Error::io("write", &file))
                })
            }
            Export::Layout { dir, tag } => {
                let whole = self.whole(&record, &root, scratch.path(), observer)?;
                let tag = tag.unwrap_or_else(|| "latest".to_owned());
                observer.step("writing", None);
                let caller = Caller::find().map_err(Error::sys("find who calls"))?;
                let write = |work: &mut dyn FnMut() -> io::Result<()>| caller.act(work);
                write::layout(whole, &dir, &tag, &write).map_err(Error::io("write", &dir))
            }
        }
    }

    /// Writes a file of the caller's: whole or not at all, unless it is a stream.
    fn write_file(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut io::BufWriter<Watched>) -> Result<()>,
    ) -> Result<()> {
        let caller = Caller::find().map_err(Error::sys("find who calls"))?;
        // As the caller: nothing is written that only root could write.
        let output = caller.act(|| Output::open(path)).map_err(Error::io("write", path))?;
        let file = output.file().try_clone().map_err(Error::io("write", path))?;
        let mut out = io::BufWriter::with_capacity(256 << 10, Watched { file, failed: None });
        let filled = fill(&mut out).and_then(|()| out.flush().map_err(Error::io("write", path)));
        // Who reads and who writes fail in the same words: here is what the caller's file said.
        if let Some(errno) = out.get_ref().failed {
            let source = io::Error::from_raw_os_error(errno);
            return Err(match errno {
                libc::EPIPE => Error::sys(WRITE)(source),
                _ => Error::io("write", path)(source),
            });
        }
        filled?;
        fault::point("base-export.filled")?;
        caller.act(|| output.finish()).map_err(Error::io("write", path))
    }

    /// A base as an image, in files of the pool and of `scratch`.
    pub(super) fn whole(
        &self,
        record: &BaseRecord,
        root: &Path,
        scratch: &Path,
        observer: &dyn Observer,
    ) -> Result<Whole> {
        let path = scratch.join("layer.tar.gz");
        let image = match &record.image {
            Some(image) => self.read_image(image, observer)?,
            None => None,
        };
        if record.image.is_some() && image.is_none() {
            observer.notice("the layers of the base's image are gone: it becomes one layer of all its files");
        }
        let created = record.created.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let progress = |bytes| observer.advance(bytes);
        let finish = |(layer, packed): (LayerFile, Packed)| -> Result<NewLayer> {
            packed.notices().for_each(|notice| observer.notice(&notice));
            let by = format!("spark base {}", record.origin);
            layer.finish(created, by).map_err(Error::io("write", &path))
        };
        let create = || LayerFile::create(&path).map_err(Error::io("create", &path));
        let whole = match image {
            Some((whole, below)) => {
                observer.step("comparing", None);
                match changes::layer(&below, root) {
                    Ok(steps) if steps.is_empty() => return Ok(whole),
                    Ok(steps) => {
                        observer.step("packing what differs", None);
                        let steps = steps.into_iter().map(|(path, step)| match step {
                            changes::Step::Write => Step::Write(path),
                            changes::Step::Hide => Step::Hide(path),
                        });
                        whole.and(finish(pack::pack(root, steps, create()?, &progress)?)?)
                    }
                    Err(e) => {
                        let why = incomparable(&e).ok_or(e)?;
                        observer
                            .notice(&format!("{why} to be compared: the image gets one layer of all files"));
                        whole.instead(finish(pack::pack_all(root, create()?, Holes::Filled, &progress)?)?)
                    }
                }
            }
            None => {
                observer.step("packing", None);
                Whole::of(finish(pack::pack_all(root, create()?, Holes::Filled, &progress)?)?)
            }
        };
        whole.map_err(|e| Error::Sys { action: "describe an image", source: e.into() })
    }

    /// The image that a base was made from, and its root. None if a part of it is gone.
    fn read_image(&self, image: &FromImage, observer: &dyn Observer) -> Result<Option<(Whole, PathBuf)>> {
        let dir = self.pool.paths.manifest(&image.digest);
        let Some(kept) = record::read::<ManifestRecord>(&dir.join("image.json"))? else { return Ok(None) };
        let read = |name: &str| {
            let path = dir.join(name);
            let file = File::open(&path).and_then(|file| sys::file::read_bounded(file, MOST));
            file.map_err(Error::io("read", path))
        };
        let Some(top) = kept.chains.last() else { return Ok(None) };
        let mut layers = Vec::new();
        for chain in &kept.chains {
            let Some(layer) = self.read_layer(chain)? else { return Ok(None) };
            layers.push(layer);
        }
        let (manifest, config) = (read("manifest.json")?, read("config.json")?);
        let (whole, others) = Whole::new(manifest, kept.media_type.clone(), config, layers)
            .map_err(|e| Error::corrupt(&dir.join("manifest.json"), e))?;
        if others > 0 {
            observer.notice(&format!(
                "{others} layers are written as another image brought them, compressed otherwise: \
                 the image's digest changes"
            ));
        }
        Ok(Some((whole, self.pool.paths.layer(top).join("root"))))
    }

    fn read_layer(&self, chain: &Digest) -> Result<Option<(Descriptor, PathBuf)>> {
        let dir = self.pool.paths.layer(chain);
        let Some(record) = record::read::<LayerRecord>(&dir.join("layer.json"))? else { return Ok(None) };
        Ok(Some((Descriptor::new(&record.media_type, record.digest, record.size), dir.join("blob"))))
    }
}
