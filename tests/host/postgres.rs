//! PostgreSQL in a spark, with `pgbench` at work: a fork of any moment is a database after a power cut, and no worse.

use std::path::Path;

use crate::consistency::{Store, Subject, replace};

const CLUSTER: &str = "var/lib/postgresql/15/main";

const POSTGRES: Store = Store {
    // It waits for a start and a stop no longer than a minute by itself.
    prepare: r#"
        echo "pg_ctl_options = '-t 3600'" >/etc/postgresql/15/main/pg_ctl.conf
        pg_ctlcluster 15 main start
        as() { runuser -u postgres -- "$@"; }
        as createdb bench
        as pgbench -i -q bench
        as psql -q bench -c 'CREATE TABLE seen (writer int, id bigint, PRIMARY KEY (writer, id))'
        as psql -q bench -c 'CREATE EXTENSION amcheck'
        pg_ctlcluster 15 main stop
    "#,
    start: "pg_ctlcluster 15 main start",
    load: Some("exec runuser -u postgres -- pgbench -n -c 4 -T 36000 bench"),
    writer: "exec runuser -u postgres -- psql -qAtX bench",
    statement: |writer, id| format!("INSERT INTO seen VALUES ({writer}, {id}) RETURNING id;"),
    // The balances are those of pgbench's transactions, whole or not at all.
    check: r#"
        PATH=$PATH:/usr/lib/postgresql/15/bin
        pg_ctlcluster 15 main start >&2
        as() { runuser -u postgres -- "$@"; }
        as pg_amcheck --heapallindexed --rootdescend bench
        as psql -qAtX -F ' ' -v ON_ERROR_STOP=1 bench <<'SQL'
            SELECT writer, count(*), max(id) FROM seen GROUP BY writer;
            SELECT 'the balances differ', array_agg(sum) FROM (
                SELECT sum(abalance) FROM pgbench_accounts UNION
                SELECT sum(bbalance) FROM pgbench_branches UNION
                SELECT sum(tbalance) FROM pgbench_tellers UNION
                SELECT coalesce(sum(delta), 0) FROM pgbench_history) AS s
            HAVING count(*) > 1;
            INSERT INTO seen SELECT writer, max(id) + 1 FROM seen GROUP BY writer;
            VACUUM;
SQL
        pg_ctlcluster 15 main stop
        as pg_checksums --check -D /var/lib/postgresql/15/main >&2
    "#,
    writers: 4,
};

#[test]
fn postgres_has_in_every_fork_what_was_committed_before_its_snapshot() {
    Subject::new(POSTGRES).survives_snapshots_at_random_moments();
}

/// What would pass on anything is no test: here are two ways to lose something, and they are seen.
#[test]
fn what_a_snapshot_cannot_have_of_postgres_is_seen_to_be_lost() {
    // Acknowledgements that do not wait for the log to be written, while nothing writes it: what would do so soon is
    // stopped, outside of any lock, and there is room for more than the writers say in minutes. So it is in the memory
    // of processes only.
    let lazy = Store {
        start: r#"
            printf '%s\n' 'synchronous_commit = off' 'autovacuum = off' 'bgwriter_lru_maxpages = 0' \
                'wal_buffers = 128MB' >>/etc/postgresql/15/main/postgresql.conf
            pg_ctlcluster 15 main start
            walwriter() {
                runuser -u postgres -- psql -qAtX -c \
                    "SELECT $1 FROM pg_stat_activity WHERE backend_type = 'walwriter'"
            }
            until pid=$(walwriter pid) && [ "$pid" ]; do :; done
            kill -STOP "$pid"
            until [ "$(walwriter wait_event)" = WalWriterMain ]; do
                kill -CONT "$pid"
                kill -STOP "$pid"
            done
        "#,
        load: None,
        ..POSTGRES
    };
    let subject = Subject::new(lazy);
    let at_work = subject.begin();
    at_work.wait(200);
    let lazy = at_work.snapshot("lazy");
    // A log that is older than the rest, as of a root and a log that were not taken at one instant.
    subject
        .machine
        .spark(&["exec", "db", "--", "runuser", "-u", "postgres", "--", "psql", "-c", "CHECKPOINT"])
        .ok();
    at_work.wait(200);
    let later = at_work.snapshot("later");
    at_work.end();

    let lost = subject.verdict(&lazy, |_| {}).unwrap_err();
    assert!(lost.starts_with("lost: "), "{lost}");
    let log = |root: &Path| root.join(CLUSTER).join("pg_wal");
    let older = log(&subject.snapshot(&lazy));
    let apart = subject.verdict(&later, |root| replace(&older, &log(root))).unwrap_err();
    assert!(apart.starts_with("status "), "{apart}");
}
