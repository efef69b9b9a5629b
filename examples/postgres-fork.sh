#!/bin/bash
# Forks a PostgreSQL while it works, and shows that each fork is a database of
# its own with everything that had been committed:
#
#   sudo examples/postgres-fork.sh
#
# It needs `spark` in PATH and Debian 12 as the default base (examples/quickstart.sh
# makes both); where that has no PostgreSQL, it is installed.
# It prints each command before it runs it, and deletes the sparks that it made.
set -euo pipefail

names=(pg-installed pg pg-1 pg-2 pg-3)

# Prints a command line as one would type it, and runs it.
try() {
    printf '$ %s\n' "$1"
    eval "$1"
}

heading() { printf '\n### %s\n\n' "$*"; }

# The answer of a spark's database to a question.
ask() { # SPARK SQL
    spark exec -u postgres "$1" -- psql -qAtX shop -c "$2"
}

cleanup() {
    local name
    for name in "${names[@]}"; do
        spark delete -f --now "$name" 2>/dev/null || true
    done
}

trap 'echo "postgres-fork.sh: this went wrong: $BASH_COMMAND" >&2' ERR
set -E
for name in "${names[@]}"; do
    if spark info "$name" >/dev/null 2>&1; then
        echo "postgres-fork.sh: there is a spark $name already" >&2
        exit 1
    fi
done
trap cleanup EXIT

heading 'A spark with PostgreSQL, and four clients that never rest'
try 'spark create pg-installed'
spark exec pg-installed -- sh -c 'command -v pg_ctlcluster' >/dev/null ||
    try 'spark exec pg-installed -- sh -c "apt-get update && apt-get install -y postgresql"'
# With the host's network two of them would want one port.
try 'spark fork --network none pg-installed pg'
try 'spark exec pg -- pg_ctlcluster 15 main start'
try 'spark exec -u postgres pg -- createdb shop'
try 'spark exec -u postgres pg -- pgbench -i -q shop'
try 'spark exec -d -u postgres pg -- pgbench -n -c 4 -T 3600 shop'

heading 'Three forks of it, all of one moment. Nothing is stopped for that'
count='SELECT count(*) FROM pgbench_history'
until before=$(ask pg "$count") && [ "$before" -gt 100 ]; do sleep 0.1; done
try 'spark fork -n 3 pg pg'
after=$(ask pg "$count")

heading 'In each, PostgreSQL starts as after a power cut'
for number in 1 2 3; do
    # The files say that it runs, which it does in the spark that they come from.
    try "spark exec pg-$number -- pg_ctlcluster 15 main start"
    there[number]=$(ask "pg-$number" "$count")
    echo "pg-$number has ${there[number]} payments: $before were committed before the fork, $after after it"
    [ "${there[number]}" -ge "$before" ] && [ "${there[number]}" -le "$after" ]
    [ "${there[number]}" = "${there[1]}" ]
done

heading 'What is done to one is not done to the others'
try "spark exec -u postgres pg-1 -- psql -q shop -c 'DROP TABLE pgbench_history'"
try "spark exec -u postgres pg-2 -- psql -At shop -c '$count'"
try "spark exec -u postgres pg -- psql -At shop -c '$count'"

heading 'The sparks are deleted again'
