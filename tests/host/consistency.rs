//! Snapshots of what is at work: whatever somebody outside has seen committed before is in every fork of them, whole.
//!
//! The witness is not part of what is looked at: writers run inside a spark, but read their statements from the test and
//! answer each when it is committed, so that the test knows what has to be there.

#![allow(clippy::print_stderr)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::random::Random;
use crate::common::{Machine, wait_for};

const POOL: u64 = 16 << 30;
/// Snapshots that one run of a spark is given, which all of its forks are compared with.
const SNAPSHOTS: usize = 25;
/// Most acknowledgements between a snapshot and the next.
const APART: u64 = 100;

/// Something that keeps data, as scripts that run as root in a spark.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Store {
    /// Makes it ready in a new spark.
    pub(crate) prepare: &'static str,
    /// Starts it, for writers to come.
    pub(crate) start: &'static str,
    /// Keeps it busy for ever.
    pub(crate) load: Option<&'static str>,
    /// Reads statements, a line each, and answers each with its number once it is committed. `$1` is the writer.
    pub(crate) writer: &'static str,
    /// What a writer is to be told, by the writer and the number.
    pub(crate) statement: fn(usize, u64) -> String,
    /// Looks everything over, and prints `WRITER HOW-MANY LAST` of each writer's statements, and any damage.
    pub(crate) check: &'static str,
    pub(crate) writers: usize,
}

/// A machine with a spark `origin` in which a store has been made ready.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) machine: Machine,
    pub(crate) store: Store,
}

/// A spark `db` in which writers are at work.
#[derive(Debug)]
pub(crate) struct AtWork<'a> {
    subject: &'a Subject,
    writers: Vec<Writer>,
    load: Option<Child>,
}

/// A snapshot of it, and what each writer knew.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    pub(crate) name: String,
    /// Committed before the snapshot was asked for.
    before: Vec<u64>,
    /// Begun before it was done.
    after: Vec<u64>,
    during: (Instant, Instant),
}

#[derive(Debug)]
struct Writer {
    child: Child,
    thread: JoinHandle<()>,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    begun: AtomicU64,
    committed: AtomicU64,
    times: Mutex<Vec<Instant>>,
}

/// A machine with the base `databases`.
pub(crate) fn with_databases() -> Machine {
    let made =
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host/databases.sh")).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let archive = String::from_utf8(made.stdout).unwrap();
    let machine = Machine::with_pool(POOL);
    machine.spark(&["base", "import", archive.trim(), "databases"]).ok();
    machine
}

impl Subject {
    pub(crate) fn new(store: Store) -> Subject {
        let machine = with_databases();
        // With the host's network two databases would want one port.
        machine.spark(&["create", "origin", "--base", "databases", "--network", "none"]).ok();
        machine.spark(&["exec", "origin", "--", "sh", "-euc", store.prepare]).ok();
        machine.spark(&["stop", "origin"]).ok();
        Subject { machine, store }
    }

