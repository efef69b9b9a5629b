//! Commands killed at random moments: nothing that was acknowledged is lost, and nothing is left over.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use sparks::sys::process as sys;

use crate::common::random::Random;
use crate::common::{Machine, processes, wait_for};
use crate::leftovers;

const ROUNDS: u32 = 100;
const NAMES: [&str; 3] = ["ant", "bee", "cat"];

/// What is known of a spark.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    id: String,
    /// None after a stop that was killed: PID 1 may have been told to end, and do so a moment later.
    running: Option<bool>,
    /// What was written into it and acknowledged.
    marker: u32,
    /// The same of its snapshot `s`, if it has that.
    snapshot: Option<u32>,
}

/// Everything by name, and the trash.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Model {
    sparks: BTreeMap<String, Known>,
    trash: BTreeMap<String, Vec<Known>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Create,
    Mark,
    Stop,
    Resume,
    Delete,
    Undelete,
    Rename,
    Ephemeral,
    Snapshot,
    Restore,
    Fork,
    Gc,
}

struct Round {
    verb: Verb,
    name: &'static str,
    to: &'static str,
    number: u32,
}

impl Round {
    fn args(&self) -> Vec<String> {
        let mark = format!("echo {} > /marker.new && mv /marker.new /marker", self.number);
        let words: Vec<&str> = match self.verb {
            Verb::Create => vec!["create", self.name],
            Verb::Mark => vec!["exec", self.name, "--", "sh", "-c", &mark],
            Verb::Stop => vec!["stop", self.name],
            Verb::Resume => vec!["resume", self.name],
            Verb::Delete => vec!["delete", "-f", self.name],
            Verb::Undelete => vec!["undelete", self.name],
            Verb::Rename => vec!["rename", self.name, self.to],
            Verb::Ephemeral => vec!["exec", "-", "--", "true"],
            Verb::Snapshot => vec!["snapshot", "create", self.name, "s"],
            Verb::Restore => vec!["snapshot", "restore", self.name, "s"],
            Verb::Fork => vec!["fork", self.name, self.to],
            Verb::Gc => vec!["gc"],
        };
        words.into_iter().map(str::to_owned).collect()
    }

    /// The spark that appears or changes.
    fn subject(&self) -> &'static str {
        if self.verb == Verb::Fork { self.to } else { self.name }
    }

    /// The model after the command has done its work; none if it has to fail.
    fn done(&self, before: &Model, made: Option<Known>) -> Option<Model> {
        let mut after = before.clone();
        let (name, to) = (self.name.to_owned(), self.to.to_owned());
        match self.verb {
            Verb::Create if before.sparks.contains_key(&name) => return None,
            Verb::Create => drop(
                after.sparks.insert(name, Known { running: Some(true), marker: 0, snapshot: None, ..made? }),
            ),
            Verb::Mark => {
                let spark = after.sparks.get_mut(&name)?;
                (spark.running, spark.marker) = (Some(true), self.number);
            }
            Verb::Stop => after.sparks.get_mut(&name)?.running = Some(false),
            Verb::Resume => after.sparks.get_mut(&name)?.running = Some(true),
            Verb::Delete => {
                let gone = after.sparks.remove(&name)?;
                after.trash.entry(name).or_default().push(Known { running: Some(false), ..gone });
            }
            Verb::Undelete if before.sparks.contains_key(&name) => return None,
            Verb::Undelete => {
                let back = after.trash.get_mut(&name)?.pop()?;
                after.sparks.insert(name, back);
            }
            Verb::Rename if before.sparks.contains_key(&to) => return None,
            Verb::Rename => {
                let spark = after.sparks.remove(&name)?;
                after.sparks.insert(to, spark);
            }
            Verb::Snapshot => {
                let spark = after.sparks.get_mut(&name).filter(|s| s.snapshot.is_none())?;
                spark.snapshot = Some(spark.marker);
            }
            Verb::Restore => {
                let spark = after.sparks.get_mut(&name)?;
                spark.marker = spark.snapshot?;
            }
            Verb::Fork if before.sparks.contains_key(&to) => return None,
            Verb::Fork => {
                let marker = before.sparks.get(&name)?.marker;
                after.sparks.insert(to, Known { running: Some(true), marker, snapshot: None, ..made? });
            }
            Verb::Ephemeral | Verb::Gc => {}
        }
        after.trash.retain(|_, all| !all.is_empty());
        Some(after)
    }
}

