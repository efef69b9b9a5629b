//! Snapshots, forks and races.

use crate::transcript::Transcript;

#[test]
fn snapshots_are_taken_listed_restored_and_deleted() {
    let mut t = Transcript::new();
    t.run("create web -q");
    t.run("snapshot list web");
    t.run("snapshot create web first --label 'before the upgrade'");
    t.run("snapshot create web first");
    t.run("snapshot create web second --json");
    t.run("snapshot create web -q --label nightly --keep 3");
    t.run("snapshot create web third --keep 3");
    t.run("snapshot create nobody");
    t.run("snapshot list web");
    t.run("snapshot list web --json");
    t.run("snapshot restore web first");
    t.run("snapshot restore web firts");
    t.run("snapshot list web");
    t.run("undo web --json");
    t.run("snapshot delete web first nope");
    t.run("snapshot list web -q");
    t.run("create db --no-start -q");
    t.run("undo db");
    t.run("snapshot");
    t.matches("snapshots");
}

#[test]
fn sparks_are_forked_raced_and_picked() {
    let mut t = Transcript::new();
    t.run("create web -q");
    t.run("snapshot create web s -q");
    t.run("fork web app");
    t.run("fork web app");
    t.run("fork web@s try -n 2");
    t.run("fork web@s try -n 3");
    t.run("fork web@nope x");
    t.run("fork web x -n 0");
    t.run("fork web x --base minimal");
    t.run("fork web shop/web --json");
    t.run("list");
    t.run("list --json -P shop");
    t.run("create made --from web@s --no-start");
    t.run("create made2 --from web --base minimal");
    t.run("fork app deep --no-start");
    t.run("pick try-1 --as app");
    t.run("pick try-1 --as web --json");
    t.run("pick app --as app");
    t.run("base save web tpl");
    t.run("base save web tpl");
    t.run("base save web@s tpl --replace --json");
    t.run("base list");
    t.run("create twin --base tpl --no-start -q");
    t.run("delete --now app -f");
    t.run("tree");
    t.run("tree -a");
    t.run("delete --now web -f");
    t.run("tree");
    t.matches("forks");
}
