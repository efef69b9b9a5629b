#!/bin/bash
# Snapshots and forks, beside what btrfs takes for a snapshot alone. As root:
#
#   benches/states.sh target/*/release/spark [ROUNDS]
#
# On a loop pool of its own, in turn, so that a noisy machine is as noisy for each.
set -euo pipefail

spark=$(realpath "$1")
rounds=${2:-30}
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
work=$(mktemp -d /var/tmp/spark-bench-XXXXXX)
run=$(mktemp -d /run/sparks-bench.XXXXXX)
# Sparks are mounted below it, and have to get there.
chmod 711 "$run"
export SPARK_ROOT=$work/root SPARK_RUN=$run SPARK_PROJECT=bench
mkdir -m 700 "$SPARK_ROOT"

cleanup() {
    local name
    for name in $("$spark" list -q); do
        "$spark" delete -f --now "$name" 2>/dev/null || true
    done
    umount "$SPARK_ROOT/pool" || true
    rm -rf --one-file-system "$work" "$run"
}
trap cleanup EXIT

"$spark" base bootstrap minimal >/dev/null
"$spark" create web -q
root=$SPARK_ROOT/pool/projects/bench/sparks/web/root

# Each of these makes a new name every time.
script() { # FILE COMMAND
    printf '#!/bin/sh\nexec %s\n' "$2" >"$work/$1"
    chmod +x "$work/$1"
}
# shellcheck disable=SC2016 # $$ is the script's own
{
    script btrfs "btrfs -q subvolume snapshot -r $root $SPARK_ROOT/pool/bench-"'$$'
    script snapshot "$spark snapshot create web -q --keep 20"
    script stopped "$spark fork web stopped-"'$$ -q --no-start'
    script running "$spark fork web running-"'$$ -q'
    script create "$spark create new-"'$$ -q'
    script many "$spark fork web many-"'$$ -q -n 8'
}
printf '%s\t%s\n' \
    'btrfs subvolume snapshot -r' "$work/btrfs" \
    'spark snapshot create, of a running spark' "$work/snapshot" \
    'spark fork --no-start' "$work/stopped" \
    'spark fork, started' "$work/running" \
    'spark create, started' "$work/create" \
    'spark fork -n 8, started' "$work/many" |
    python3 "$here/interleave.py" "$rounds"