/// What is really there: read from the files, so that looking starts nothing.
fn look(machine: &Machine) -> Model {
    let mut model = Model::default();
    let marker = |root: &std::path::Path| -> u32 {
        let text = std::fs::read_to_string(root.join("marker")).unwrap_or_else(|_| "0".into());
        text.trim().parse().unwrap_or_else(|_| panic!("a torn marker: {text:?}"))
    };
    let kept = |spark: &std::path::Path| {
        let root = spark.join("snapshots/s/root");
        root.exists().then(|| marker(&root))
    };
    for row in machine.spark(&["--json", "list"]).json().as_array().unwrap() {
        assert!(row["broken"].is_null(), "{row}");
        let name = row["name"].as_str().unwrap().to_owned();
        let id = row["id"].as_str().unwrap().to_owned();
        let dir = machine.pool().join("projects/default/sparks").join(&name);
        let running = Some(row["state"] == "running");
        model
            .sparks
            .insert(name, Known { running, marker: marker(&dir.join("root")), snapshot: kept(&dir), id });
    }
    for row in machine.spark(&["--json", "list", "--deleted"]).json().as_array().unwrap() {
        let dir = machine.pool().join("trash").join(row["id"].as_str().unwrap());
        let record = std::fs::read(dir.join("spark.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let id = record["id"].as_str().unwrap().to_owned();
        let known =
            Known { running: Some(false), marker: marker(&dir.join("root")), snapshot: kept(&dir), id };
        model.trash.entry(row["name"].as_str().unwrap().to_owned()).or_default().push(known);
    }
    model
}

/// What was found, but for what is in doubt.
fn keep_doubts(mut found: Model, known: &Model) -> Model {
    for spark in found.sparks.values_mut() {
        if known.sparks.values().any(|k| k.id == spark.id && k.running.is_none()) {
            spark.running = None;
        }
    }
    found
}

/// Whether two are one, but for what is in doubt in either.
fn alike(a: &Model, b: &Model) -> bool {
    keep_doubts(a.clone(), b) == keep_doubts(b.clone(), a)
}

/// Whom to kill, if anybody.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Nobody,
    Command,
    /// A child of the command: the helper that starts a container, or the command inside.
    Child,
    Both,
}

fn children(pid: u32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|p| p.parse().ok()).collect()
}

/// Waits for the moment, kills, and waits for the end. Says whether the command succeeded.
fn kill_at(child: &mut Child, victim: Victim, moment: Duration) -> bool {
    let end = Instant::now() + moment;
    // The moment is a part of a millisecond: nothing that could be waited for instead.
    while Instant::now() < end {
        std::thread::sleep(Duration::from_micros(100));
    }
    // Stopped while its children are found and killed: else their numbers could be another's by then.
    let pidfd = sys::pidfd_open(child.id() as i32).unwrap();
    let kill = |fd: &std::os::fd::OwnedFd| drop(sys::signal(fd, rustix::process::Signal::KILL));
    if matches!(victim, Victim::Child | Victim::Both) {
        for pid in children(child.id()) {
            let Ok(fd) = sys::pidfd_open(pid) else { continue };
            if children(child.id()).contains(&pid) {
                kill(&fd);
            }
        }
    }
    if matches!(victim, Victim::Command | Victim::Both) {
        kill(&pidfd);
    }
    let ended = wait_for(|| sparks::sys::deadline::ended(&pidfd, Duration::from_millis(100)).unwrap());
    if !ended {
        kill(&pidfd);
        panic!("the command hangs");
    }
    child.wait().unwrap().success()
}

/// Waits until nothing of a killed command goes on by itself: a helper, or the command inside.
fn settle(machine: &Machine) {
    let pool = &machine.pool();
    for dir in ["projects/default/sparks", "trash", "staging"] {
        for entry in std::fs::read_dir(pool.join(dir)).into_iter().flatten().flatten() {
            drop(sparks::sys::flock::lock_dir(&entry.path(), sparks::sys::flock::Mode::Exclusive));
        }
    }
    for id in crate::common::containers(&machine.place().run) {
        let about = |pid: i32| {
            let read =
                |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            format!("{pid} {:?} {} {}", read("cmdline"), read("wchan"), read("syscall"))
        };
        let all = || processes(&id).into_iter().map(about).collect::<Vec<_>>();
        assert!(wait_for(|| processes(&id).len() <= 1), "{id}: {:#?}", all());
    }
}

