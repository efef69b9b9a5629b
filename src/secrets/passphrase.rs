//! The passphrase of an identity file: from the environment, else from who sits at the terminal.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use age::secrecy::{ExposeSecret, SecretString};

use super::Locked;
use crate::error::{Error, Result};
use crate::sys;

const VARIABLE: &str = "SPARK_AGE_PASSPHRASE";
const GIVE: &str = "give its passphrase in SPARK_AGE_PASSPHRASE";
/// How often somebody may mistype.
const ATTEMPTS: usize = 3;

/// Who may be asked for a passphrase: nobody, unless a program for people says so. Who has answered rightly is not asked
/// again, and who has not, neither.
#[derive(Debug, Clone, Default)]
pub struct Asking {
    pub at_terminal: bool,
    answered: Arc<OnceLock<Result<SecretString, String>>>,
}

/// That of the environment.
pub(super) fn given() -> Result<Option<SecretString>> {
    match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => Ok(Some(text.into())),
        Ok(_) | Err(std::env::VarError::NotPresent) => Ok(None),
        Err(_) => Err(Error::usage(format!("{VARIABLE} is not UTF-8"))),
    }
}

impl Asking {
    /// Tries passphrases on an encrypted identity file until one is right.
    pub(super) fn open(
        &self,
        path: &Path,
        decrypt: impl Fn(SecretString) -> Result<Locked, String>,
    ) -> Result<Locked> {
        let known = match self.answered.get() {
            Some(Err(why)) => return Err(Error::secret(why, format!("try again, or {GIVE}"))),
            Some(Ok(known)) => Some(known.clone()),
            None => given()?,
        };
        let cannot = |e: &str| format!("cannot decrypt the identity file {}: {e}", path.display());
        if let Some(phrase) = known {
            let hint = format!("see whether {VARIABLE} is its passphrase");
            return decrypt(phrase).map_err(|e| Error::secret(cannot(&e), hint));
        }
        let terminal = self.terminal().ok_or_else(|| {
            Error::secret(
                format!("the identity file {} is encrypted", path.display()),
                format!("{GIVE}, or call spark at a terminal, which asks for it"),
            )
        })?;
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            let asked = ask(&terminal, &format!("Passphrase of {}: ", path.display()));
            let phrase = asked.inspect_err(|e| drop(self.answered.set(Err(e.to_string()))))?;
            match decrypt(phrase.clone()) {
                Ok(plain) => {
                    let _ = self.answered.set(Ok(phrase));
                    return Ok(plain);
                }
                Err(e) => last = cannot(&e),
            }
            sys::ask::tell(&terminal, "That is not it.\n").map_err(unanswered)?;
        }
        let _ = self.answered.set(Err(last.clone()));
        Err(Error::secret(last, format!("try again, or {GIVE}")))
    }

    /// A new passphrase, typed twice. `None` for none.
    pub(super) fn new_phrase(&self, path: &Path) -> Result<Option<SecretString>> {
        let terminal = self.terminal().ok_or_else(|| {
            Error::secret(
                "a new passphrase is asked for at a terminal, and there is none",
                format!("call it at a terminal; a key that is made with {VARIABLE} set has that passphrase"),
            )
        })?;
        for _ in 0..ATTEMPTS {
            let phrase = ask(&terminal, &format!("New passphrase of {}, empty for none: ", path.display()))?;
            let again = ask(&terminal, "The same again: ")?;
            if phrase.expose_secret() == again.expose_secret() {
                return Ok(Some(phrase).filter(|phrase| !phrase.expose_secret().is_empty()));
            }
            sys::ask::tell(&terminal, "They differ.\n").map_err(unanswered)?;
        }
        Err(Error::secret("the passphrase was not typed twice the same", "try again"))
    }

    fn terminal(&self) -> Option<OwnedFd> {
        self.at_terminal.then(sys::ask::terminal).flatten()
    }
}

fn ask(terminal: &OwnedFd, question: &str) -> Result<SecretString> {
    let typed = sys::ask::ask(terminal, question).map_err(unanswered)?;
    let text = std::str::from_utf8(typed.bytes())
        .map_err(|_| Error::secret("the passphrase is not UTF-8", "see what the terminal sends"))?;
    Ok(text.to_owned().into())
}

fn unanswered(source: io::Error) -> Error {
    Error::Secret {
        what: "no passphrase was given".into(),
        hint: format!("type it, or give it in {VARIABLE}"),
        source: (source.kind() != io::ErrorKind::Interrupted).then_some(source),
    }
}
