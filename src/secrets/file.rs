//! `file:///path`: a file of the host, byte for byte.

use std::fs::File;
use std::io;

use rustix::fs::{Mode, OFlags};

use super::{Host, Locked, Secret, Source, failed, too_large};
use crate::domain::secret::{MAX_VALUE, Reference};
use crate::error::{Error, Result};

pub(super) struct Files;

impl Source for Files {
    fn resolve(&self, _: &Host, wanted: &[&Reference]) -> Result<Vec<Secret>> {
        wanted.iter().map(|reference| content(reference)).collect()
    }
}

fn content(reference: &Reference) -> Result<Secret> {
    // A fifo blocks nobody.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file =
        rustix::fs::open(reference.rest(), flags, Mode::empty()).map_err(|e| cannot(reference, e.into()))?;
    let file = File::from(file);
    if !file.metadata().map_err(|e| cannot(reference, e))?.is_file() {
        return Err(failed(reference, "it is not a regular file", "name a file that holds the value"));
    }
    match Locked::read(file, MAX_VALUE) {
        Ok(value) => Ok(value.into_secret()),
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => Err(too_large(reference)),
        Err(e) => Err(cannot(reference, e)),
    }
}

fn cannot(reference: &Reference, source: io::Error) -> Error {
    Error::Secret {
        what: format!("cannot get the secret {reference}"),
        hint: "see whether the file is there, or name another".into(),
        source: Some(source),
    }
}
