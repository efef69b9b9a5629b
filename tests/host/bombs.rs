//! A spark that takes all it can get: the others and the host go on answering. How fast is shown, and only compared: a
//! machine that runs tests has much else to do.

use std::time::{Duration, Instant};

use crate::common::{Machine, wait_for};
use crate::inside::{bare, root, sh};

/// How often each is asked.
const ROUNDS: usize = 7;
/// How much longer an answer may take than before. A machine that does not answer takes minutes.
const SLOWER: u32 = 60;

/// Something that takes all it can get, and how to see that it has begun to hit its limit.
struct Bomb {
    what: &'static str,
    script: &'static str,
    hits: fn(&serde_json::Value) -> bool,
}

const BOMBS: [Bomb; 4] = [
    // Of shells it would end by itself: one that cannot fork does.
    Bomb {
        what: "fork bomb",
        script: "awk -f /bomb",
        hits: |info| info["usage"]["pids"].as_u64() >= Some(60),
    },
    Bomb {
        what: "memory hog",
        script: "while :; do awk 'BEGIN { x = \"x\"; while (1) x = x x }'; done",
        hits: |info| info["usage"]["oom_kills"].as_u64() >= Some(3),
    },
    Bomb {
        what: "disk filler",
        script: "while :; do dd if=/dev/zero of=/big bs=1M; done",
        hits: |info| info["disk"]["used_bytes"].as_u64() >= Some(60 << 20),
    },
    Bomb {
        what: "inode filler",
        script: "i=0; mkdir /many; while :; do echo >/many/$i; i=$((i+1)); done",
        hits: |info| info["disk"]["used_bytes"].as_u64() >= Some(1 << 20),
    },
];

/// The middle one of several answers of another spark, and of one command that looks at all of them.
fn answers(machine: &Machine) -> [Duration; 2] {
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        assert_eq!(sh(machine, "calm", "0", "echo well >/file && cat /file").ok(), "well\n");
        took[0].push(begun.elapsed());
        let begun = Instant::now();
        let list = machine.spark(&["list", "--json"]).json();
        assert!(list.as_array().unwrap().iter().all(|row| row["state"] == "running"), "{list}");
        took[1].push(begun.elapsed());
    }
    took.map(|mut times| {
        times.sort();
        times[ROUNDS / 2]
    })
}

#[test]
fn a_spark_that_takes_all_it_can_get_leaves_the_others_and_the_host_alone() {
    let machine = Machine::without_pool();
    machine.spark(&["pool", "init", "--quota", "--size", "1G"]).ok();
    let machine = machine.with_base();
    bare(&machine, "calm", &[]);
    let limits = ["--memory", "64M", "--cpus", "0.5", "--pids", "64", "--disk", "64M"];
    bare(&machine, "wild", &limits);
    std::fs::write(root(&machine, "wild").join("bomb"), "BEGIN { while (1) system(\"awk -f /bomb &\") }\n")
        .unwrap();
    let before = answers(&machine);
    eprintln!("alone: exec {:?}, list {:?}", before[0], before[1]);
    for bomb in BOMBS {
        machine.spark(&["exec", "-d", "wild", "--", "sh", "-c", bomb.script]).ok();
        let info = || machine.spark(&["info", "wild", "--json"]).json();
        assert!(wait_for(|| (bomb.hits)(&info())), "the {} does not go off: {}", bomb.what, info());
        let during = answers(&machine);
        eprintln!("{}: exec {:?}, list {:?}", bomb.what, during[0], during[1]);
        for (before, during) in before.into_iter().zip(during) {
            assert!(during < before * SLOWER, "{}: {before:?} became {during:?}", bomb.what);
        }
        let held = info();
        assert!(held["usage"]["pids"].as_u64() <= Some(64), "{held}");
        // A little more than that is the metadata that was on its way.
        assert!(held["disk"]["used_bytes"].as_u64() < Some(72 << 20), "{held}");
        // It can be ended, and is a spark like others then.
        machine.spark(&["stop", "wild", "-t", "0"]).ok();
        sh(&machine, "wild", "0", "rm -rf /big /many").ok();
    }
}
