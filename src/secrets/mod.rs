//! Where values of secrets come from: one file per source, behind [`Source`].
//!
//! Nothing here keeps a value, writes one anywhere, or says one in an error or a log. What is told of a program is only
//! what it is known to say: its words could hold the value.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use secrecy::ExposeSecret;

use crate::domain::secret::{MAX_VALUE, Reference, Scheme};
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::caller::Caller;
use crate::sys::job::{Done, Limits, Outcome};
use crate::sys::locked::Locked;

mod command;
mod connect;
mod environment;
mod file;
mod identity;
mod op;
mod pass;
mod passphrase;
pub mod store;
mod transport;

pub use crate::sys::locked::Secret;
pub use passphrase::Asking;

/// What sources may be told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The commands of `cmd://name`, from the user's or the host's own configuration, and from nowhere else: a record,
    /// a stream or a repository's file names one, and never says what is run.
    pub commands: BTreeMap<String, Vec<String>>,
    /// How long a source has for an answer.
    pub timeout: Duration,
    /// Who is asked for the passphrase of an identity file.
    pub asking: Asking,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { commands: BTreeMap::new(), timeout: Duration::from_secs(30), asking: Asking::default() }
    }
}

/// Whose secrets they are, and where.
#[derive(Debug)]
pub struct Host {
    pub caller: Caller,
    /// The built-in store: `SPARK_ROOT/secrets`.
    pub store: PathBuf,
    pub settings: Settings,
}

/// Something that knows values.
trait Source {
    /// The values of references, in their order; all of them, or an error that says which one there is not.
    fn resolve(&self, host: &Host, wanted: &[&Reference]) -> Result<Vec<Secret>>;
}

/// The source of a scheme.
fn source(scheme: Scheme) -> &'static dyn Source {
    match scheme {
        Scheme::Op => &op::Op,
        Scheme::Age => &store::Store,
        Scheme::Env => &environment::Environment,
        Scheme::File => &file::Files,
        Scheme::Cmd => &command::Commands,
        Scheme::Pass => &pass::Pass,
    }
}

/// What costs nothing first: where that fails, nobody is asked for a passphrase, and 1Password, which counts, for nothing.
const ORDER: [Scheme; 6] = [Scheme::Env, Scheme::File, Scheme::Age, Scheme::Pass, Scheme::Cmd, Scheme::Op];

/// Values, by their references.
pub type Values = BTreeMap<Reference, Rc<Secret>>;

/// The values of references, each source asked once.
///
/// # Errors
/// `secret` if there is any that cannot be had.
pub fn resolve(host: &Host, wanted: &BTreeSet<Reference>) -> Result<Values> {
    let mut values = Values::new();
    if wanted.is_empty() {
        return Ok(values);
    }
    // Before the first value, and with it the buffers of whoever brings it.
    sys::wipe::begin().map_err(Error::sys("hide this process"))?;
    for scheme in ORDER {
        let of: Vec<&Reference> = wanted.iter().filter(|r| r.scheme() == scheme).collect();
        if of.is_empty() {
            continue;
        }
        tracing::debug!(?scheme, count = of.len(), "resolving secrets");
        let found = sys::wipe::after(|| source(scheme).resolve(host, &of))?;
        for (reference, value) in of.iter().zip(found) {
            if value.expose_secret().bytes().is_empty() {
                return Err(failed(reference, "it is empty", "give it a value where it is kept"));
            }
            values.insert((*reference).clone(), Rc::new(value));
        }
    }
    Ok(values)
}

/// A reference without a value.
fn failed(reference: &Reference, why: impl std::fmt::Display, hint: impl Into<String>) -> Error {
    Error::secret(format!("cannot get the secret {reference}: {why}"), hint)
}

fn too_large(reference: &Reference) -> Error {
    let why = format!("it is larger than {} KiB", MAX_VALUE >> 10);
    failed(reference, why, "keep large files in a data volume, or mount them with `--mount`")
}

impl Host {
    /// Runs a program as the caller, who has to have what it needs: no terminal to ask at, a deadline, an end to its
    /// output.
    ///
    /// # Errors
    /// `None` if there is no such program.
    fn run(&self, argv: &[OsString], input: Option<&[u8]>, asked: &Asked<'_>) -> Result<Option<Done>> {
        let ids = self.caller.is_another().then_some(&self.caller.ids);
        let limits = Limits { ids, timeout: self.settings.timeout, most: asked.most };
        match sys::job::run(argv, &self.environment(), input, &limits) {
            Ok(outcome) => self.done(outcome, asked).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound || is_nowhere(&argv[0], &e) => Ok(None),
            Err(source) => Err(Error::Secret {
                what: format!("cannot run {} for the secret {}", asked.program, asked.reference),
                hint: format!("see whether you can run {} yourself", asked.program),
                source: Some(source),
            }),
        }
    }

    fn done(&self, outcome: Outcome, asked: &Asked<'_>) -> Result<Done> {
        match outcome {
            Outcome::Done(done) => Ok(done),
            Outcome::TooMuch => Err(too_large(asked.reference)),
            Outcome::TimedOut => Err(failed(
                asked.reference,
                format!("{} gave no answer within {:?}", asked.program, self.settings.timeout),
                "see whether it waits for you to unlock something; SPARK_SECRET_TIMEOUT gives it more time",
            )),
        }
    }

    /// What programs get: our environment with the caller's home and name, and without what is ours.
    fn environment(&self) -> Vec<(OsString, OsString)> {
        let ours = |key: &OsString| {
            let key = key.to_string_lossy();
            key.starts_with("SPARK_") || key.starts_with("SUDO_")
        };
        let set = ["HOME", "USER", "LOGNAME", "LC_ALL"];
        let mut env: Vec<(OsString, OsString)> = std::env::vars_os()
            .filter(|(key, _)| !ours(key) && !set.iter().any(|s| key == s))
            .filter(|(key, _)| !(self.caller.is_another() && key == "XDG_RUNTIME_DIR"))
            .collect();
        let name = OsString::from(&self.caller.name);
        env.push(("HOME".into(), self.caller.home.clone().into()));
        env.push(("USER".into(), name.clone()));
        env.push(("LOGNAME".into(), name));
        env.push(("LC_ALL".into(), "C.UTF-8".into()));
        if self.caller.is_another() {
            env.push(("XDG_RUNTIME_DIR".into(), format!("/run/user/{}", self.caller.ids.uid).into()));
        }
        env
    }
}

/// Whether a program is in no directory of `PATH`. Where the caller may not look into one of those, as into root's own under
/// sudo, the system says that it is denied.
fn is_nowhere(program: &OsString, e: &std::io::Error) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    e.kind() == std::io::ErrorKind::PermissionDenied
        && std::path::Path::new(program).is_relative()
        && std::env::split_paths(&path).all(|dir| !dir.join(program).exists())
}

/// What a program is run for.
struct Asked<'a> {
    program: &'a str,
    /// The secret that errors name: the first, if there are several.
    reference: &'a Reference,
    most: usize,
}

impl<'a> Asked<'a> {
    fn one(program: &'a str, reference: &'a Reference) -> Asked<'a> {
        Asked { program, reference, most: MAX_VALUE }
    }
}

/// Bytes that were read into a value of their own.
fn secret(bytes: &[u8]) -> Result<Secret> {
    Locked::of(&[bytes]).map(Locked::into_secret).map_err(Error::sys("keep a secret in memory"))
}
