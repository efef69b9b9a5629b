//! A pool that grows: wherever that is cut short, the next command finishes it.

use std::process::Command;

use crate::common::Machine;
use crate::points::{Scenario, exists};

const SIZE: u64 = 1 << 30;

pub(crate) const ALL: &[&Scenario] = &[&GROW];

const GROW: Scenario = Scenario {
    points: &["grow."],
    args: &["pool", "grow", "1200M"],
    before: |m| m.spark(&["create", "web", "--network", "none"]).ok().clear(),
    after: |m| {
        assert!(exists(m, "web"));
        // Any command that enters.
        assert_eq!(m.spark(&["exec", "web", "--", "echo", "well"]).ok(), "well\n");
        let image = std::fs::metadata(m.place().loop_image()).unwrap();
        let size = m.spark(&["--json", "pool", "info"]).json()["size"].as_u64().unwrap();
        assert_eq!(size, image.len());
        assert!(size == SIZE || size == 1200 << 20, "{size}");
        assert_eq!(m.spark(&["--json", "pool", "grow", "1200M"]).json()["size"], 1200 << 20);
        m.spark(&["delete", "-f", "--now", "web"]).ok();
        shrink(m);
    },
};

/// Makes it as before, which `spark` does not do.
fn shrink(m: &Machine) {
    let (pool, image) = (m.pool(), m.place().loop_image());
    let (pool, image) = (pool.to_str().unwrap(), image.to_str().unwrap());
    let script = format!(
        "btrfs filesystem resize {SIZE} {pool} && truncate -s {SIZE} {image} && losetup -c $(losetup -n -O NAME -j {image})"
    );
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
}

#[test]
fn a_growth_that_is_cut_short_anywhere_is_finished_by_the_next_command() {
    GROW.run();
}
