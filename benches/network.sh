#!/bin/bash
# Times the start and the stop of a spark with a project network against one with
# none, in turn:
#
#   sudo benches/network.sh [ROUNDS]
#
# SPARK  the program (target/*/release/spark)
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-20}
spark=${SPARK:-$(echo target/*-linux-gnu/release/spark)}
SPARK_ROOT=$(mktemp -d /var/tmp/spark-bench.XXXXXX)
SPARK_RUN=$(mktemp -d /run/spark-bench.XXXXXX)
export SPARK_ROOT SPARK_RUN
chmod 711 "$SPARK_RUN"

end() {
    "$spark" delete -f --now none alone/alone member resident 2>/dev/null || true
    umount "$SPARK_ROOT/pool" && rm -r "$SPARK_ROOT" "$SPARK_RUN"
}
trap end EXIT

"$spark" pool init --size 1G >/dev/null
"$spark" base bootstrap minimal >/dev/null
"$spark" create -q --no-start --network none none
# The first of its project makes the bridge, and its stop removes it.
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
