//! Deleting while another command frees what has expired.

use crate::common::Machine;
use crate::dumps::Stopped;

type Time = chrono::DateTime<chrono::Utc>;

fn next_expiry(machine: &Machine) -> Option<Time> {
    std::fs::read_to_string(machine.place().next_expiry()).ok().map(|text| text.parse().unwrap())
}

fn until(machine: &Machine) -> Time {
    let deleted = machine.spark(&["--json", "list", "--deleted"]).json();
    assert_eq!(deleted.as_array().unwrap().len(), 1, "{deleted}");
    deleted[0]["until"].as_str().unwrap().parse().unwrap()
}

#[test]
fn what_is_deleted_while_another_command_frees_trash_is_freed_in_its_time() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--no-start"]).ok();
    machine.spark(&["create", "app", "--no-start"]).ok();
    machine.spark(&["delete", "web", "--keep", "1ms"]).ok();
    let gc = Stopped::at(machine.command(&["gc", "--background"]).env("SPARK_FAULT", "gc.freed=stop"));
    machine.spark(&["delete", "app", "--keep", "2h"]).ok();
    gc.goes_on();
    assert_eq!(next_expiry(&machine), Some(until(&machine)));
    machine.spark(&["undelete", "app"]).ok();
    machine.spark(&["gc"]).ok();
    assert_eq!(next_expiry(&machine), None);
}