    /// Puts the writers to work in a new spark.
    pub(crate) fn begin(&self) -> AtWork<'_> {
        self.machine.spark(&["fork", "origin", "db"]).ok();
        self.machine.spark(&["exec", "db", "--", "sh", "-euc", self.store.start]).ok();
        let load = self.store.load.map(|script| {
            let mut load = self.machine.command(&["exec", "db", "--", "sh", "-euc", script]);
            load.stdout(Stdio::null()).stderr(self.log()).spawn().unwrap()
        });
        let writers = (0..self.store.writers).map(|number| self.writer(number)).collect();
        AtWork { subject: self, writers, load }
    }

    fn writer(&self, number: usize) -> Writer {
        let name = number.to_string();
        let mut child = self
            .machine
            .command(&["exec", "db", "--", "sh", "-euc", self.store.writer, "writer", &name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(self.log())
            .spawn()
            .unwrap();
        let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let seen = Arc::new(Seen::default());
        let (noted, statement) = (Arc::clone(&seen), self.store.statement);
        let thread = std::thread::spawn(move || {
            let mut answers = BufReader::new(output).lines();
            for id in 1.. {
                noted.begun.store(id, Ordering::SeqCst);
                let told = writeln!(input, "{}", statement(number, id));
                match answers.next() {
                    Some(Ok(answer)) if told.is_ok() && answer == id.to_string() => {
                        noted.committed.store(id, Ordering::SeqCst);
                        noted.times.lock().unwrap().push(Instant::now());
                    }
                    // It has ended, or refused: whoever waits for more finds out.
                    _ => return,
                }
            }
        });
        Writer { child, thread, seen }
    }

    fn log(&self) -> std::fs::File {
        std::fs::File::options().create(true).append(true).open(self.machine.work().join("log")).unwrap()
    }

    /// Forks a snapshot, does something to the files of the fork, starts what is in it and looks it over.
    pub(crate) fn verdict(&self, taken: &Taken, meddle: impl Fn(&Path)) -> Result<(), String> {
        let name = format!("of-{}", taken.name);
        self.machine.spark(&["fork", "--no-start", &format!("db@{}", taken.name), &name]).ok();
        meddle(&self.spark_dir(&name).join("root"));
        let check = self.machine.spark(&["exec", &name, "--", "sh", "-euc", self.store.check]);
        let verdict = match check.status() {
            0 => taken.compare(&check.stdout()),
            status => Err(format!("status {status}\n{}{}", check.stdout(), check.stderr())),
        };
        self.machine.spark(&["delete", "-f", "--now", &name]).ok();
        verdict
    }

    /// The files of a snapshot.
    pub(crate) fn snapshot(&self, taken: &Taken) -> std::path::PathBuf {
        self.spark_dir("db").join("snapshots").join(&taken.name).join("root")
    }

    fn spark_dir(&self, name: &str) -> std::path::PathBuf {
        self.machine.pool().join("projects/default/sparks").join(name)
    }

    /// All snapshots have to be in order. Two are looked at at a time.
    fn all_in_order(&self, all: &[Taken]) {
        let wrong: Vec<String> = std::thread::scope(|scope| {
            let halves = all.chunks(all.len().div_ceil(2)).map(|half| {
                scope.spawn(|| {
                    let verdicts = half.iter().map(|taken| (taken, self.verdict(taken, |_| {})));
                    verdicts.filter_map(|(t, v)| Some(format!("{t:?}: {}", v.err()?))).collect::<Vec<_>>()
                })
            });
            let halves: Vec<_> = halves.collect();
            halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
        });
        let shown = wrong.iter().take(3).cloned().collect::<String>();
        assert!(wrong.is_empty(), "{} of {}, such as\n{shown}", wrong.len(), all.len());
    }

    /// Many snapshots of it at work, at random moments; then each is forked and looked over. `SPARKS_TEST_ROUNDS` says
    /// how often.
    pub(crate) fn survives_snapshots_at_random_moments(&self) {
        let mut random = Random::seeded();
        let rounds = std::env::var("SPARKS_TEST_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
        for round in 1..=rounds {
            let at_work = self.begin();
            let all: Vec<Taken> = (1..=SNAPSHOTS)
                .map(|number| {
                    at_work.wait(1 + random.below(APART));
                    at_work.snapshot(&format!("s{number}"))
                })
                .collect();
            let pauses = at_work.end();
            eprintln!("round {round} of {rounds}: {}", summary(&all, &pauses));
            self.all_in_order(&all);
            self.machine.spark(&["delete", "--now", "db"]).ok();
        }
    }
}

impl AtWork<'_> {
    /// Waits until so many more statements have been committed, by whichever writers.
    pub(crate) fn wait(&self, more: u64) {
        let committed = || self.committed().iter().sum::<u64>();
        let goal = committed() + more;
        let log = || std::fs::read_to_string(self.subject.machine.work().join("log")).unwrap();
        assert!(wait_for(|| committed() >= goal), "nothing is committed any more:\n{}", log());
    }

    pub(crate) fn snapshot(&self, name: &str) -> Taken {
        let before = self.committed();
        let start = Instant::now();
        self.subject.machine.spark(&["snapshot", "create", "db", name]).ok();
        let during = (start, Instant::now());
        let after = self.writers.iter().map(|w| w.seen.begun.load(Ordering::SeqCst)).collect();
        Taken { name: name.to_owned(), before, after, during }
    }

    fn committed(&self) -> Vec<u64> {
        self.writers.iter().map(|w| w.seen.committed.load(Ordering::SeqCst)).collect()
    }

    /// Kills everything in the spark. Returns when each writer had something committed.
    pub(crate) fn end(mut self) -> Vec<Vec<Instant>> {
        self.subject.machine.spark(&["stop", "-t", "0", "db"]).ok();
        if let Some(load) = &mut self.load {
            load.wait().unwrap();
        }
        let times = self.writers.into_iter().map(|mut writer| {
            writer.thread.join().unwrap();
            writer.child.wait().unwrap();
            std::mem::take(&mut *writer.seen.times.lock().unwrap())
        });
        times.collect()
    }
}

impl Taken {
    /// What a fork has, compared with what was known: nothing that was committed is missing, none of the numbers between
    /// is, and nothing is there that was only begun later.
    fn compare(&self, printed: &str) -> Result<(), String> {
        let mut found = vec![0; self.before.len()];
        for line in printed.lines() {
            let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
            match numbers[..] {
                [writer, count, last] if count == last && (writer as usize) < found.len() => {
                    found[writer as usize] = last;
                }
                _ => return Err(format!("damaged: {printed}")),
            }
        }
        for (writer, found) in found.into_iter().enumerate() {
            let (before, after) = (self.before[writer], self.after[writer]);
            if found < before {
                return Err(format!("lost: writer {writer} has {found}, but saw {before} committed"));
            }
            if found > after {
                return Err(format!("of the future: writer {writer} has {found}, but had begun {after}"));
            }
        }
        Ok(())
    }
}

/// How long snapshots took, and how long writers waited at most for a commit, with one and without.
fn summary(all: &[Taken], writers: &[Vec<Instant>]) -> String {
    let mut took: Vec<Duration> = all.iter().map(|t| t.during.1 - t.during.0).collect();
    took.sort();
    let meets = |from: Instant, to: Instant| all.iter().any(|t| t.during.0 <= to && from <= t.during.1);
    let pauses = writers.iter().flat_map(|times| times.windows(2));
    let (with, without): (Vec<_>, Vec<_>) = pauses.map(|w| (w[0], w[1])).partition(|(a, b)| meets(*a, *b));
    let longest = |all: &[(Instant, Instant)]| all.iter().map(|(a, b)| *b - *a).max().unwrap_or_default();
    format!(
        "{} commits; snapshots took {:.0?} (median), {:.0?} (95 %); the longest wait for a commit was {:.0?} with one, \
         {:.0?} without",
        with.len() + without.len(),
        took[took.len() / 2],
        took[took.len() * 95 / 100],
        longest(&with),
        longest(&without),
    )
}

/// Puts a copy of one tree in place of another, as a backup that was not taken at one instant would have it.
pub(crate) fn replace(new: &Path, old: &Path) {
    std::fs::remove_dir_all(old).unwrap();
    let copied = Command::new("cp").arg("-a").arg(new).arg(old).status().unwrap();
    assert!(copied.success());
}
