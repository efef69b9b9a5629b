//! What is deleted, until its time is up: nobody has to ask for it to go.

use std::path::PathBuf;

use crate::common::{Machine, wait_for};

fn trash(machine: &Machine) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(machine.pool().join("trash")).unwrap();
    entries.map(|e| e.unwrap().path()).collect()
}

fn machine(sparks: &[&str]) -> Machine {
    let machine = Machine::new().with_base();
    for name in sparks {
        machine.spark(&["create", name, "--no-start"]).ok();
    }
    machine
}

#[test]
fn expired_trash_is_freed_in_the_background_of_another_command() {
    let machine = machine(&["web", "app"]);
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    machine.spark(&["delete", "web", "--keep", "1ms"]).ok();
    machine.spark(&["delete", "app", "--keep", "2h"]).ok();
    assert!(
        wait_for(|| {
            machine.spark(&["list"]).ok();
            trash(&machine).len() == 1
        }),
        "{:?}",
        trash(&machine)
    );
    assert!(wait_for(|| machine.staged().is_empty()), "{:?}", machine.staged());
    machine.spark(&["--json", "undelete", "web"]).fails_with("not_found");
    // It is known when the next look is worth while.
    let next = || std::fs::read_to_string(machine.place().next_expiry()).unwrap_or_default();
    let until = machine.spark(&["--json", "list", "--deleted"]).json()[0]["until"].clone();
    let until: chrono::DateTime<chrono::Utc> = until.as_str().unwrap().parse().unwrap();
    assert!(
        wait_for(|| next().parse::<chrono::DateTime<chrono::Utc>>().is_ok_and(|n| n == until)),
        "{until:?} and not {}",
        next()
    );
    machine.spark(&["undelete", "app"]).ok();
}

#[test]
fn what_has_not_expired_stays_whatever_the_index_says() {
    let machine = machine(&["web"]);
    machine.spark(&["delete", "web", "--keep", "1d"]).ok();
    // A wrong index costs a look, and is mended by it.
    std::fs::write(machine.place().next_expiry(), "2001-01-01T00:00:00Z").unwrap();
    machine.spark(&["list"]).ok();
    let mended = || std::fs::read_to_string(machine.place().next_expiry()).unwrap().starts_with("20");
    assert!(wait_for(
        || mended() && !std::fs::read_to_string(machine.place().next_expiry()).unwrap().starts_with("2001")
    ));
    assert_eq!(trash(&machine).len(), 1);
    std::fs::remove_file(machine.place().next_expiry()).unwrap();
    machine.spark(&["list"]).ok();
    machine.spark(&["undelete", "web"]).ok();
    machine.spark(&["--json", "delete", "web", "--keep", "1d", "--now"]).fails_with("usage");
    machine.spark(&["--json", "delete", "web", "--keep", "soon"]).fails_with("usage");
}

#[test]
fn an_entry_that_is_being_brought_back_is_not_freed() {
    let machine = machine(&["web"]);
    machine.spark(&["delete", "web", "--keep", "1ms"]).ok();
    let entry = trash(&machine).pop().unwrap();
    let lock = sparks::sys::flock::lock_dir(&entry, sparks::sys::flock::Mode::Exclusive).unwrap();
    machine.spark(&["gc"]).ok();
    assert_eq!(trash(&machine), [entry]);
    drop(lock);
    // Nobody has to ask for it then either.
    assert!(machine.place().next_expiry().exists());
    machine.spark(&["gc"]).ok();
    // The one that a command has started in the background may have been first.
    assert!(wait_for(|| trash(&machine).is_empty()));
}
