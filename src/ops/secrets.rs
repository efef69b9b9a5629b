//! `secrets`: references to values that are kept elsewhere, and their delivery into sparks.
//!
//! Records hold references only. Values are fetched by the command that starts a spark, before anything of it is made,
//! go into a tmpfs of the spark's own, and are in nothing else that outlives the command.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::rc::Rc;

use secrecy::ExposeSecret;

use super::Sparks;
use super::spark::SparkId;
use crate::domain::name::{Name, SparkRef};
use crate::domain::options::SparkOptions;
use crate::domain::place::SparkPaths;
use crate::domain::secret::{
    Delivery, Key, MAX_ALL, MAX_STRING, MAX_VALUE, MOST, Named, ProjectSecrets, Reference, Scheme, Secret,
    Secrets,
};
use crate::domain::spark::{SparkRecord, State};
use crate::error::{Error, Result};
use crate::pool::{names_in, record};
use crate::runtime::secrets::{self as delivery, Delivered, Filling};
use crate::runtime::users;
use crate::secrets::{self, Host, store};
use crate::sys::caller::Caller;
use crate::sys::flock::Mode;
use crate::sys::locked::{self, Locked};
use crate::{fault, sys};

pub use crate::secrets::Settings;

/// Values for a spark that is about to start, and what they are for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given {
    secrets: Secrets,
    values: Vec<Delivered>,
}

/// Whose secrets are meant: a project's, or one spark's own.
#[derive(Debug, Clone)]
pub enum Scope {
    Project(Name),
    Spark(SparkId),
}

/// A secret as it is listed.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Listed {
    pub key: Key,
    #[serde(rename = "ref")]
    pub reference: Reference,
    #[serde(rename = "as")]
    pub delivery: Delivery,
    /// `project`, or `spark` where it is the spark's own.
    pub of: &'static str,
}

/// Whether the value of a secret can be had.
#[derive(Debug)]
pub struct Checked {
    pub secret: Listed,
    pub result: Result<()>,
}

/// What became of a refresh.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Refreshed {
    #[serde(flatten)]
    pub spark: SparkId,
    /// False if the spark does not run: it gets them when it starts.
    pub running: bool,
    pub secrets: usize,
}

impl Sparks {
    /// The scope that a command line means.
    pub fn secrets_scope(&self, spark: Option<&SparkRef>) -> Result<Scope> {
        match spark {
            Some(spark) => self.resolve(spark).map(Scope::Spark),
            None => self.project().map(Scope::Project),
        }
    }

    /// Gives a scope a secret, or another one in its place: a reference, or a value that goes into the built-in store.
    ///
    /// # Errors
    /// `secret` if the value is empty or too large, or cannot be stored.
    pub fn secret_set(&self, scope: &Scope, named: &Named, reference: Option<Reference>) -> Result<Secret> {
        self.secret_put(scope, named, reference, &mut std::io::empty())
    }

    /// The same with the value read from `input` where there is no reference.
    pub fn secret_put(
        &self,
        scope: &Scope,
        named: &Named,
        reference: Option<Reference>,
        input: &mut dyn Read,
    ) -> Result<Secret> {
        let given = reference.is_some();
        let reference = match reference {
            Some(reference) => reference,
            None => self.stored_name(scope, &named.key)?,
        };
        let secret = Secret { reference, delivery: named.delivery };
        let value = if given { None } else { Some(read_value(&named.key, input)?) };
        if let Some(value) = &value {
            check_value(&named.key, &secret, value)?;
        }
        if let Scope::Project(project) = scope {
            // `gc` frees values of projects that are not there.
            self.ensure_project(project)?;
        }
        let host = self.secret_host()?;
        // Before the lock, which all projects share: whoever is asked for a passphrase may take their time.
        let value = value.as_ref().map(|value| store::encrypt(&host, value)).transpose()?;
        let _store = value.as_ref().map(|_| self.lock_store()).transpose()?;
        let new = value.is_some() && !store::has(&host, &secret.reference);
        if let Some(value) = &value {
            store::put(&host, &secret.reference, value)?;
        }
        let done = fault::point("secrets-set.stored").and_then(|()| {
            self.change_secrets(scope, |all| {
                if all.len() >= MOST && !all.contains_key(&named.key) {
                    return Err(Error::usage(format!("{MOST} secrets are the most there can be")));
                }
                all.insert(named.key.clone(), secret.clone());
                Ok(())
            })
        });
        match done {
            Err(first) if new => Err(match store::remove(&host, &secret.reference) {
                Ok(()) => first,
                Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
            }),
            done => done.map(|()| secret),
        }
    }