#[test]
fn a_hundred_kills_at_random_moments_lose_nothing_that_was_acknowledged() {
    let mut random = Random::seeded();
    let machine = Machine::new().with_base();
    let cgroups = leftovers::all_cgroups();
    let mut model = Model::default();
    let (mut kills, mut number, mut interrupted) = (0, 0, 0);
    let all = [
        Verb::Create,
        Verb::Create,
        Verb::Mark,
        Verb::Mark,
        Verb::Stop,
        Verb::Resume,
        Verb::Delete,
        Verb::Undelete,
        Verb::Rename,
        Verb::Ephemeral,
        Verb::Snapshot,
        Verb::Snapshot,
        Verb::Restore,
        Verb::Fork,
        Verb::Gc,
    ];
    let mut usual: BTreeMap<String, Duration> = BTreeMap::new();
    while kills < ROUNDS {
        number += 1;
        let round = Round { verb: random.of(&all), name: random.of(&NAMES), to: random.of(&NAMES), number };
        let victim =
            random.of(&[Victim::Nobody, Victim::Command, Victim::Command, Victim::Child, Victim::Both]);
        let any = Known { id: String::new(), running: Some(true), marker: 0, snapshot: None };
        if round.done(&model, Some(any)).is_none() {
            continue;
        }
        let args = round.args();
        let longest = usual.get(&args[0]).copied().unwrap_or(Duration::from_millis(40)) * 5 / 4;
        let moment = longest * random.below(1000) as u32 / 1000;
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let begun = Instant::now();
        let mut command = machine.command(&words);
        let mut child = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let victimless = matches!(victim, Victim::Nobody);
        let succeeded = kill_at(&mut child, victim, if victimless { Duration::ZERO } else { moment });
        if victimless {
            // The quickest: by one that was slow for once, later kills would come too late.
            let took = begun.elapsed();
            usual.entry(args[0].clone()).and_modify(|usual| *usual = took.min(*usual)).or_insert(took);
        } else {
            kills += 1;
            interrupted += u32::from(!succeeded);
        }
        eprintln!("{words:?}, {victim:?} after {moment:?}, success {succeeded}");
        settle(&machine);

        let found = look(&machine);
        let made = found.sparks.get(round.subject()).cloned();
        let done = round.done(&model, made);
        let says =
            format!("{words:?}, {victim:?} after {moment:?}, success {succeeded}\n{model:#?}\n{found:#?}");
        if succeeded {
            assert!(done.as_ref().is_some_and(|done| alike(&found, done)), "{says}");
        } else {
            assert!(!victimless, "{says}");
            assert_unharmed(&round, &model, &found, done.as_ref(), &says);
        }
        let unsure = !succeeded && matches!(round.verb, Verb::Stop | Verb::Delete | Verb::Restore);
        model = keep_doubts(found, &done.filter(|_| succeeded).unwrap_or(model));
        if let Some(spark) = model.sparks.get_mut(round.name).filter(|_| unsure) {
            spark.running = None;
        }
    }
    assert!(interrupted > ROUNDS / 4, "only {interrupted} of {kills} kills hit anything");
    leftovers::none_after_gc(&machine, &cgroups);
    let found = look(&machine);
    assert!(alike(&found, &model), "{found:#?}\n{model:#?}");
    for (name, spark) in &model.sparks {
        let said = machine.spark(&["exec", name, "--", "sh", "-c", "cat /marker 2>/dev/null || echo 0"]).ok();
        assert_eq!(said.trim(), spark.marker.to_string());
    }
}

#[test]
fn gc_removes_the_files_that_a_killed_command_was_writing_and_no_others() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "ant", "--no-start"]).ok();
    let mut writer = std::process::Command::new("true").spawn().unwrap();
    let (gone, alive) = (writer.id(), std::process::id());
    writer.wait().unwrap();
    let pool = machine.pool();
    let dirs = [
        machine.place().state(),
        machine.place().index(),
        machine.place().ephemeral(),
        pool.clone(),
        pool.join("projects/default"),
        pool.join("projects/default/sparks/ant"),
        pool.join("bases/minimal"),
        machine.place().run.join("net/members"),
    ];
    for dir in &dirs {
        std::fs::create_dir_all(dir).unwrap();
        for pid in [gone, alive] {
            std::fs::write(dir.join(format!(".new-{pid}-abc")), "half").unwrap();
        }
    }
    // All installations share this one.
    let shared = Path::new("/run/spark-nets").join(format!(".new-{gone}-abc"));
    std::fs::create_dir_all("/run/spark-nets").unwrap();
    std::fs::write(&shared, "half").unwrap();
    // A claim on a port by a spark that is gone, and one that was being written.
    let ports = Path::new("/run/spark-nets/ports");
    std::fs::create_dir_all(ports).unwrap();
    let claims = [ports.join("127.0.0.1:9:9"), ports.join(format!(".new-{gone}-abc"))];
    for claim in &claims {
        std::fs::write(claim, machine.place().run.join("net/members/gone").as_os_str().as_encoded_bytes())
            .unwrap();
    }
    let found = machine.spark(&["--json", "gc"]).json();
    assert_eq!(found.as_array().unwrap().len(), dirs.len(), "{found}");
    assert!(!shared.exists());
    assert!(claims.iter().all(|claim| !claim.exists()), "{claims:?}");
    for dir in dirs {
        assert!(!dir.join(format!(".new-{gone}-abc")).exists(), "{}", dir.display());
        assert!(dir.join(format!(".new-{alive}-abc")).exists(), "{}", dir.display());
    }
}

/// A command that was not acknowledged has done its work or none of it, but for what runs, which a crash may stop.
fn assert_unharmed(round: &Round, before: &Model, found: &Model, done: Option<&Model>, says: &str) {
    let files = |model: &Model| {
        let mut model = model.clone();
        if let Some(spark) = model.sparks.get_mut(round.subject()) {
            spark.running = None;
        }
        model
    };
    let found = files(found);
    assert!(
        alike(&found, &files(before)) || done.is_some_and(|done| alike(&found, &files(done))),
        "neither before nor after: {says}"
    );
}
