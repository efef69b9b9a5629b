//! Many containers, at once and one after the other.

use std::thread;

use crate::daemon::{Daemon, text};
use crate::life::run;

/// How many run at once.
const AT_ONCE: usize = 50;

#[test]
fn fifty_at_once_all_run_and_leave_nothing() {
    let daemon = Daemon::new();
    thread::scope(|scope| {
        for n in 0..AT_ONCE {
            let daemon = &daemon;
            scope.spawn(move || {
                let (id, word) = (format!("c{n}"), format!("number {n}"));
                let output = daemon.ctr(run(&["--rm"], &id, &["echo", &word]));
                assert!(output.status.success(), "{id}: {}", text(&output.stderr));
                assert_eq!(text(&output.stdout), format!("{word}\n"));
            });
        }
    });
    daemon.nothing_is_left();
}

/// How many run one after the other.
const IN_TURN: usize = 200;

#[test]
fn two_hundred_in_turn_leave_nothing() {
    let daemon = Daemon::new();
    for n in 0..IN_TURN {
        let id = format!("c{n}");
        let output = daemon.ctr(run(&["--rm"], &id, &["true"]));
        assert!(output.status.success(), "{id}: {}", text(&output.stderr));
    }
    daemon.nothing_is_left();
    let zombies = crate::daemon::children(std::process::id());
    assert!(zombies.len() <= 2, "children of the test: {zombies:?}");
}
