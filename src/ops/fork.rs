//! `fork`: new sparks from one that is there, whatever it is doing.

use super::create::{New, Source, record_of, resolved, taken};
use super::secrets::Given;
use super::spark::SparkId;
use super::{Observer, Sparks, delete};
use crate::domain::name::{Name, SourceRef, SparkRef};
use crate::domain::options::Changes;
use crate::domain::spark::{Id, Origin};
use crate::error::{Error, Result};
use crate::pool::btrfs;

/// Most forks of one command: what a host may reasonably run.
pub const MOST: u32 = 10_000;

/// What to make.
#[derive(Debug, Clone)]
pub struct Request {
    pub source: SourceRef,
    pub name: SparkRef,
    /// Makes NAME-1 and so on instead of NAME.
    pub count: Option<u32>,
    /// Laid over the options of the source.
    pub changes: Changes,
    /// Whether to start them too.
    pub start: bool,
}

/// One fork, made or not.
#[derive(Debug)]
pub struct Forked {
    pub spark: SparkId,
    pub made: Result<()>,
}

impl Sparks {
    /// Makes forks of a spark or a snapshot. All of them start from one and the same moment. A name that is taken
    /// fails the whole before anything is made; any other failure is that of one fork.
    pub fn fork(&self, request: Request, observer: &dyn Observer) -> Result<Vec<Forked>> {
        let _room = self.room()?;
        let names = names(&request)?;
        let mut sparks = Vec::with_capacity(names.len());
        for name in &names {
            name.check_for_spark()?;
            let project = self.project_of(&SparkRef { name: name.clone(), ..request.name.clone() })?;
            let spark = SparkId { project, name: name.clone() };
            if self.dir(&spark).exists() {
                return Err(taken(&spark));
            }
            self.refuse_host_entries(&spark, &request.changes.add_host)?;
            sparks.push(spark);
        }
        let mut changes = resolved(request.changes)?;
        refuse_ports_of_many(&changes, names.len())?;
        // What is wrong with them, before anything is made. Each fork has others.
        self.settle_ports(&mut changes.clone(), &Id::generate())?;
        let mut found = self.find_source(&Source::Spark(request.source), observer)?;
        self.check_new(&mut changes, &found)?;
        let project = self.ensure_project_of(&request.name)?;
        self.ensure_volumes(&project, &changes.volumes, observer)?;
        let divided = self.divide(&mut found, &project, &changes)?;
        let moment = self.pool.stage()?;
        if let Origin::Spark { race, snapshot, .. } = &mut found.origin
            && request.count.is_some()
        {
            *race = Some(Id::generate());
            if snapshot.is_none() && divided.is_none() {
                let root = moment.path().join("root");
                let still = self.hold_still(found.at_work.take().as_ref())?;
                btrfs::snapshot_read_only(&found.root, &root)?;
                drop(still);
                found.root = root;
                found.opened = None;
            }
        }
        // All forks have the same secrets: one answer is for all of them.
        let given = match request.start {
            true => self.give(&project, &changes.clone().over(found.options.clone()))?,
            false => Given::default(),
        };
        found.tell_ports(&record_of(Id::generate(), &found, changes.clone(), false), observer);
        observer.step("forking", request.count.map(u64::from));
        let mut forks: Vec<Forked> = Vec::with_capacity(sparks.len());
        for mut spark in sparks {
            spark.project = project.clone();
            let id = Id::generate();
            let mut own = changes.clone();
            self.settle_ports(&mut own, &id)?;
            let mut record = record_of(id, &found, own, false);
            self.name_copies(&spark, &mut record, &found)?;
            self.give_address(&spark.project, &mut record)?;
            let given = given.clone();
            let new = New { record: &record, cloning: None, start: request.start, given };
            let made = self.create_from(&spark, &new, &found);
            if let Err(e @ Error::Exists { .. }) = made {
                // Somebody took a name meanwhile.
                return Err(self.take_back(&forks, e));
            }
            if made.is_ok() {
                found.tell_copies(&record, observer);
                self.tell_published(&spark, request.start, observer);
            }
            forks.push(Forked { spark, made });
            observer.advance(forks.len() as u64);
        }
        Ok(forks)
    }

    fn take_back(&self, forks: &[Forked], first: Error) -> Error {
        for fork in forks.iter().filter(|f| f.made.is_ok()) {
            let options = delete::Options { force: true, now: true, ..Default::default() };
            if let Err(undo) = self.delete(&fork.spark.reference(), options) {
                return Error::Undo { first: first.into(), undo: undo.into() };
            }
        }
        first
    }
}

/// Ports that only one of several could have.
fn refuse_ports_of_many(changes: &Changes, forks: usize) -> Result<()> {
    match changes.ports.iter().find(|port| !port.is_open()) {
        Some(port) if forks > 1 => Err(Error::Usage {
            message: format!("{forks} forks cannot have one port of the host"),
            hint: Some(format!("with `-p {}`, each of them gets a free one", port.spark)),
        }),
        _ => Ok(()),
    }
}

fn names(request: &Request) -> Result<Vec<Name>> {
    match request.count {
        None => Ok(vec![request.name.name.clone()]),
        Some(count) if (1..=MOST).contains(&count) => {
            let numbered = |n| Ok(format!("{}-{n}", request.name.name).parse()?);
            (1..=count).map(numbered).collect()
        }
        Some(count) => Err(Error::usage(format!("{count} is not a number of forks: 1 to {MOST}"))),
    }
}
