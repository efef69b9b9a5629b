//! `cp`: how far a long copy is, and what changes while it goes on.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags};
use sparks::domain::location::Location;
use sparks::ops::{Observer, Silent};

use crate::common::{PATIENCE, tree};
use crate::cp::{location, no_temporary_names, with_web};
use crate::inside::{bare, machine, root};

/// Exchanges two names again and again while `work` runs, until a good number of rounds or the time is up, and it says
/// that it has shown something.
fn while_swapping(a: &Path, b: &Path, mut work: impl FnMut() -> bool) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swaps = scope.spawn(|| {
            let mut swaps = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
                swaps += 1;
            }
            swaps
        });
        let begun = Instant::now();
        let (mut rounds, mut shown) = (0, false);
        while rounds < 300
            && (begun.elapsed() < Duration::from_secs(4) || !shown && begun.elapsed() < PATIENCE)
        {
            shown = work();
            rounds += 1;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(swaps.join().unwrap() > rounds, "nothing was swapped");
    });
}

#[test]
fn directories_that_turn_into_links_while_they_are_copied_lead_nowhere() {
    let machine = with_web();
    let inside = root(&machine, "web").join("t");
    let (canary, source, out) =
        (machine.work().join("canary"), machine.work().join("source"), machine.work().join("out"));
    for dir in [&canary, &source.join("a"), &source.join("b"), &inside.join("a")] {
        fs::create_dir_all(dir).unwrap();
        for n in 0..5 {
            fs::write(dir.join(format!("file{n}")), if *dir == canary { "of the host" } else { "inside" })
                .unwrap();
        }
    }
    symlink(&canary, inside.join("b")).unwrap();
    let before = tree(&canary);
    let sparks = machine.sparks();
    let copy = |from: &OsStr, to: &OsStr| {
        let (from, to) = (Location::parse(from).unwrap(), Location::parse(to).unwrap());
        sparks.cp(&[from], &to, &Silent)
    };
    let mut copied = 0;
    while_swapping(&inside.join("a"), &inside.join("b"), || {
        copied += u32::from(copy("web:/t".as_ref(), out.as_os_str()).is_ok());
        if let Ok(names) = fs::read_dir(out.join("a")).or_else(|_| fs::read_dir(out.join("b"))) {
            for entry in names.flatten().filter(|e| e.path().symlink_metadata().unwrap().is_file()) {
                // The link itself may be what was copied.
                if !entry.path().parent().unwrap().symlink_metadata().unwrap().is_symlink() {
                    assert_eq!(fs::read(entry.path()).unwrap(), b"inside");
                }
            }
        }
        fs::remove_dir_all(&out).unwrap();
        let mut from = OsString::from(&source);
        from.push("/.");
        for (from, to) in [(&*from, "web:/t"), (source.join("a/file0").as_os_str(), "web:/t/a/new")] {
            let _ = copy(from, to.as_ref());
        }
        copied > 0
    });
    assert!(copied > 0);
    assert_eq!(tree(&canary), before);
    no_temporary_names(&inside);
}

/// Hears how far it is, and does something in the middle.
struct Ears<'a> {
    steps: RefCell<Vec<(String, Option<u64>)>>,
    last: RefCell<u64>,
    middle: &'a dyn Fn(),
}

impl Observer for Ears<'_> {
    fn step(&self, what: &str, total: Option<u64>) {
        self.steps.borrow_mut().push((what.to_owned(), total));
    }
    fn advance(&self, done: u64) {
        assert!(done > *self.last.borrow(), "never back");
        if self.last.replace(done) < 500 && done >= 500 {
            (self.middle)();
        }
    }
    fn notice(&self, text: &str) {
        panic!("{text}");
    }
}

fn many(top: &Path, dirs: u32) {
    for dir in 0..dirs {
        let dir = top.join(format!("d{dir}"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..1000 {
            fs::write(dir.join(format!("f{file}")), if file % 10 == 0 { "content" } else { "" }).unwrap();
        }
    }
}

#[test]
fn a_hundred_thousand_files_are_copied_and_the_observer_hears_how_far_it_is() {
    let machine = with_web();
    // In memory: to make them takes longer than to copy them.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let source = dir.path().join("many");
    many(&source, 100);
    let ears = Ears { steps: RefCell::default(), last: RefCell::default(), middle: &|| {} };
    let summary = machine.sparks().cp(&[location(&source)], &location("web:/"), &ears).unwrap();
    assert_eq!((summary.entries, summary.bytes), (100_101, 70_000));
    assert_eq!(*ears.last.borrow(), 100_101);
    let steps = ears.steps.into_inner();
    assert_eq!(steps[0], (format!("copying {}", source.display()), Some(100_101)));
    assert_eq!(steps[1].0, "writing to disk");
    let count = |top: &Path| {
        let output = Command::new("find").arg(top).args(["-type", "f", "-size", "7c"]).output().unwrap();
        output.stdout.iter().filter(|b| **b == b'\n').count()
    };
    assert_eq!(count(&root(&machine, "web").join("many")), 10_000);
}

#[test]
fn a_long_copy_keeps_nobody_from_changing_the_spark() {
    let machine = machine();
    bare(&machine, "web", &[]);
    many(&root(&machine, "web").join("many"), 2);
    let out = machine.work().join("out");
    let middle = || {
        machine.spark(&["stop", "-t", "0", "web"]).ok();
        machine.spark(&["rename", "web", "old"]).ok();
        machine.spark(&["delete", "old"]).ok();
    };
    let ears = Ears { steps: RefCell::default(), last: RefCell::default(), middle: &middle };
    let summary = machine.sparks().cp(&[location("web:/many")], &location(&out), &ears).unwrap();
    assert_eq!((summary.entries, summary.vanished), (2003, 0));
    assert_eq!(fs::read_dir(out.join("d1")).unwrap().count(), 1000);
}
