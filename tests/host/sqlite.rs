//! SQLite in WAL mode in a spark: a fork of any moment is a database after a power cut, and no worse.

use crate::consistency::{Store, Subject};

const DATABASE: &str = "srv/app.db";

const SQLITE: Store = Store {
    prepare: r#"
        sqlite3 /srv/app.db <<'SQL'
            PRAGMA journal_mode = WAL;
            CREATE TABLE seen (writer INT, id INT, PRIMARY KEY (writer, id));
            CREATE TABLE account (name TEXT PRIMARY KEY, balance INT, note TEXT);
            INSERT INTO account VALUES ('a', 0, ''), ('b', 0, '');
SQL
    "#,
    start: "true",
    // What is taken from one account is given to the other, and the pages are many, so that the log is often copied back.
    load: Some(
        r#"
        while :; do
            sqlite3 -cmd '.timeout 300000' /srv/app.db "BEGIN IMMEDIATE;
                UPDATE account SET balance = balance - 1, note = hex(randomblob(30000)) WHERE name = 'a';
                UPDATE account SET balance = balance + 1, note = hex(randomblob(30000)) WHERE name = 'b';
                COMMIT;"
        done
        "#,
    ),
    // Without stdbuf the answers would wait in a buffer.
    writer: "exec stdbuf -oL sqlite3 -cmd '.timeout 300000' -cmd 'PRAGMA synchronous = FULL' /srv/app.db",
    // A second statement, since RETURNING would answer before the commit.
    statement: |writer, id| {
        format!("INSERT INTO seen VALUES ({writer}, {id}); SELECT max(id) FROM seen WHERE writer = {writer};")
    },
    check: r#"
        sqlite3 -bail -separator ' ' /srv/app.db <<'SQL'
            SELECT writer, count(*), max(id) FROM seen GROUP BY writer;
            SELECT 'damage', integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok';
            SELECT 'the balances differ' WHERE (SELECT sum(balance) FROM account) <> 0;
            INSERT INTO seen SELECT writer, max(id) + 1 FROM seen GROUP BY writer;
SQL
    "#,
    writers: 2,
};

#[test]
fn sqlite_has_in_every_fork_what_was_committed_before_its_snapshot() {
    let subject = Subject::new(SQLITE);
    subject.survives_snapshots_at_random_moments();

    // What would pass on anything is no test: a copy of the database without its log is seen to lose something, as
    // nothing copies the log back meanwhile.
    let logged = Store {
        load: None,
        writer: "exec stdbuf -oL sqlite3 -cmd '.timeout 300000' -cmd '.output /dev/null' \
                 -cmd 'PRAGMA wal_autocheckpoint = 0' -cmd '.output' /srv/app.db",
        ..SQLITE
    };
    let subject = Subject { store: logged, ..subject };
    let at_work = subject.begin();
    at_work.wait(20);
    let taken = at_work.snapshot("apart");
    at_work.end();
    subject.verdict(&taken, |_| {}).unwrap();
    let log = format!("{DATABASE}-wal");
    let apart = subject.verdict(&taken, |root| std::fs::remove_file(root.join(&log)).unwrap());
    assert!(apart.is_err());
}
