#!/usr/bin/env bash
# Measures spark beside crun, runc, bwrap and nsenter: the same root filesystem, the same limits, in one run.
#
# usage: benches/peers.sh [path to spark] [rounds]
#
# Needs root, and Debian's packages btrfs-progs busybox-static crun runc bubblewrap jq.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
spark=$(realpath "${1:-$(echo "$here"/../target/*/release/spark)}")
rounds=${2:-50}

if [ -z "${PEERS_INSIDE:-}" ]; then
    # crun 1.8 refuses hybrid cgroups, so all of them run without the unified part, in a mount namespace of
    # this script's own.
    export PEERS_INSIDE=1
    exec unshare --mount --propagation private "$0" "$spark" "$rounds"
fi
# shellcheck source=benches/lib.sh
. "$here/lib.sh"
own_null
if mountpoint -q /sys/fs/cgroup/unified; then
    umount /sys/fs/cgroup/unified
fi

work=$(mktemp -d)
run=$(mktemp -d /run/sparks-bench.XXXXXX)
chmod 711 "$run"
export SPARK_ROOT=$work/root SPARK_RUN=$run SPARK_PROJECT=bench
cleanup() {
    for name in $("$spark" list -q); do
        "$spark" delete -f --now "$name" || true
    done
    for id in peer-crun peer-runc; do
        crun delete -f "$id" 2>/dev/null || true
        runc delete -f "$id" 2>/dev/null || true
    done
    umount "$work/root/pool" || true
    rm -rf "$work" "$run"
}
trap cleanup EXIT

"$spark" pool init --size 4G >/dev/null
"$spark" base bootstrap minimal >/dev/null
"$spark" create --network none s >/dev/null

# The peers' root: the same files, owned by the ids that their user namespace maps to 0.
pool=$work/root/pool
first=1879048192
btrfs -q subvolume snapshot "$pool/bases/minimal/root" "$work/root/pool/peer" >/dev/null
chown -R $first:$first "$pool/peer"
mkdir "$work/bundle"
# The spark's own configuration, less what only its starter can mount.
"$spark" create --network none --shared none --dry-run --json planned |
    jq --arg root "$pool/peer" '.config | .root.path = $root | .linux.cgroupsPath = "/peer"
        | .mounts |= map(select(.type != "bind"))' >"$work/bundle/config.json"
chmod 755 "$work" "$work/root" "$pool"
for runtime in crun runc; do
    sed "s,\"/peer\",\"/peer-$runtime\"," "$work/bundle/config.json" >"$work/$runtime.json"
    mkdir "$work/$runtime"
    mv "$work/$runtime.json" "$work/$runtime/config.json"
    "$runtime" run --detach --bundle "$work/$runtime" "peer-$runtime" </dev/null >/dev/null 2>&1
done
pid=$("$spark" info s --json | jq .pid)

echo "exec of \`true\` in a running sandbox:"
echo
python3 "$here/interleave.py" "$rounds" <<EOF
crun exec	crun exec peer-crun true
spark exec	$spark exec s true
runc exec	runc exec peer-runc true
nsenter (no limits)	nsenter --target $pid --all --root --wd true
EOF

# A new sandbox from nothing to its first command, and away again untimed.
cat >"$work/crun-run" <<EOF
#!/bin/bash
set -e
btrfs -q subvolume snapshot "$pool/peer" "$pool/new" >/dev/null
exec crun run --bundle "$work/new" new </dev/null
EOF
cat >"$work/bwrap-run" <<EOF
#!/bin/bash
set -e
btrfs -q subvolume snapshot "$pool/peer" "$pool/new" >/dev/null
exec bwrap --bind "$pool/new" / --proc /proc --dev /dev --unshare-all true
EOF
cat >"$work/spark-run" <<EOF
#!/bin/bash
set -e
"$spark" create --network none new >/dev/null
exec "$spark" exec new true
EOF
chmod 755 "$work"/*-run
mkdir "$work/new"
jq --arg root "$pool/new" '.root.path = $root | .linux.cgroupsPath = "/new" | .process.args = ["true"]' \
    "$work/bundle/config.json" >"$work/new/config.json"

echo
echo "a new sandbox and its first command:"
echo
python3 "$here/interleave.py" "$rounds" <<EOF
snapshot + crun run	$work/crun-run	btrfs -q subvolume delete $pool/new
spark create + exec	$work/spark-run	$spark delete -f --now new
spark exec -	$spark exec --network none - true
snapshot + bwrap	$work/bwrap-run	btrfs -q subvolume delete $pool/new
EOF
btrfs -q subvolume delete "$pool/peer" >/dev/null
crun delete -f peer-crun
runc delete -f peer-runc

echo
echo "the command itself:"
echo
python3 "$here/interleave.py" "$rounds" <<EOF
spark version	$spark version
spark list (1)	$spark list
EOF

if [ "$rounds" -ge 20 ]; then
    echo
    echo "500 stopped sparks, then 200 running:"
    echo
    for n in $(seq 500); do "$spark" create --no-start --network none "n$n" >/dev/null; done
    python3 "$here/interleave.py" "$rounds" <<EOF
spark list (500)	$spark list
EOF
    echo
    now() { date +%s%N; }
    for n in $(seq 200); do
        before=$(now)
        "$spark" resume "n$n"
        after=$(now)
        echo "$n $(((after - before) / 10000))"
    done | awk '{ t[NR] = $2 / 100 } END {
        for (i = 1; i <= 20; i++) { a += t[i] / 20; b += t[NR - 20 + i] / 20 }
        printf "starting one: the first 20 took %.1f ms each, the last 20 of %d took %.1f (ratio %.2f)\n", a, NR, b, b / a }'
fi