    /// Takes a secret away from a scope, and its value out of the built-in store if nobody refers to it any more.
    ///
    /// # Errors
    /// `not_found` if it has none of that name.
    pub fn secret_delete(&self, scope: &Scope, key: &Key) -> Result<()> {
        let mut gone = None;
        self.change_secrets(scope, |all| {
            gone = all.remove(key);
            gone.is_some().then_some(()).ok_or_else(|| no_such(scope, key, all))
        })?;
        fault::point("secrets-delete.recorded")?;
        let Some(secret) = gone.filter(|secret| secret.reference.scheme() == Scheme::Age) else {
            return Ok(());
        };
        let _store = self.lock_store()?;
        if self.is_referred(&secret.reference)? {
            return Ok(());
        }
        store::remove(&self.secret_host()?, &secret.reference)
    }

    /// Asks for a new passphrase for the caller's key of the built-in store, and makes the key if there is none. Returns where
    /// that is, and whether it has a passphrase now.
    ///
    /// # Errors
    /// `secret` without a terminal to ask at.
    pub fn secret_passphrase(&self) -> Result<(std::path::PathBuf, bool)> {
        store::protect(&self.secret_host()?)
    }

    /// The secrets of a scope; a spark has those of its project too, unless it has its own of that name.
    pub fn secret_list(&self, scope: &Scope) -> Result<Vec<Listed>> {
        let (project, own) = match scope {
            Scope::Project(project) => (project, Secrets::new()),
            Scope::Spark(spark) => (&spark.project, self.record(spark)?.options.secrets),
        };
        let whole = self.wanted(project, &own)?;
        let of = |key: &Key| if own.contains_key(key) { "spark" } else { "project" };
        let list = |(key, secret): (Key, Secret)| Listed {
            of: of(&key),
            key,
            reference: secret.reference,
            delivery: secret.delivery,
        };
        Ok(whole.into_iter().map(list).collect())
    }

    /// Whether the values of a scope's secrets can be had. They are fetched, looked at, and forgotten.
    pub fn secret_check(&self, scope: &Scope) -> Result<Vec<Checked>> {
        let list = self.secret_list(scope)?;
        let host = self.secret_host()?;
        let all: BTreeSet<Reference> = list.iter().map(|l| l.reference.clone()).collect();
        // One call if all is well. Only else each by itself, since failures count against 1Password's rate limit.
        let together = secrets::resolve(&host, &all);
        let one = |listed: &Listed| -> Result<()> {
            let alone = match &together {
                Ok(values) => Ok(values.clone()),
                Err(_) => secrets::resolve(&host, &BTreeSet::from([listed.reference.clone()])),
            };
            let secret = Secret { reference: listed.reference.clone(), delivery: listed.delivery };
            match alone?.get(&listed.reference) {
                Some(value) => check_value(&listed.key, &secret, value),
                None => Ok(()),
            }
        };
        Ok(list.into_iter().map(|secret| Checked { result: one(&secret), secret }).collect())
    }

    /// Fetches the values for a running spark anew and replaces its files: each is the old or the new one at any moment.
    /// The next command sees the new variables.
    pub fn secret_refresh(&self, spark: &SparkRef) -> Result<Refreshed> {
        let spark = self.resolve(spark)?;
        for _ in 0..3 {
            let record = self.record(&spark)?;
            let runs = |record: &SparkRecord| matches!(self.state(record), State::Running | State::Paused);
            let given = match runs(&record) {
                true => self.give(&spark.project, &record.options)?,
                false => Given::default(),
            };
            // Not before: a source may take its time, and nobody waits for it.
            let opened = self.open_spark(&spark, Mode::Exclusive)?;
            let Some(live) = self.live(&opened.record) else {
                return Ok(Refreshed { secrets: 0, running: false, spark });
            };
            if !self.is_current(&given, &spark.project, &opened.record.options)? {
                continue;
            }
            let root = SparkPaths(&opened.dir).root();
            let count = given.values.len();
            let filling = given.filling(&root, &opened.record.options)?;
            delivery::replace(&live, (&root, &self.bundle(&opened.record)), filling)?;
            return Ok(Refreshed { secrets: count, running: true, spark });
        }
        Err(Error::Busy { what: format!("spark `{spark}`"), why: "its secrets keep being changed".into() })
    }

    /// The values that a spark with these options starts with. All of them, or none and an error.
    pub(crate) fn give(&self, project: &Name, options: &SparkOptions) -> Result<Given> {
        let secrets = self.wanted(project, &options.secrets)?;
        let values = self.values(&secrets)?;
        Ok(Given { secrets, values })
    }

