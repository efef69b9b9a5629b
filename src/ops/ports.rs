//! Published ports of sparks: `-p` and `spark port`.

use super::origin::Found;
use super::{Observer, Sparks};
use crate::domain::name::{Name, SparkRef};
use crate::domain::options::{Changes, Network};
use crate::domain::place::SparkPaths;
use crate::domain::port::{self, Closing, Published};
use crate::domain::spark::{Id, SparkRecord};
use crate::error::{Error, Result};
use crate::net::{Member, Settled};
use crate::pool::record;
use crate::sys::flock::Mode;

impl Sparks {
    /// The published ports of a spark.
    pub fn ports(&self, spark: &SparkRef) -> Result<Vec<Published>> {
        Ok(self.record(&self.resolve(spark)?)?.options.ports)
    }

    /// The published ports of all sparks of the project, by name.
    pub fn all_ports(&self) -> Result<Vec<(Name, Published)>> {
        let mut all = Vec::new();
        for spark in self.sparks_of(&self.project()?)? {
            match self.record(&spark) {
                Ok(record) => all.extend(record.options.ports.into_iter().map(|p| (spark.name.clone(), p))),
                // It has none that anybody could know of.
                Err(e) => tracing::warn!("no ports of {}: {e}", spark.name),
            }
        }
        Ok(all)
    }

    /// Chooses free ports of the host for those of a new spark that name none.
    ///
    /// # Errors
    /// `network` if one is taken, naming who has it.
    pub(super) fn settle_ports(&self, changes: &mut Changes, id: &Id) -> Result<()> {
        let settled = self.nets().settle_ports(&changes.ports, &changes.chosen_ports, id)?;
        (changes.ports, changes.chosen_ports) = (settled.ports, settled.chosen);
        Ok(())
    }

    /// Publishes more ports of a spark, at once if it runs.
    ///
    /// # Errors
    /// `network` if one is taken, naming who has it: then none is published.
    pub fn open_ports(&self, spark: &SparkRef, ports: &[Published], observer: &dyn Observer) -> Result<()> {
        let (before, record) = self.change_ports(spark, |had| {
            // What is named now is not chosen any more.
            had.chosen.retain(|port| !ports.contains(port));
            had.ports.retain(|port| !ports.contains(port));
            had.ports.extend_from_slice(ports);
            Ok(())
        })?;
        let new = port::without(&record.options.ports, &before.options.ports);
        tell(&spark.name, &new, self.live(&record).is_some(), observer);
        Ok(())
    }

    /// Takes ports of a spark back. Connections that are open stay open.
    pub fn close_ports(&self, spark: &SparkRef, ports: &[Closing]) -> Result<()> {
        let close = |had: &mut Settled| {
            for closing in ports {
                let closed = closing.among(&had.ports).map_err(|why| Error::Network {
                    what: format!("`{spark}`: {why}"),
                    hint: Some(format!("see what it publishes with `spark port list {spark}`")),
                })?;
                had.ports.retain(|port| !closed.contains(port));
            }
            Ok(())
        };
        self.change_ports(spark, close).map(drop)
    }

    /// Returns the record before and after.
    fn change_ports(
        &self,
        spark: &SparkRef,
        change: impl FnOnce(&mut Settled) -> Result<()>,
    ) -> Result<(SparkRecord, SparkRecord)> {
        let mut opened = self.open_spark(&self.resolve(spark)?, Mode::Exclusive)?;
        let network = opened.record.options.network;
        if network != Network::Project {
            return Err(Error::WrongState {
                action: "publish ports of",
                kind: "spark",
                name: spark.to_string(),
                state: format!("made with `--network {network}`"),
                hint: "only sparks in their project's network have published ports: make it with `--network project`"
                    .into(),
            });
        }
        let before = opened.record.clone();
        let options = &mut opened.record.options;
        let mut wanted = Settled { ports: options.ports.clone(), chosen: options.chosen_ports.clone() };
        change(&mut wanted)?;
        let id = opened.record.id.clone();
        let settled = self.nets().settle_ports(&wanted.ports, &wanted.chosen, &id)?;
        let path = SparkPaths(&opened.dir).record();
        let record_as = |record: &mut SparkRecord, settled: &Settled| {
            record.options.ports.clone_from(&settled.ports);
            record.options.chosen_ports.clone_from(&settled.chosen);
            record::replace(&path, record)
        };
        record_as(&mut opened.record, &settled)?;
        crate::fault::point("port.recorded")?;
        let published = self.nets().publish(&id, &settled).and_then(|got| match got {
            // Somebody was quicker, and others were chosen.
            Some(got) if got != settled => record_as(&mut opened.record, &got),
            _ => Ok(()),
        });
        published.map_err(|first| match record::replace(&path, &before) {
            Ok(()) => first,
            Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
        })?;
        Ok((before, opened.record))
    }

    /// Tells where the ports of a new spark lead from.
    pub(super) fn tell_published(
        &self,
        spark: &super::spark::SparkId,
        started: bool,
        observer: &dyn Observer,
    ) {
        // As they were chosen in the end.
        if let Ok(record) = self.record(spark) {
            tell(&spark.name, &record.options.ports, started, observer);
        }
    }
}

fn tell(name: &Name, ports: &[Published], runs: bool, observer: &dyn Observer) {
    let when = if runs { "published on" } else { "from its next start on, published on" };
    for line in port::by_address(ports) {
        observer.notice(&format!("{name}: {when} {line}"));
    }
}

/// Says which ports a spark that starts has in the place of others.
pub(super) fn chosen_anew(record: &SparkRecord, member: &Member) -> String {
    let had = &record.options.ports;
    let (gone, new) = (port::without(had, &member.ports), port::without(&member.ports, had));
    format!(
        "{}: {} is taken; published instead on {}",
        member.name,
        port::ranges(&gone).join(", "),
        port::by_address(&new).join("; "),
    )
}

impl Found {
    /// Says which ports a new spark does not get.
    pub(super) fn tell_ports(&self, record: &SparkRecord, observer: &dyn Observer) {
        let lost = port::without(&self.options.ports, &record.options.ports);
        if !lost.is_empty() && !record.ephemeral {
            observer.notice(&format!(
                "not published for the new spark, but still for its origin: {}",
                port::ranges(&lost).join(", ")
            ));
        }
    }
}
