//! `spark base import`: a base from an archive or a directory.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::cp::{AsRoot, At, Copier, Owner};
use super::super::{Observer, Sparks};
use super::{BaseInfo, ContainerdRef, make};
use crate::domain::name::Name;
use crate::error::{Error, Result};
use crate::image::{Source, unpack};
use crate::sys;
use crate::sys::held::{ENDING, Held};

/// What to import.
pub enum ImportSource {
    /// An archive, or a directory.
    Path(PathBuf),
    /// An archive that comes in as a stream.
    Stdin(Box<dyn Source>),
    /// The root of a running container of containerd's.
    Containerd(ContainerdRef),
}

impl std::fmt::Debug for ImportSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ImportSource::Path(path) => f.debug_tuple("Path").field(path).finish(),
            ImportSource::Stdin(_) => f.write_str("Stdin"),
            ImportSource::Containerd(container) => f.debug_tuple("Containerd").field(container).finish(),
        }
    }
}

impl Sparks {
    /// Makes a base of a tar archive, plain or compressed with gzip, xz or zstd, or of a directory. What is in it
    /// is not trusted: see [`crate::image::unpack`]. Or a snapshot of the root of a container of containerd's.
    ///
    /// # Errors
    /// `exists`, `not_found`, `image` for what is refused, `not_supported` for a root without snapshots. Then nothing is left.
    pub fn base_import(&self, source: ImportSource, name: Name, observer: &dyn Observer) -> Result<BaseInfo> {
        match source {
            ImportSource::Containerd(container) => self.base_import_containerd(&container, &name, observer),
            ImportSource::Stdin(stream) => {
                let what = "the archive on standard input";
                let making = self.begin_new_base(&name, observer)?;
                // Declared first of what is held here, so that a signal acts when nothing is left of the rest.
                let signals = hold_signals()?;
                self.make_base(&name, "import from standard input".into(), (&making, observer), |root| {
                    observer.step("unpacking", None);
                    self.unpack(stream, root, what, (observer, &signals))
                })
            }
            ImportSource::Path(path) => {
                let meta = std::fs::metadata(&path).map_err(Error::io("open", &path))?;
                let origin = format!("import {}", shown(&path));
                let making = self.begin_new_base(&name, observer)?;
                if meta.is_dir() {
                    return self.make_base(&name, origin, (&making, observer), |root| {
                        self.copy(&path, root, observer)
                    });
                }
                let signals = hold_signals()?;
                self.make_base(&name, origin, (&making, observer), |root| {
                    self.unpack_file(&path, root, (observer, &signals))
                })
            }
        }
    }

    fn unpack_file(
        &self,
        path: &Path,
        root: &Path,
        (observer, signals): (&dyn Observer, &Held),
    ) -> Result<()> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let size = file.metadata().ok().filter(|m| m.is_file()).map(|m| m.len());
        observer.step("unpacking", size);
        self.unpack(file, root, &shown(path), (observer, signals))
    }

    fn unpack(
        &self,
        archive: impl Source + 'static,
        root: &Path,
        what: &str,
        (observer, signals): (&dyn Observer, &Held),
    ) -> Result<()> {
        let progress = |bytes| observer.advance(bytes);
        let (limits, program) = (self.import_limits()?, self.reader()?);
        let stop = Some(signals.as_fd());
        let options = unpack::Options { what, limits, program, progress: &progress, stop };
        let summary = unpack::unpack(archive, root, &options)?;
        refuse_image_archive(root, what)?;
        make::report(&summary, observer);
        look(root, observer);
        Ok(())
    }

    fn copy(&self, source: &Path, root: &Path, observer: &dyn Observer) -> Result<()> {
        let own = &self.pool.place.root;
        let own = std::fs::metadata(own).map_err(Error::io("inspect", own))?;
        let from = sys::file::open_dir(source).map_err(Error::io("open", source))?;
        let to = sys::file::open_dir(root).map_err(Error::io("open", root))?;
        let mut copier = Copier::new(Owner::Kept, observer, source.into(), root.into());
        copier.as_root = Some(AsRoot { limits: self.import_limits()?, except: (own.dev(), own.ino()) });
        copier.copy(At { dir: from.as_fd(), name: b"." }, At { dir: to.as_fd(), name: b"." })?;
        make::report(&copier.summary, observer);
        look(root, observer);
        Ok(())
    }
}

/// Holds signals back that end this process, until what is half made is gone.
pub(super) fn hold_signals() -> Result<Held> {
    Held::new(&ENDING).map_err(Error::sys("hold signals back"))
}

/// The name of a file, fit to be kept in a record and printed.
fn shown(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.as_encoded_bytes()
        .iter()
        .flat_map(|b| if b.is_ascii() { b.escape_ascii().map(char::from).collect() } else { vec!['?'] })
        .collect()
}

/// What `docker save` and `skopeo` write holds layers, and is no root filesystem.
fn refuse_image_archive(root: &Path, what: &str) -> Result<()> {
    let has = |name: &str| root.join(name).symlink_metadata().is_ok();
    if (has("oci-layout") || has("manifest.json")) && !has("etc") && !has("usr") {
        let why =
            "it is an image with layers, not a root filesystem (`docker export` of a container writes one)";
        return Err(Error::Image { what: what.to_owned(), why: why.into() });
    }
    Ok(())
}

/// Warns of what has no shell: it may be meant, and is more often an archive with one folder too many.
fn look(root: &Path, observer: &dyn Observer) {
    let shell = ["bin/sh", "usr/bin/sh"].iter().any(|p| {
        sys::file::open_dir(root)
            .and_then(|fd| {
                sys::beneath::open_with(
                    &fd,
                    Path::new(p),
                    rustix::fs::OFlags::PATH,
                    rustix::fs::Mode::empty(),
                )
            })
            .is_ok()
    });
    if !shell {
        observer.notice("there is no /bin/sh in it: is it a whole root filesystem?");
    }
}
