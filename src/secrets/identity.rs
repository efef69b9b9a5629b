//! The key of the built-in store: an age identity file of the caller's, mode 0600, as `age-keygen` and `rage-keygen`
//! write it, or encrypted with a passphrase, as `age -p` does.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use age::secrecy::{ExposeSecret, SecretString};
use age::x25519;

use super::{Host, Locked, passphrase};
use crate::error::{Error, Result};
use crate::sys;

/// Larger than any identity file.
const MOST: usize = 64 << 10;
/// Log2 of what scrypt may cost: half a minute or so.
const WORK: u8 = 22;

/// Where it is: in the caller's own configuration.
pub(super) fn path(host: &Host) -> PathBuf {
    let xdg = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    // Behind sudo that would be root's.
    let xdg = xdg.filter(|dir| dir.is_absolute() && !host.caller.is_another());
    xdg.unwrap_or_else(|| host.caller.home.join(".config")).join("spark/identity.txt")
}

/// The caller's identity. `None` if there is none yet.
///
/// # Errors
/// `secret` if others could have read it, or it is none.
pub(super) fn load(host: &Host) -> Result<Option<x25519::Identity>> {
    let Some(text) = text(host)? else { return Ok(None) };
    find_key(&path(host), text.bytes()).map(Some)
}

/// The text of the identity file, decrypted.
fn text(host: &Host) -> Result<Option<Locked>> {
    let path = path(host);
    let opened = host
        .caller
        .act(|| File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&path));
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(cannot("read", &path, e)),
    };
    let meta = file.metadata().map_err(|e| cannot("read", &path, e))?;
    if !meta.is_file() || meta.mode() & 0o077 != 0 || ![0, host.caller.ids.uid].contains(&meta.uid()) {
        return Err(Error::secret(
            format!("the identity file {} could have been read by others", path.display()),
            format!(
                "if it has not been, `chmod 600 {}`; else remove it and set the secrets anew",
                path.display()
            ),
        ));
    }
    let content = Locked::read(file, MOST).map_err(|e| cannot("read", &path, e))?;
    if !content.bytes().starts_with(b"age-encryption.org/") {
        return Ok(Some(content));
    }
    host.settings.asking.open(&path, |phrase| decrypt(&content, phrase)).map(Some)
}

/// The caller's identity, made if there is none: encrypted, if the caller has given a passphrase.
pub(super) fn ensure(host: &Host) -> Result<x25519::Identity> {
    if let Some(identity) = load(host)? {
        return Ok(identity);
    }
    put(host, &generate()?, passphrase::given()?, false)?;
    // Of two that make it at once, the first has made it.
    load(host)?.ok_or_else(|| Error::secret(format!("{} is gone", path(host).display()), "try again"))
}

/// Gives the caller's identity file another passphrase, or none, and makes it if it is not there. Returns where it is, and
/// whether it is encrypted now.
///
/// # Errors
/// `secret` if there is no terminal to ask at.
pub(super) fn protect(host: &Host) -> Result<(PathBuf, bool)> {
    let text = match text(host)? {
        Some(text) => text,
        None => generate()?,
    };
    let path = path(host);
    find_key(&path, text.bytes())?;
    let phrase = host.settings.asking.new_phrase(&path)?;
    let is_encrypted = phrase.is_some();
    put(host, &text, phrase, true)?;
    Ok((path, is_encrypted))
}

/// The text of a new identity file.
fn generate() -> Result<Locked> {
    let identity = x25519::Identity::generate();
    let key = identity.to_string();
    let header = format!(
        "# made by spark; the key of secrets that are set from standard input\n# public key: {}\n",
        identity.to_public()
    );
    Locked::of(&[header.as_bytes(), key.expose_secret().as_bytes(), b"\n"])
        .map_err(Error::sys("keep a secret in memory"))
}

/// Writes the identity file as the caller, encrypted if there is a passphrase.
fn put(host: &Host, text: &Locked, phrase: Option<SecretString>, replace: bool) -> Result<()> {
    let path = path(host);
    let encrypted = phrase.map(|phrase| sys::wipe::after(|| encrypt_with(phrase, text.bytes()))).transpose();
    let encrypted = encrypted.map_err(Error::sys("encrypt the identity"))?;
    let content = encrypted.as_deref().unwrap_or(text.bytes());
    host.caller.act(|| write(&path, content, replace)).map_err(|e| cannot("write", &path, e))
}

/// Writes it whole or not at all, and if it is not to be replaced, only where there is none.
fn write(path: &Path, content: &[u8], replace: bool) -> io::Result<()> {
    // Where a link leads is what is replaced, and not the link.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut file = tempfile::Builder::new().prefix(".identity-").tempfile_in(dir)?;
    let _guard = sys::unfinished::Unfinished::path(file.path())?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    match if replace { file.persist(path) } else { file.persist_noclobber(path) } {
        Err(e) if e.error.kind() != io::ErrorKind::AlreadyExists => return Err(e.error),
        _ => {}
    }
    sys::file::sync_dir(dir)
}

/// # Errors
/// In age's words, which hold nothing of the passphrase or the text.
fn decrypt(content: &Locked, phrase: SecretString) -> Result<Locked, String> {
    let mut key = age::scrypt::Identity::new(phrase);
    key.set_max_work_factor(WORK);
    sys::wipe::after(|| {
        age::Decryptor::new(content.bytes())
            .and_then(|d| d.decrypt(std::iter::once(&key as &dyn age::Identity)))
            .map_err(|e| e.to_string())
            .and_then(|reader| Locked::read(reader, MOST).map_err(|e| e.to_string()))
    })
}

fn find_key(path: &Path, text: &[u8]) -> Result<x25519::Identity> {
    let lines = text.split(|b| *b == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    lines.filter_map(|line| line.trim().parse().ok()).next().ok_or_else(|| {
        Error::secret(
            format!("the identity file {} holds no key", path.display()),
            "put back the one that the secrets were set with, or remove it and set them anew",
        )
    })
}

fn encrypt_with(phrase: SecretString, plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut writer = age::Encryptor::with_user_passphrase(phrase).wrap_output(&mut out)?;
    writer.write_all(plain)?;
    writer.finish()?;
    Ok(out)
}

fn cannot(action: &str, path: &Path, source: io::Error) -> Error {
    Error::Secret {
        what: format!("cannot {action} the identity file {}", path.display()),
        hint: "it is the key of the built-in store, and has to be yours".into(),
        source: Some(source),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_among_comments_and_nothing_else_is_one() {
        let identity = x25519::Identity::generate();
        let text = format!("# created: x\n#\n{}\n", identity.to_string().expose_secret());
        let found = find_key(Path::new("/x"), text.as_bytes()).unwrap();
        assert_eq!(found.to_public().to_string(), identity.to_public().to_string());
        assert!(find_key(Path::new("/x"), b"AGE-SECRET-KEY-1XYZ\n\xff\n").is_err());
    }
}
