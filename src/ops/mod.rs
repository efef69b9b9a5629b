//! The operations: one file per verb. Everything that `spark` does, a program can do through [`Sparks`].

use std::path::PathBuf;

use crate::domain::name::{Name, SparkRef};
use crate::domain::place::Place;
use crate::error::{Error, Result};
use crate::pool::Pool;

pub mod base;
pub mod begin;
mod clone;
pub mod config;
pub mod connect;
pub mod cp;
pub mod create;
pub mod data;
mod defaults;
pub mod delete;
pub mod diff;
pub mod doctor;
pub mod du;
pub mod exec;
pub mod fork;
pub mod freeing;
pub mod gc;
mod git;
mod hosts;
mod identity;
mod image;
pub mod info;
pub mod list;
pub mod logs;
mod memory;
pub mod network;
pub mod oci;
mod origin;
pub mod pause;
pub mod pool;
mod ports;
pub mod project;
pub mod pull;
pub mod race;
pub mod rename;
mod room;
pub mod secrets;
mod service;
pub mod set;
pub mod snapshot;
pub mod spark;
pub mod start;
mod still;
pub mod stop;
pub mod top;
pub mod transfer;
pub mod tree;
pub mod undelete;

/// Where a command is run, and what it was told about that.
#[derive(Debug, Clone)]
pub struct Context {
    pub place: Place,
    /// `--project` or `SPARK_PROJECT`.
    pub project: Option<Name>,
    /// Where the repository is looked for. None if the working directory is gone.
    pub cwd: Option<PathBuf>,
    /// What happens where no project is named and the working directory does not tell which one is meant.
    pub lost: project::Lost,
    /// `SPARK_BASE`.
    pub base: Option<Name>,
    /// Where the host's own bundle templates are: `/etc/spark/bundles`.
    pub templates: PathBuf,
    /// What the sources of secrets are told.
    pub secrets: secrets::Settings,
    /// The `spark` program of this version. It is executed to read archives, images and streams, which fails without it, and
    /// to watch the room of a growing pool: without it commands look, and nothing does between them.
    pub program: Option<PathBuf>,
    /// Receives what the user should know of an operation that has no observer, such as the start of a spark that `exec` needs.
    pub warn: fn(&str),
}

/// Hears of long work: a face may show it.
pub trait Observer {
    /// A step begins. `total` is what `advance` counts up to: bytes, entries or percent.
    fn step(&self, what: &str, total: Option<u64>);
    /// How far the step is.
    fn advance(&self, done: u64);
    /// Something that the user should know, step or not.
    fn notice(&self, text: &str);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn step(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn notice(&self, _: &str) {}
}

/// The sparks of one installation, seen from one project.
#[derive(Debug)]
pub struct Sparks {
    pub(crate) pool: Pool,
    pub(crate) context: Context,
}

impl Sparks {
    /// Opens what is there. `None` if there is no pool yet.
    pub fn open(context: Context) -> Result<Option<Sparks>> {
        Ok(Pool::open(&context.place)?.map(|pool| Sparks { pool, context }))
    }

    /// Opens what is mounted, and mounts nothing.
    pub fn open_mounted(context: Context) -> Result<Option<Sparks>> {
        Ok(Pool::open_mounted(&context.place)?.map(|pool| Sparks { pool, context }))
    }

    /// Opens what is there, making the pool if there is none.
    pub fn open_or_init(context: Context, observer: &dyn Observer) -> Result<Sparks> {
        if let Some(pool) = Pool::open(&context.place)? {
            return Ok(Sparks { pool, context });
        }
        pool::tell_if_made(&context, observer);
        let (pool, new) = Pool::init(&context.place, &Default::default())?;
        if new {
            observer.notice(&format!("made a pool in {}", context.place.root.display()));
        }
        Ok(Sparks { pool, context })
    }

    /// What mounting the pool has found or done that the user has to know.
    pub fn notices(&self) -> &[String] {
        &self.pool.notices
    }

    /// The project of a reference: the one it names, else the one of the context.
    pub fn project_of(&self, spark: &SparkRef) -> Result<Name> {
        match &spark.project {
            Some(project) => Ok(project.clone()),
            None => self.project(),
        }
    }

    /// A spark that is not there, with names that look alike.
    pub(crate) fn no_such_spark(&self, project: &Name, name: &Name) -> Error {
        let names = crate::pool::names_in(&self.pool.paths.sparks(project)).unwrap_or_default();
        Error::NotFound {
            kind: "spark",
            name: name.to_string(),
            in_project: Some(project.to_string()),
            near: near(name.as_str(), names.iter().map(Name::as_str)),
        }
    }
}

/// Of `names`, those that look like `name`, best first.
pub(crate) fn near<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    // Two slips of the finger, or one in a short name; a swap of neighbours is one.
    let most = if name.len() <= 4 { 1 } else { 2 };
    let mut found: Vec<(usize, &str)> = names
        .map(|n| (strsim::damerau_levenshtein(name, n), n))
        .filter(|(slips, _)| *slips <= most)
        .collect();
    found.sort();
    found.into_iter().map(|(_, n)| n.to_owned()).take(3).collect()
}
