#!/usr/bin/env bash
# Measures `spark base pull` beside skopeo and podman: the same image, from the same registry on this host, in one run.
#
# usage: benches/images.sh [path to spark] [rounds] [root filesystem]
#
# The image has the files of a root filesystem (a Debian of packages that is made first, if none is given) in three
# layers of gzip. Needs root, and Debian's packages docker-registry umoci skopeo podman jq mmdebstrap btrfs-progs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
spark=$(realpath "${1:-$(echo "$here"/../target/*/release/spark)}")
rounds=${2:-10}
rootfs=${3:+$(realpath "$3")}

if [ -z "${IMAGES_INSIDE:-}" ]; then
    # podman refuses hybrid cgroups, so all of them run without the unified part, in a mount namespace of
    # this script's own.
    export IMAGES_INSIDE=1
    exec unshare --mount --propagation private "$0" "$spark" "$rounds" ${rootfs:+"$rootfs"}
fi
# shellcheck source=benches/lib.sh
. "$here/lib.sh"
own_null
if mountpoint -q /sys/fs/cgroup/unified; then
    umount /sys/fs/cgroup/unified
fi

work=$(mktemp -d /var/tmp/sparks-bench.XXXXXX)
run=$(mktemp -d /run/sparks-bench.XXXXXX)
chmod 711 "$run"
export SPARK_ROOT=$work/root SPARK_RUN=$run SPARK_PROJECT=bench
registry=
cleanup() {
    [ -z "$registry" ] || kill "$registry" || true
    umount "$work/peers" || true
    umount "$work/root/pool" || true
    rm -rf "$work" "$run"
}
trap cleanup EXIT

"$spark" pool init --size 6G >/dev/null
# The peers write to a btrfs on a loop image too.
truncate -s 6G "$work/peers.btrfs"
mkfs.btrfs -q -m single "$work/peers.btrfs"
mkdir "$work/peers"
mount -o loop,noatime "$work/peers.btrfs" "$work/peers"

if [ -z "$rootfs" ]; then
    mmdebstrap --quiet --variant=minbase --include=python3,git,build-essential bookworm "$work/rootfs" >/dev/null
    rootfs=$work/rootfs
fi
cd "$work"
umoci init --layout l
umoci new --image l:v
umoci insert --image l:v --rootless=false "$rootfs" / 2>/dev/null || umoci insert --image l:v "$rootfs" /
head -c 8M /dev/urandom >random
umoci insert --image l:v random /random
umoci insert --image l:v "$here" /benches
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >registry.yml <<EOR
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $work/files}}
http: {addr: "127.0.0.1:$port"}
EOR
docker-registry serve registry.yml >/dev/null 2>&1 &
registry=$!
for _ in $(seq 100); do
    curl -sf "http://127.0.0.1:$port/v2/" >/dev/null && break
    sleep 0.1
done
image=127.0.0.1:$port/bench/app:v
skopeo copy -q --dest-tls-verify=false oci:l:v "docker://$image"
# The same image but for its last layer.
umoci insert --image l:v registry.yml /more
skopeo copy -q --dest-tls-verify=false oci:l:v "docker://${image}2"
layers=$(skopeo inspect --tls-verify=false --raw "docker://$image" | jq -c '[.layers[].size]')
files=$(find "$rootfs" -xdev | wc -l)
echo "an image of $files files, layers of $layers bytes:"
echo

podman="podman --storage-driver overlay --root $work/peers/root --runroot $work/peers/run"
cat >pull-skopeo <<EOR
#!/bin/bash
skopeo copy -q --src-tls-verify=false docker://$image oci:$work/peers/oci:v && sync -f $work/peers
EOR
cat >pull-podman <<EOR
#!/bin/bash
$podman pull -q --tls-verify=false $image >/dev/null && sync -f $work/peers
EOR
cat >umoci-unpack <<EOR
#!/bin/bash
skopeo copy -q --src-tls-verify=false docker://$image oci:$work/peers/oci:v &&
    umoci unpack --image $work/peers/oci:v $work/peers/bundle >/dev/null 2>&1 && sync -f $work/peers
EOR
cat >again-podman <<EOR
#!/bin/bash
$podman rmi -af >/dev/null 2>&1
EOR
cat >again-spark <<EOR
#!/bin/bash
"$spark" base delete app-v 2>/dev/null
"$spark" gc >/dev/null
EOR
chmod 755 pull-* umoci-unpack again-*
# The default base is no base to delete.
"$spark" base bootstrap minimal >/dev/null

echo "pulled for the first time, and written to disk:"
echo
python3 "$here/interleave.py" "$rounds" <<EOR
spark base pull	$spark base pull $image	$work/again-spark
podman pull	$work/pull-podman	$work/again-podman
skopeo copy (blobs only)	$work/pull-skopeo	rm -rf $work/peers/oci
skopeo copy + umoci unpack	$work/umoci-unpack	rm -rf $work/peers/oci $work/peers/bundle
EOR

"$spark" base pull "$image" >/dev/null
"$work/pull-podman"
echo
echo "pulled again, under another name, with nothing new and with one small layer:"
echo
python3 "$here/interleave.py" "$rounds" <<EOR
spark base pull	$spark base pull $image again	$spark base delete again
podman pull	$work/pull-podman
spark base pull (one layer more)	$spark base pull ${image}2 again	$spark base delete again
EOR
