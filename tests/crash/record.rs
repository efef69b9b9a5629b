//! A pool on a recording disk, and commands that change it.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::Machine;
use crate::common::random::Random;
use crate::disk::{self, Content, Disks, Event};
use crate::state::{self, State};

const SIZE: usize = 512 << 20;
const SPARKS: [&str; 4] = ["ant", "bee", "cat", "dog"];

/// What happened to the disk of a pool, and what was known of it when.
pub(crate) struct Recording {
    pub(crate) start: Content,
    pub(crate) events: Vec<Event>,
    /// What the pool held when a command had returned, and how much had happened by then.
    pub(crate) states: Vec<(usize, State)>,
    /// Numbers that a process had written and synced by then.
    pub(crate) numbers: Vec<(usize, u64)>,
    pub(crate) said: Vec<String>,
}

/// The file with these numbers, within the pool.
pub(crate) const NUMBERS: &str = "projects/default/sparks/steady/root/numbers";

/// Records what `work` does to a pool with some sparks in it. Meanwhile a process in a spark writes and syncs.
pub(crate) fn record(disks: &Disks, work: impl FnOnce(&mut Commands<'_>)) -> Recording {
    let machine = Machine::without_pool();
    let (number, path) = disks.plug(Content::of_size(SIZE), true);
    let mut mkfs = std::process::Command::new("mkfs.btrfs");
    let made = mkfs.args(["-q", "-m", "single", "-d", "single"]).arg(&path).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let pool = machine.pool();
    std::fs::create_dir(&pool).unwrap();
    disk::mount(&path, &pool).unwrap();
    assert_loop_device(&pool);
    machine.spark(&["pool", "init"]).ok();
    machine.spark(&["base", "bootstrap", "minimal"]).ok();
    machine.spark(&["create", "steady", "--no-start"]).ok();
    std::fs::create_dir(machine.work().join("tree")).unwrap();
    std::fs::write(machine.work().join("tree/marker"), "imported").unwrap();
    let file = std::fs::File::create(pool.join(NUMBERS)).unwrap();
    let top = std::fs::File::open(&pool).unwrap();
    rustix::fs::syncfs(&top).unwrap();
    // From here on all is recorded that matters: what was before is on the disk.
    let start = disks.content(number);
    let begun = disks.position(number);

    let mut commands =
        Commands { machine: &machine, at: &|| disks.position(number) - begun, log: Vec::new() };
    commands.log.push((0, state::read(&pool), String::new()));
    let done = AtomicBool::new(false);
    let mut numbers = vec![(0, 0)];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1u64.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                file.write_all_at(&n.to_le_bytes(), 0).unwrap();
                file.sync_data().unwrap();
                numbers.push((disks.position(number) - begun, n));
                // Paced: what it writes is kept in memory.
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        let _end = End(&done);
        work(&mut commands);
    });
    let log = commands.log;
    drop((file, top));
    disk::unmount(&pool);
    let (_, mut events) = disks.unplug(number);
    events.drain(..begun);
    let states = log.iter().map(|(position, state, _)| (*position, state.clone())).collect();
    let said = log.into_iter().map(|(position, _, line)| format!("{position}: {line}")).collect();
    Recording { start, events, states, numbers, said }
}

/// Ends the writer, also after a panic.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The model of a disk holds only if the kernel writes through the page cache, and flushes what the pool flushes.
fn assert_loop_device(pool: &Path) {
    let device = sparks_device(pool);
    let read = |file: &str| std::fs::read_to_string(format!("/sys/block/{device}/{file}")).unwrap();
    assert_eq!(read("loop/dio").trim(), "0", "{device} bypasses the page cache");
    assert_eq!(read("queue/write_cache").trim(), "write back", "{device} passes no flushes on");
    assert_eq!(read("queue/fua").trim(), "0", "{device} writes in a way that is not recorded");
}

fn sparks_device(pool: &Path) -> String {
    let mut find = std::process::Command::new("findmnt");
    let output = find.args(["-n", "-o", "SOURCE"]).arg(pool).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().trim_start_matches("/dev/").to_owned()
}

/// Runs commands, and notes what the pool holds when one has returned.
pub(crate) struct Commands<'a> {
    pub(crate) machine: &'a Machine,
    at: &'a dyn Fn() -> usize,
    log: Vec<(usize, State, String)>,
}

impl Commands<'_> {
    /// Runs one, with a fault if one is given. It may fail: then too everything is as it says.
    pub(crate) fn run(&mut self, line: &str, fault: Option<&str>) -> bool {
        let args: Vec<&str> = line.split(' ').collect();
        let mut command = self.machine.command(&args);
        command.envs(fault.map(|fault| ("SPARK_FAULT", fault)));
        let output = command.output().unwrap();
        // First: what is written from here on was not acknowledged by the time the command returned.
        let position = (self.at)();
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        self.log.push((position, state::read(&self.machine.pool()), format!("{line} ({said})")));
        output.status.success()
    }

    /// One of many commands, at random, that is mostly possible.
    pub(crate) fn run_any(&mut self, random: &mut Random, number: usize) {
        let pool = self.machine.pool();
        let (there, free): (Vec<&str>, Vec<&str>) =
            SPARKS.iter().partition(|name| pool.join("projects/default/sparks").join(name).exists());
        let mut of =
            |names: &[&'static str]| if names.is_empty() { random.of(&SPARKS) } else { random.of(names) };
        let (a, new, v) = (of(&there), of(&free), of(&["vole", "wasp"]));
        let lines = [
            format!("create {new} --no-start"),
            format!("create {new} --no-start -v {v}:/data"),
            format!("fork {a} {new} --no-start"),
            format!("fork {a} {new} --no-start --data copy"),
            format!("cp mark {a}:/marker"),
            format!("cp mark {a}:/marker"),
            format!("set {a} --label n={number}"),
            format!("set {a} --label n={number}"),
            format!("rename {a} {new}"),
            format!("delete {a}"),
            format!("delete --now {a}"),
            format!("undelete {new}"),
            format!("snapshot create {a} s"),
            format!("snapshot create {a}"),
            format!("snapshot delete {a} s"),
            format!("snapshot restore {a} s"),
            format!("snapshot restore {a} s"),
            format!("undo {a}"),
            format!("diff {a}"),
            format!("data create {v}"),
            format!("data snapshot {v} s"),
            format!("data restore {v} s"),
            format!("data delete {v}"),
            format!("base save {a} mine --replace"),
            "base delete mine".to_owned(),
            "base import tree other".to_owned(),
            "base delete other".to_owned(),
            "gc".to_owned(),
        ];
        let mut mark = std::fs::File::create(self.machine.work().join("mark")).unwrap();
        writeln!(mark, "{number}").unwrap();
        self.run(&lines[random.below(lines.len() as u64) as usize], None);
    }
}
