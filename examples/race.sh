#!/bin/bash
# Eight forks of one spark try the same task, each in its own way; the first that passes takes the origin's place.
# Run it as root, with `spark` in PATH. It cleans up after itself.
set -euo pipefail

origin=race-origin
cleanup() {
    local name
    for name in $(spark list -q | grep -E "^(race-origin|race-try-[0-9]+)$" || true); do
        spark delete -f --now "$name" || true
    done
}
trap cleanup EXIT
cleanup

spark create "$origin" --base "${SPARK_BASE:-minimal}"
spark exec "$origin" -- sh -c 'mkdir /work && seq 1 1000 > /work/numbers'

# A runner's number is the end of its name. Some of them get it wrong.
# shellcheck disable=SC2016 # it is expanded inside
attempt='cd /work
runner=${HOSTNAME:-$(hostname)}; runner=${runner##*-}
case $runner in
    1|4|7) awk "{ s += \$1 } END { print s }" numbers > sum ;;
    *) head -n "$runner" numbers | awk "{ s += \$1 } END { print s }" > sum ;;
esac
test "$(cat sum)" = 500500'
spark --json fork -n 8 "$origin" race-try -- sh -c "$attempt" > "${TMPDIR:-/tmp}/race.$$" || true
winner=$(sed -n 's/.*"name": "\(.*\)".*/\1/p; s/.*"status": \(.*\),.*/\1/p' "${TMPDIR:-/tmp}/race.$$" |
    paste - - | awk '$2 == "0" { print $1; exit }')
rm -f "${TMPDIR:-/tmp}/race.$$"

echo "the winner is $winner"
spark pick "$winner" --as "$origin"
echo "the origin has the sum $(spark exec "$origin" -- cat /work/sum)"
spark undo "$origin"
spark exec "$origin" -- test ! -e /work/sum
echo "and without it once the pick is undone"
