//! `age://name`: the built-in store, a directory with one age file per value, encrypted to its setter's identity.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use secrecy::ExposeSecret;

use super::{Host, Locked, Secret, Source, failed, identity};
use crate::domain::secret::{MAX_VALUE, Reference};
use crate::error::{Error, Result};
use crate::sys;

pub(super) struct Store;

/// What age adds to a value, and much more.
const OVERHEAD: u64 = 16 << 10;

impl Source for Store {
    fn resolve(&self, host: &Host, wanted: &[&Reference]) -> Result<Vec<Secret>> {
        let files: Vec<_> = wanted.iter().map(|r| encrypted(host, r)).collect::<Result<_>>()?;
        let Some(identity) = identity::load(host)? else {
            let why = format!("{} has no identity file to decrypt it with", host.caller.name);
            let hint = format!("put the one back that it was set with: {}", identity::path(host).display());
            return Err(failed(wanted[0], why, hint));
        };
        wanted.iter().zip(files).map(|(r, content)| decrypt(r, &content, &identity)).collect()
    }
}

/// A value that is encrypted, and in no store yet.
#[must_use]
#[derive(Debug)]
pub struct Encrypted(Vec<u8>);

/// Encrypts a value to the caller's key, which is made if there is none. It may ask for the key's passphrase, so no lock is
/// to be held.
pub fn encrypt(host: &Host, value: &Secret) -> Result<Encrypted> {
    let recipient = identity::ensure(host)?.to_public();
    let encrypt = || -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let recipients = std::iter::once(&recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
        let mut writer = encryptor.wrap_output(&mut out)?;
        writer.write_all(value.expose_secret().bytes())?;
        writer.finish()?;
        Ok(out)
    };
    sys::wipe::after(encrypt).map(Encrypted).map_err(Error::sys("encrypt a secret"))
}

/// Puts a value into the store, in place of one that is there. It survives a crash once this returned.
pub fn put(host: &Host, reference: &Reference, value: &Encrypted) -> Result<()> {
    let path = path(host, reference);
    let dir = path.parent().unwrap_or(&host.store);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("create", dir))?;
    sys::file::replace(&path, &value.0).map_err(Error::io("write", &path))?;
    // The directories above may be new as well.
    for above in dir.ancestors().skip(1).take_while(|above| above.starts_with(&host.store)) {
        sys::file::sync_dir(above).map_err(Error::io("sync", above))?;
    }
    if let Some(root) = host.store.parent() {
        sys::file::sync_dir(root).map_err(Error::io("sync", root))?;
    }
    Ok(())
}

/// Asks for a new passphrase for the caller's key of the store. Returns where that is, and whether it has one now.
pub fn protect(host: &Host) -> Result<(PathBuf, bool)> {
    sys::wipe::begin().map_err(Error::sys("hide this process"))?;
    identity::protect(host)
}

/// Whether there is a value of that name.
pub fn has(host: &Host, reference: &Reference) -> bool {
    path(host, reference).exists()
}

/// Removes a value, if it is there.
pub fn remove(host: &Host, reference: &Reference) -> Result<()> {
    let path = path(host, reference);
    sys::file::remove(&path).map_err(Error::io("delete", &path))?;
    // Only where nothing else is in it.
    if let Some(dir) = path.parent().filter(|dir| *dir != host.store) {
        let _ = std::fs::remove_dir(dir);
    }
    Ok(())
}

/// Parts of a name begin with no `.`, so nothing leads out, and no temporary file has such a name.
fn path(host: &Host, reference: &Reference) -> PathBuf {
    host.store.join(format!("{}.age", reference.rest()))
}

fn encrypted(host: &Host, reference: &Reference) -> Result<Vec<u8>> {
    let path = path(host, reference);
    let opened = File::open(&path);
    if opened.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        let hint = "set it with `spark secrets set`, which reads the value from standard input";
        return Err(failed(reference, "it is not in the store", hint));
    }
    let read = || -> io::Result<(u32, Vec<u8>)> {
        let file = opened?;
        let mode = file.metadata()?.mode();
        Ok((mode, sys::file::read_bounded(file, MAX_VALUE as u64 + OVERHEAD)?))
    };
    let (mode, content) = read().map_err(|source| Error::Secret {
        what: format!("cannot read {} for the secret {reference}", path.display()),
        hint: "set it again with `spark secrets set`".into(),
        source: Some(source),
    })?;
    if mode & 0o077 != 0 {
        let why = format!("others may use {}", path.display());
        return Err(failed(reference, why, format!("`chmod 600 {}`, or set it again", path.display())));
    }
    Ok(content)
}

fn decrypt(reference: &Reference, content: &[u8], identity: &age::x25519::Identity) -> Result<Secret> {
    let again = "set it again with `spark secrets set`";
    let opened = age::Decryptor::new(content)
        .and_then(|decryptor| decryptor.decrypt(std::iter::once(identity as &dyn age::Identity)));
    let reader = opened.map_err(|e| match e {
        age::DecryptError::NoMatchingKeys => {
            let hint = "ask who set it, or set it again with `spark secrets set`";
            failed(reference, "it was set with another identity file", hint)
        }
        e => failed(reference, format!("it is damaged in the store: {e}"), again),
    })?;
    match Locked::read(reader, MAX_VALUE) {
        Ok(value) => Ok(value.into_secret()),
        Err(e) => Err(failed(reference, format!("it is damaged in the store: {e}"), again)),
    }
}
