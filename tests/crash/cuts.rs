//! Replays a recording to power cuts, and looks at what they leave.

use std::collections::BTreeSet;

use crate::common::random::Random;
use crate::disk::{self, Content, Disks, Event, Replay};
use crate::record::{NUMBERS, Recording, record};
use crate::state::{self, State};

/// Cuts of one recording.
const CUTS: usize = 150;
const COMMANDS: usize = 60;

/// What a cut left that it should not have.
struct Harm {
    /// What is missing, or why it cannot be mounted, and the commands around the cut.
    what: Vec<String>,
    is_unmountable: bool,
}

/// Where to cut: around the writes of superblocks, which end commits and fsyncs, and anywhere.
fn positions(events: &[Event], count: usize, random: &mut Random) -> BTreeSet<usize> {
    let mut near = Vec::new();
    for (at, _) in events.iter().enumerate().filter(|(_, event)| event.is_superblock()) {
        // Before the flush that goes before it, between the two, after it, after the flush that follows it.
        near.extend([at.saturating_sub(1), at, at + 1, at + 2].map(|at| at.min(events.len())));
    }
    let mut chosen = BTreeSet::from([events.len()]);
    let most = count.min(events.len());
    while chosen.len() < most {
        chosen.insert(match random.below(4) {
            0 => random.below(events.len() as u64 + 1) as usize,
            _ => near[random.below(near.len() as u64) as usize],
        });
    }
    chosen
}

impl Recording {
    /// The state that was acknowledged at a position, and the next, which a command was about to make.
    fn states_at(&self, position: usize) -> (&State, &State) {
        let next = self.states.partition_point(|(at, _)| *at <= position);
        let old = &self.states[next.saturating_sub(1)].1;
        (old, self.states.get(next).map_or(old, |(_, state)| state))
    }

    /// The commands that had returned shortly before a position, and that which had not.
    fn around(&self, position: usize) -> &[String] {
        let next = self.states.partition_point(|(at, _)| *at <= position);
        &self.said[next.saturating_sub(6)..self.said.len().min(next + 1)]
    }

    /// Replays to `count` cuts and looks at each. `flushes`: as they happened, or as a disk has them that lies.
    fn cut(&self, disks: &Disks, count: usize, random: &mut Random, flushes: bool) -> (usize, Vec<Harm>) {
        let mut replay = Replay::from(self.start.clone());
        let positions = positions(&self.events, count, random);
        let mut harms = Vec::new();
        for (position, event) in self.events.iter().map(Some).chain([None]).enumerate() {
            if positions.contains(&position) {
                // All of it, nothing, and mostly some of it.
                let part = random.of(&[0, 1, 2, 2, 3, 4]);
                let left = replay.cut(|| random.below(4) < part);
                harms.extend(self.look(disks, position, left));
            }
            if let Some(event) = event.filter(|event| flushes || !matches!(event, Event::Flush)) {
                replay.pass(event);
            }
        }
        (positions.len(), harms)
    }

    fn look(&self, disks: &Disks, position: usize, left: Content) -> Option<Harm> {
        let at = tempfile::Builder::new().prefix("sparks-test-").tempdir().unwrap();
        let (number, path) = disks.plug(left, false);
        let mounted = disk::mount(&path, at.path());
        let is_unmountable = mounted.is_err();
        let mut what = match mounted {
            Err(why) => vec![why],
            Ok(()) => {
                let (old, new) = self.states_at(position);
                let mut what = state::missing(old, new, &state::read(at.path()));
                let written = self.numbers.partition_point(|(at, _)| *at <= position);
                let synced = self.numbers[written - 1].1;
                let found = std::fs::read(at.path().join(NUMBERS)).unwrap_or_default();
                let found = found.try_into().map_or(0, u64::from_le_bytes);
                if found < synced {
                    what.push(format!("{synced} had been synced, and {found} is there"));
                }
                disk::unmount(at.path());
                what
            }
        };
        disks.unplug(number);
        if what.is_empty() {
            return None;
        }
        what.push(format!("cut at {position}, after and during:"));
        what.extend_from_slice(self.around(position));
        Some(Harm { what, is_unmountable })
    }
}

/// As many recordings as `tests/run.sh --full` asks for.
fn rounds() -> usize {
    std::env::var("SPARKS_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

#[test]
fn after_any_power_cut_the_pool_mounts_and_has_all_that_was_acknowledged() {
    let mut random = Random::seeded();
    let disks = Disks::new();
    for round in 0..rounds() {
        let recording = record(&disks, |commands| {
            for number in 1..=COMMANDS {
                commands.run_any(&mut random, number);
            }
        });
        let (count, harms) = recording.cut(&disks, CUTS, &mut random, true);
        eprintln!("round {round}: {} events, {count} cuts", recording.events.len());
        let said: Vec<_> = harms.iter().map(|harm| harm.what.join("\n")).collect();
        assert!(harms.is_empty(), "{} of {count} cuts did harm:\n{}", harms.len(), said.join("\n\n"));
    }
}

/// A test that asks less of the disk than the pool does would pass without a flush.
#[test]
fn on_a_disk_that_lies_about_flushes_a_power_cut_loses_what_was_acknowledged() {
    let mut random = Random::seeded();
    let disks = Disks::new();
    let recording = record(&disks, |commands| {
        for number in 1..=10 {
            commands.run_any(&mut random, number);
        }
    });
    let (count, harms) = recording.cut(&disks, 20, &mut random, false);
    eprintln!("{} of {count} cuts did harm", harms.len());
    assert!(!harms.is_empty(), "no harm in {count} cuts");
}

/// A pool that cannot be mounted, since no commit came between the deletion of a subvolume and the removal of the
/// directory that it was in.
pub(crate) fn unmountable(disks: &Disks) -> Content {
    let recording = record(disks, |commands| {
        for name in ["ant", "bee", "cat"] {
            assert!(commands.run(&format!("create {name} --no-start"), None));
        }
        for line in ["delete ant", "delete --now bee", "set cat --label x=y"] {
            assert!(commands.run(line, Some("destroy.commit=skip")), "{line}");
        }
    });
    let mut replay = Replay::from(recording.start.clone());
    for event in &recording.events {
        replay.pass(event);
        if !matches!(event, Event::Flush) {
            continue;
        }
        let left = replay.cut(|| true);
        if let Some(Harm { is_unmountable: true, .. }) = recording.look(disks, 0, left.clone()) {
            return left;
        }
    }
    panic!("every cut mounts: has this kernel's btrfs been mended?\n{}", recording.said.join("\n"));
}

#[test]
fn without_the_commit_between_subvolumes_and_directories_a_pool_cannot_be_mounted() {
    let disks = Disks::new();
    unmountable(&disks);
}
