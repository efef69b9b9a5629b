//! Names of sparks: one process for each installation answers questions for them, in the network namespace of its router.
//!
//! Sparks ask 169.254.1.1, port 53, by UDP and TCP. The address is on the loopback device of the router, whoever has that made it.
//! A sender's address has to be the spark's own: who asks is known by it. What is answered to whom says `answer`.
//!
//! What commands call:
//!
//! | when | what |
//! |---|---|
//! | the router is there, and a spark is about to start or to be entered | [`Names::ensure_runs`] |
//! | before a spark runs | [`Names::enter`] |
//! | a running spark is renamed | [`Names::rename`] |
//! | a spark has ended | [`Names::leave`] |
//! | the router is removed | [`Names::end`] |
//!
//! Everything is in the directory `names` below `SPARK_RUN/net`, which root alone may enter. The caller of `enter`, `rename` and
//! `leave` holds the lock of the networks, so that nobody takes a spark's name or address in the middle.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::domain::name::Name;
use crate::domain::spark::Id;
use crate::error::{Error, Result};
use crate::sys;

mod answer;
mod clients;
mod message;
#[cfg(test)]
mod message_tests;
mod records;
mod serve;
mod servers;
mod start;
mod upstream;

pub use records::Record;
pub use servers::{Servers, for_spark};
pub use start::run;

/// What sparks ask.
pub const ADDRESS: Ipv4Addr = super::GATEWAY4;
/// The port of questions for names.
const PORT: u16 = upstream::PORT;

/// The file of the process that answers.
const RESOLVER: &str = "resolver";
/// The file with the host's resolvers.
const UPSTREAM: &str = "upstream";

/// The names of one installation's sparks.
#[derive(Debug, Clone)]
pub struct Names {
    dir: PathBuf,
    records: records::Records,
}

impl Names {
    /// Those of the installation whose networks are in `net`.
    #[must_use]
    pub fn of(net: &Path) -> Names {
        let dir = net.join("names");
        Names { records: records::Records::in_dir(&dir), dir }
    }

    /// Makes a spark known. Writes a bounded number of bytes, however many sparks there are.
    ///
    /// # Errors
    /// `io` if a file cannot be written.
    pub fn enter(&self, record: &Record) -> Result<()> {
        self.records.write(record)
    }

    /// Gives a spark that is known another name. Does nothing for one that is not.
    ///
    /// # Errors
    /// `io` if a file cannot be written or removed.
    pub fn rename(&self, id: &Id, address: Ipv4Addr, name: &Name) -> Result<()> {
        let Some(old) = self.known(id, address).filter(|old| old.name != *name) else { return Ok(()) };
        self.records.write(&Record { name: name.clone(), ..old.clone() })?;
        self.records.forget_name(&old)
    }

    /// Makes a spark unknown. Does nothing for one that is not known.
    ///
    /// # Errors
    /// `io` if a file cannot be removed.
    pub fn leave(&self, id: &Id, address: Ipv4Addr) -> Result<()> {
        self.known(id, address).map_or(Ok(()), |record| self.records.remove(&record))
    }

    /// Makes all sparks unknown but these, if `fix` is set. Returns the names of those.
    ///
    /// # Errors
    /// `io` if a file cannot be removed.
    pub fn forget_all_but(&self, ids: &HashSet<Id>, fix: bool) -> Result<Vec<String>> {
        let all = self.records.all().into_iter().filter(|record| !ids.contains(&record.id));
        let left: Vec<Record> = all.collect();
        if fix {
            left.iter().try_for_each(|record| self.records.remove(record))?;
        }
        Ok(left.into_iter().map(|record| record.name.to_string()).collect())
    }

    fn known(&self, id: &Id, address: Ipv4Addr) -> Option<Record> {
        self.records.of_address(address.into()).filter(|record| record.id == *id)
    }

    /// Makes sure that questions are answered in the network namespace `router`, by a process of `program` that outlives this
    /// one, and that the process knows the host's resolvers of this moment. To be called in the host's network namespace.
    ///
    /// # Errors
    /// `network` if the process could not be started.
    pub fn ensure_runs(&self, router: BorrowedFd<'_>, program: &Path) -> Result<()> {
        if !self.dir.is_dir() {
            // The directory above is closed to others, so that these need not be.
            let above = self.dir.parent().unwrap_or(&self.dir);
            sys::file::make_dirs(above, 0o700).map_err(Error::io("create", above))?;
            sys::file::make_dirs(&self.dir, 0o755).map_err(Error::io("create", &self.dir))?;
        }
        servers::update(&self.dir.join(UPSTREAM))?;
        start::ensure(&self.dir, router, program)
    }

    /// Whether questions are answered.
    #[must_use]
    pub fn runs(&self) -> bool {
        start::runs(&self.dir)
    }

    /// Whether questions are answered, and go on to the host's resolvers of this moment. Costs a look at three files.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.runs() && servers::is_current(&self.dir.join(UPSTREAM))
    }

    /// Ends the process that answers.
    ///
    /// # Errors
    /// `io` if its file cannot be removed.
    pub fn end(&self) -> Result<()> {
        let path = self.dir.join(RESOLVER);
        sys::file::remove(&path).map_err(Error::io("remove", path))
    }
}