    /// Whether values are those that a spark is to start with now.
    pub(crate) fn is_current(&self, given: &Given, project: &Name, options: &SparkOptions) -> Result<bool> {
        Ok(given.secrets == self.wanted(project, &options.secrets)?)
    }

    /// The variables of a command that has secrets of its own: `KEY=VALUE` and a NUL each.
    pub(super) fn command_secrets(&self, secrets: &Secrets) -> Result<Vec<(Key, Rc<locked::Secret>)>> {
        let values = self.values(secrets)?.into_iter();
        values.map(|one| Ok((one.key.clone(), Rc::new(variable(&one.key, &one.value)?)))).collect()
    }

    fn values(&self, secrets: &Secrets) -> Result<Vec<Delivered>> {
        if secrets.is_empty() {
            return Ok(Vec::new());
        }
        let references = secrets.values().map(|secret| secret.reference.clone()).collect();
        let found = secrets::resolve(&self.secret_host()?, &references)?;
        let mut values = Vec::with_capacity(secrets.len());
        let mut total = 0;
        for (key, secret) in secrets {
            let Some(value) = found.get(&secret.reference) else { continue };
            check_value(key, secret, value)?;
            total += value.expose_secret().bytes().len();
            values.push(Delivered { key: key.clone(), delivery: secret.delivery, value: Rc::clone(value) });
        }
        if total > MAX_ALL {
            let what = format!(
                "the secrets of the spark have {} KiB, and {} are the most",
                total >> 10,
                MAX_ALL >> 10
            );
            return Err(Error::secret(
                what,
                "keep large files in a data volume, or mount them with `--mount`",
            ));
        }
        Ok(values)
    }

    /// What a spark gets: what its project has, and over that its own.
    pub(super) fn wanted(&self, project: &Name, own: &Secrets) -> Result<Secrets> {
        let mut all = self.project_secrets(project)?.secrets;
        all.extend(own.iter().map(|(key, secret)| (key.clone(), secret.clone())));
        Ok(all)
    }

    fn project_secrets(&self, project: &Name) -> Result<ProjectSecrets> {
        let path = self.pool.paths.project(project).join("secrets.json");
        Ok(record::read(&path)?.unwrap_or_default())
    }

    fn change_secrets(&self, scope: &Scope, change: impl FnOnce(&mut Secrets) -> Result<()>) -> Result<()> {
        match scope {
            Scope::Spark(spark) => {
                let opened = self.open_spark(spark, Mode::Exclusive)?;
                let mut record = opened.record;
                change(&mut record.options.secrets)?;
                record::replace(&SparkPaths(&opened.dir).record(), &record)
            }
            Scope::Project(project) => {
                let dir = self.pool.paths.project(project);
                let Some(_lock) = self.pool.lock(&dir, Mode::Exclusive)? else {
                    // It has no secrets, whatever it is asked to do with one.
                    return change(&mut Secrets::new()).and(Err(Error::Busy {
                        what: format!("project `{project}`"),
                        why: "it is being deleted".into(),
                    }));
                };
                let mut record = self.project_secrets(project)?;
                change(&mut record.secrets)?;
                record::replace(&dir.join("secrets.json"), &record)
            }
        }
    }

    /// For whoever puts a value into the built-in store, until it is referred to, and for whoever removes one that is not.
    /// Taken before the locks of sparks and projects.
    fn lock_store(&self) -> Result<OwnedFd> {
        let dir = self.pool.place.secrets();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(Error::io("create", &dir))?;
        sys::flock::lock_dir(&dir, Mode::Exclusive).map_err(Error::io("lock", dir))
    }

    /// What a value is called in the built-in store: by ids, since names change hands.
    fn stored_name(&self, scope: &Scope, key: &Key) -> Result<Reference> {
        let name = match scope {
            Scope::Project(project) => format!("{project}/{key}"),
            Scope::Spark(spark) => format!("{}/{key}", self.record(spark)?.id),
        };
        Reference::stored(&name).map_err(Error::usage)
    }

