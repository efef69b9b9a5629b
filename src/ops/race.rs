//! A race: one command in each of several forks at once, and the best of them in the place of their origin.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::exec::{Command, Ended, PASSED_ON, Running};
use super::snapshot::{Files, Restored};
use super::spark::{Opened, SparkId};
use super::{Observer, Sparks, delete};
use crate::domain::name::{Name, SparkRef};
use crate::domain::place::SparkPaths;
use crate::domain::spark::{Id, Origin, SparkRecord};
use crate::error::{Error, Result};
use crate::fault;
use crate::sys::deadline::Attention;
use crate::sys::flock::Mode;
use crate::sys::held::Held;

/// What became of the command in one spark.
#[derive(Debug)]
pub struct Runner {
    pub spark: SparkId,
    pub ended: Result<Ended>,
    pub took: Duration,
}

/// A command that runs.
struct Started {
    place: usize,
    running: Running,
    at: Instant,
}

/// What a pick did.
#[derive(Debug, serde::Serialize)]
pub struct Picked {
    #[serde(flatten)]
    pub restored: Restored,
    /// The winner and the other runners, which are in the trash now.
    pub deleted: Vec<SparkId>,
    /// Data volumes that were copied for them. They stay, as all volumes do.
    pub copies: Vec<Name>,
}

impl Sparks {
    /// Runs a command in each of several sparks at once, and waits for all. What they write goes to their logs. Signals
    /// that would end this process are passed on to all, as `exec` does; what made them end is in what is returned.
    pub fn race(
        &self,
        sparks: &[SparkId],
        command: &Command,
        observer: &dyn Observer,
    ) -> Result<Vec<Runner>> {
        // Before the first command is there, so that none is left alone.
        let signals = Held::new(&PASSED_ON).map_err(Error::sys("catch signals"))?;
        let _attention = Attention::new().map_err(Error::sys("catch signals"))?;
        observer.step("running", Some(sparks.len() as u64));
        let mut done: Vec<Option<Runner>> = sparks.iter().map(|_| None).collect();
        let mut going = Vec::new();
        for (place, spark) in sparks.iter().enumerate() {
            let at = Instant::now();
            match self.exec_logged(spark, command) {
                Ok(running) => going.push(Started { place, running, at }),
                Err(e) => {
                    done[place] = Some(Runner { spark: spark.clone(), ended: Err(e), took: Duration::ZERO });
                }
            }
        }
        while !going.is_empty() {
            for ended in next_ended(&mut going, &signals) {
                let took = ended.at.elapsed();
                let how = ended.running.wait().map_err(Error::sys("wait for the command"));
                done[ended.place] = Some(Runner { spark: sparks[ended.place].clone(), ended: how, took });
            }
            observer.advance((sparks.len() - going.len()) as u64);
        }
        Ok(done.into_iter().flatten().collect())
    }

    /// Puts the files of a fork in the place of those of the spark that it was forked from, with those of data volumes that
    /// were copied for it, which can be undone, and moves the fork and those that were forked together with it to the trash.
    pub fn pick(&self, winner: &SparkRef, origin: &SparkRef, resume: bool) -> Result<Picked> {
        let (winner, origin) = (self.resolve(winner)?, self.resolve(origin)?);
        let (winner, origin) = self.open_both(&winner, &origin)?;
        self.with_service(origin, |origin| self.pick_opened(winner, origin, resume))
    }

    fn pick_opened(&self, winner: Opened, origin: &Opened, resume: bool) -> Result<Picked> {
        let race = race_of(&winner, origin)?;
        winner.refuse_damaged()?;
        // What it wrote is whole, then.
        self.end(&winner.record, Duration::ZERO)?;
        fault::point("pick.ended")?;
        let volumes = self.copies_of(&winner, origin)?;
        let source = Files { root: SparkPaths(&winner.dir).root(), volumes };
        let restored = self.replace_files(origin, &source, resume)?;
        fault::point("pick.replaced")?;
        let options = delete::Options { force: true, ..Default::default() };
        let mut copies = self.copies_in(&winner.id, &winner.record)?;
        self.delete_locked(&winner.id, options)?;
        let mut deleted = vec![winner.id];
        drop(winner.lock);
        for other in race.map(|race| self.runners(&deleted[0], &race)).transpose()?.unwrap_or_default() {
            copies.extend(self.copies_in(&other, &self.record(&other)?)?);
            self.delete(&other.reference(), options)?;
            deleted.push(other);
        }
        Ok(Picked { restored, deleted, copies })
    }

    /// The data volumes that were copied for a fork.
    fn copies_in(&self, fork: &SparkId, record: &SparkRecord) -> Result<Vec<Name>> {
        let names = record.options.volumes.iter().map(|attached| &attached.volume);
        let mut copies = Vec::new();
        for name in names {
            copies.extend(self.copied_from(fork, name)?.map(|_| name.clone()));
        }
        Ok(copies)
    }

    /// The sparks of one race, as far as their records can be read.
    fn runners(&self, winner: &SparkId, race: &Id) -> Result<Vec<SparkId>> {
        let all = self.sparks_of(&winner.project)?;
        let of_race = |spark: &SparkId| {
            let origin = self.record(spark).map(|r| r.origin);
            matches!(origin, Ok(Origin::Spark { race: Some(found), .. }) if found == *race)
        };
        Ok(all.into_iter().filter(of_race).collect())
    }

    /// Locks two sparks, in the same order whoever does it.
    fn open_both(&self, a: &SparkId, b: &SparkId) -> Result<(Opened, Opened)> {
        if a == b {
            return Err(Error::usage(format!("`{a}` cannot take its own place")));
        }
        if self.dir(a) < self.dir(b) {
            let a = self.open_spark(a, Mode::Exclusive)?;
            Ok((a, self.open_spark(b, Mode::Exclusive)?))
        } else {
            let b = self.open_spark(b, Mode::Exclusive)?;
            Ok((self.open_spark(a, Mode::Exclusive)?, b))
        }
    }
}

/// The race that the winner was in. None if it was forked alone.
fn race_of(winner: &Opened, origin: &Opened) -> Result<Option<Id>> {
    match &winner.record.origin {
        Origin::Spark { id, race, .. } if *id == origin.record.id => Ok(race.clone()),
        _ => Err(Error::WrongState {
            action: "pick",
            kind: "spark",
            name: winner.id.to_string(),
            state: format!("not a fork of `{}`", origin.id),
            hint: format!("see where it came from with `spark info {}`", winner.id),
        }),
    }
}

/// Waits for one to end or for a signal, which is passed on, and takes out those that have ended.
fn next_ended(going: &mut Vec<Started>, signals: &Held) -> Vec<Started> {
    let mut fds: Vec<PollFd<'_>> =
        going.iter().map(|s| PollFd::new(&s.running.pidfd, PollFlags::IN)).collect();
    fds.push(PollFd::new(signals, PollFlags::IN));
    // Interrupted, or without memory: looked at once more by the caller.
    let _ = rustix::event::poll(&mut fds, None);
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    if ready.last() == Some(&true)
        && let Ok(signal) = signals.next()
    {
        // One that has just ended needs none.
        going.iter().for_each(|s| drop(s.running.signal(signal)));
    }
    let mut ended = ready.into_iter();
    going.extract_if(.., |_| ended.next().unwrap_or(false)).collect()
}
