//! A pool that cannot be mounted all the same: one of another program, or of an older version of this one.

use crate::common::Machine;
use crate::cuts::unmountable;
use crate::disk::Disks;

#[test]
fn a_pool_whose_log_cannot_be_replayed_is_mounted_without_it_and_what_that_lost_is_named() {
    let machine = Machine::without_pool();
    let place = machine.place();
    unmountable(&Disks::new()).save(&place.loop_image());
    std::fs::write(place.root.join("pool.json"), r#"{"version":1,"kind":"loop"}"#).unwrap();
    std::fs::create_dir(place.pool()).unwrap();
    let listed = machine.spark(&["list", "-q"]);
    assert!(listed.ok().contains("steady"), "{}", listed.stdout());
    let said = listed.stderr();
    // A process wrote and synced in that one, and the last commands had renamed and deleted.
    for word in ["warning: the pool could not be mounted", "spark `default/steady`", "the last commands"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("spark `default/cat`"), "nothing was synced in it: {said}");
    let noted = std::fs::read_to_string(place.repairs()).unwrap();
    assert!(noted.contains("default/steady") && noted.lines().count() == 1, "{noted}");
    // From here on it is a pool like any other.
    machine.spark(&["create", "new", "--no-start"]).ok();
    assert_eq!(machine.spark(&["list", "-q"]).stderr(), "");
}

#[test]
fn a_pool_that_cannot_be_mounted_for_another_reason_is_left_as_it_is() {
    let machine = Machine::without_pool();
    let place = machine.place();
    std::fs::write(place.loop_image(), vec![0; 1 << 20]).unwrap();
    std::fs::write(place.root.join("pool.json"), r#"{"version":1,"kind":"loop"}"#).unwrap();
    std::fs::create_dir(place.pool()).unwrap();
    let listed = machine.spark(&["list"]);
    assert_ne!(listed.status(), 0);
    assert!(listed.stderr().contains("mount"), "{}", listed.stderr());
    assert_eq!(std::fs::read(place.loop_image()).unwrap(), vec![0; 1 << 20]);
    assert!(!place.repairs().exists());
}
