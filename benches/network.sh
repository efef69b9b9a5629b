#!/bin/bash
# Times the start and the stop of a spark with a project network against one with
# none, in turn; then of one among many of its project:
#
#   sudo benches/network.sh [ROUNDS [MANY]]
#
# MANY   how many run beside it in the second part (0: there is none)
# SPARK  the program (target/*/release/spark)
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-20}
many=${2:-0}
spark=${SPARK:-$(echo target/*-linux-gnu/release/spark)}
SPARK_ROOT=$(mktemp -d /var/tmp/spark-bench.XXXXXX)
SPARK_RUN=$(mktemp -d /run/spark-bench.XXXXXX)
export SPARK_ROOT SPARK_RUN
chmod 711 "$SPARK_RUN"

end() {
    "$spark" list -q | xargs -r "$spark" delete -f --now 2>/dev/null || true
    "$spark" -P alone delete -f --now alone 2>/dev/null || true
    umount "$SPARK_ROOT/pool" && rm -r "$SPARK_ROOT" "$SPARK_RUN"
}
trap end EXIT

"$spark" pool init --size 4G >/dev/null
"$spark" base bootstrap minimal >/dev/null
"$spark" create -q --no-start --network none none
# The first of its project makes the routes to that, and its stop removes them.
"$spark" create -q --no-start -P alone alone
"$spark" create -q resident
"$spark" create -q --no-start member

echo '## resume'
python3 benches/interleave.py "$rounds" <<LINES
none	$spark resume none	$spark stop none
first of its project	$spark -P alone resume alone	$spark -P alone stop alone
another of its project	$spark resume member	$spark stop member
LINES
echo '## resume and stop'
python3 benches/interleave.py "$rounds" <<LINES
none	sh -c '$spark resume none && $spark stop none'
first of its project	sh -c '$spark -P alone resume alone && $spark -P alone stop alone'
another of its project	sh -c '$spark resume member && $spark stop member'
LINES

[ "$many" -gt 0 ] || exit 0
of_one() {
    echo "## one, beside $1 of its project"
    python3 benches/interleave.py "$rounds" <<LINES
exec	$spark exec resident true
info	$spark info resident
create	$spark create -q new	$spark delete -f --now new
stop	$spark stop one	$spark resume one
LINES
}
"$spark" create -q one
of_one 1
"$spark" fork -n "$many" resident m >/dev/null
of_one "$many"
echo "## the rules of $many made anew"
# The table has the name of the run directory.
nft delete table inet "sparks-$(printf %s "$SPARK_RUN" | sha256sum | cut -c 1-10)"
start=$(date +%s%N)
"$spark" gc >/dev/null
echo "$((($(date +%s%N) - start) / 1000000)) ms"