    /// Whether a spark or a project refers to a value, those in the trash included. What cannot be read may.
    pub(super) fn is_referred(&self, reference: &Reference) -> Result<bool> {
        let refers = |secrets: &Secrets| secrets.values().any(|secret| secret.reference == *reference);
        for project in names_in(&self.pool.paths.projects())? {
            if self.project_secrets(&project).map_or(true, |record| refers(&record.secrets)) {
                return Ok(true);
            }
            for spark in self.sparks_of(&project)? {
                if self.record(&spark).map_or(true, |record| refers(&record.options.secrets)) {
                    return Ok(true);
                }
            }
        }
        let trash = self.pool.paths.trash();
        for entry in std::fs::read_dir(&trash).map_err(Error::io("list", &trash))?.flatten() {
            let read = record::read::<SparkRecord>(&SparkPaths(&entry.path()).record());
            if let Ok(Some(record)) = read
                && refers(&record.options.secrets)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn secret_host(&self) -> Result<Host> {
        Ok(Host {
            caller: Caller::find().map_err(Error::io("read", "/etc/passwd"))?,
            store: self.pool.place.secrets(),
            settings: self.context.secrets.clone(),
        })
    }
}

impl Given {
    /// What the starter writes, for the user that the spark's commands run as.
    pub(crate) fn filling(self, root: &std::path::Path, options: &SparkOptions) -> Result<Filling> {
        let user = users::find(root, options.user.as_deref().unwrap_or("0"))?;
        Ok(Filling { secrets: self.values, uid: user.uid, gid: user.gid })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// The environment of a command: variables that are secrets take the place of others, but for those of the command.
pub(super) fn without(env: &mut Vec<OsString>, key: &Key) {
    env.retain(|entry| entry.as_bytes().split(|b| *b == b'=').next() != Some(key.as_str().as_bytes()));
}

/// `KEY=VALUE` and a NUL. A newline at the end is of the file that the value was in.
pub(super) fn variable(key: &Key, value: &locked::Secret) -> Result<locked::Secret> {
    let bytes = value.expose_secret().bytes();
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if bytes.contains(&0) {
        return Err(not_a_variable(key, "it holds a NUL"));
    }
    let parts: [&[u8]; 4] = [key.as_str().as_bytes(), b"=", bytes, &[0]];
    let made = Locked::of(&parts).map_err(Error::sys("keep a secret in memory"))?;
    if made.bytes().len() > MAX_STRING {
        return Err(not_a_variable(key, "it is larger than 128 KiB"));
    }
    Ok(made.into_secret())
}

fn not_a_variable(key: &Key, why: &str) -> Error {
    let hint = format!("deliver it as a file alone: `{key}:file`");
    Error::secret(format!("the secret {key} cannot be a variable: {why}"), hint)
}

/// Fails for a value that cannot be delivered as it is to be.
fn check_value(key: &Key, secret: &Secret, value: &locked::Secret) -> Result<()> {
    if secret.delivery.is_env() { variable(key, value).map(drop) } else { Ok(()) }
}

fn read_value(key: &Key, input: &mut dyn Read) -> Result<locked::Secret> {
    sys::wipe::begin().map_err(Error::sys("hide this process"))?;
    let value = Locked::read(input, MAX_VALUE).map_err(|e| match e.kind() {
        std::io::ErrorKind::FileTooLarge => Error::secret(
            format!("the value of {key} is larger than {} KiB", MAX_VALUE >> 10),
            "keep large files in a data volume, or mount them with `--mount`",
        ),
        _ => Error::sys("read the value from standard input")(e),
    })?;
    if value.bytes().is_empty() {
        return Err(Error::secret(
            format!("the value of {key} is empty"),
            format!("write it to standard input: `spark secrets set {key} < FILE`, or give a reference"),
        ));
    }
    Ok(value.into_secret())
}

/// Asks for the value of a secret at the terminal, which does not show it.
///
/// # Errors
/// `usage` without a terminal, `secret` if nothing is typed.
pub fn ask_value(key: &Key) -> Result<Locked> {
    sys::wipe::begin().map_err(Error::sys("hide this process"))?;
    let read = format!("read it from a file or a pipe: `spark secrets set {key} < FILE`");
    let Some(terminal) = sys::ask::terminal() else {
        let message = format!("the value of `{key}` is asked for at a terminal, and there is none");
        return Err(Error::Usage { message, hint: Some(read) });
    };
    let question = format!("Value of {key}: ");
    sys::ask::ask(&terminal, &question)
        .map_err(|_| Error::secret(format!("no value of {key} was given"), read))
}

fn no_such(scope: &Scope, key: &Key, all: &Secrets) -> Error {
    let project = match scope {
        Scope::Project(project) => project,
        Scope::Spark(spark) => &spark.project,
    };
    Error::NotFound {
        kind: "secret",
        name: key.to_string(),
        in_project: Some(project.to_string()),
        near: super::near(key.as_str(), all.keys().map(Key::as_str)),
    }
}
