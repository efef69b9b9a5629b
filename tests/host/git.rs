//! A git repository in a spark, committed to without a pause: a fork of any moment has every commit.

use crate::consistency::{Store, Subject, replace};

const GIT: Store = Store {
    prepare: r#"
        git config --global user.name test
        git config --global user.email test@example.org
        for writer in 0 1; do git init -q -b main "/srv/$writer"; done
    "#,
    start: "true",
    load: Some("while :; do for writer in 0 1; do git -C /srv/$writer repack -adq; done; done"),
    // A repack removes directories that are empty while somebody makes a file in one, which git gives up over.
    writer: r#"
        cd "/srv/$1"
        while read -r number; do
            echo "$number" >file
            tries=0
            until git add file && git commit -qm "$number"; do
                tries=$((tries + 1))
                [ "$tries" -lt 20 ]
            done
            echo "$number"
        done
    "#,
    statement: |_, number| number.to_string(),
    // A lock is what a git that was killed leaves; whoever finds it has to remove it.
    check: r#"
        for writer in 0 1; do
            cd "/srv/$writer"
            git fsck --full --strict --no-progress --no-dangling 1>&2
            echo "$writer $(git rev-list --count HEAD) $(git log -1 --format=%s)"
            find .git -name '*.lock' -delete
            git add file
            git commit -q --allow-empty -m 'it goes on'
        done
    "#,
    writers: 2,
};

#[test]
fn git_has_in_every_fork_what_was_committed_before_its_snapshot() {
    let subject = Subject::new(GIT);
    subject.survives_snapshots_at_random_moments();

    // What would pass on anything is no test: references that are newer than the objects are seen to be damage.
    let at_work = subject.begin();
    at_work.wait(4);
    let earlier = at_work.snapshot("earlier");
    at_work.wait(4);
    let later = at_work.snapshot("later");
    at_work.end();
    subject.verdict(&later, |_| {}).unwrap();
    let apart = subject.verdict(&later, |root| {
        for writer in ["0", "1"] {
            let objects = format!("srv/{writer}/.git/objects");
            replace(&subject.snapshot(&earlier).join(&objects), &root.join(&objects));
        }
    });
    assert!(apart.is_err());
}
