#!/usr/bin/env bash
# Measures what reads archives, images, streams and repositories, with two builds of `spark` in turn.
#
# usage: benches/reading.sh [path to spark] [path to the other spark] [rounds] [name of a part]...
#
# The other one is what the first one is compared with. Content that does not compress, and text that does. Needs root, and Debian's
# packages umoci skopeo zstd git btrfs-progs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
declare -A programs=([new]=$(realpath "$1") [old]=$(realpath "$2"))
rounds=${3:-9}
shift $(($# < 3 ? $# : 3))
parts=${*:-receive import pull clone}

work=$(mktemp -d "${TMPDIR:-/var/tmp}/sparks-bench.XXXXXX")
run=$(mktemp -d /run/sparks-bench.XXXXXX)
chmod 711 "$run"
export SPARK_PROJECT=bench
cleanup() {
    umount "$work/old/pool" "$work/new/pool" || true
    rm -rf "$work" "$run"
}
trap cleanup EXIT
cd "$work"

# Each program has a pool of its own, and a script that runs it there: `STDIN PROGRAM ARGUMENT...`.
for program in old new; do
    cat >$program-spark <<EOR
#!/bin/bash
export SPARK_ROOT=$work/$program SPARK_RUN=$run/$program
exec "${programs[$program]}" "\${@:2}" <"\$1"
EOR
    # What was deleted is freed before the next command is timed.
    cat >$program-delete <<EOR
#!/bin/bash
$work/$program-spark /dev/null "\$@"
$work/$program-spark /dev/null gc
# The first has the kernel begin at once.
btrfs filesystem sync $work/$program/pool
btrfs subvolume sync $work/$program/pool
EOR
    chmod 755 $program-*
    mkdir -m 711 "$run/$program"
    ./$program-spark /dev/null pool init --size 3G >/dev/null
    ./$program-spark /dev/null base bootstrap minimal >/dev/null
done

# Times a command, and says how much longer it takes. Placeholders of the undoing are those of delete.
compare() {
    local name=$1 stdin=$2 command=$3 undo=$4
    python3 "$here/interleave.py" "$rounds" <<EOR | sed -n "${header:-1},\$p"
$name, before	$work/old-spark $stdin $command	$work/old-delete $undo
**$name**	$work/new-spark $stdin $command	$work/new-delete $undo
EOR
    header=3
}

mkdir big small
python3 - <<'EOR'
import random
random.seed(1)
with open("big/random", "wb") as f:
    for _ in range(500):
        f.write(random.randbytes(1000000))
words = [random.randbytes(random.randint(1, 6)).hex() for _ in range(5000)]
with open("text", "w") as f:
    for _ in range(500):
        f.write(" ".join(random.choices(words, k=125000))[:999999] + "\n")
for n in range(20000):
    if n % 100 == 0:
        import os
        os.makedirs(f"small/{n // 100}")
    with open(f"small/{n // 100}/{n}", "wb") as f:
        f.write(random.randbytes(random.randint(0, 4000)))
EOR
for what in big small text; do
    tar -cf $what.tar $what
done

part_receive() {
    for what in big small text; do
        ./old-spark /dev/null base import $what.tar $what >/dev/null
        ./old-spark /dev/null create --no-start --base $what $what >/dev/null
        ./old-spark /dev/null send $what >$what.stream 2>/dev/null
        ./old-delete delete --now $what >/dev/null
        ./old-delete base delete $what >/dev/null
    done
    compare "\`spark receive\`, 500 MB in one file" big.stream "receive got" "delete --now got"
    compare "\`spark receive\`, 20,000 small files" small.stream "receive got" "delete --now got"
    compare "\`spark receive\`, 500 MB of text, compressed" text.stream "receive got" "delete --now got"
}

part_import() {
    gzip -1k text.tar small.tar
    zstd -q text.tar small.tar
    compare "\`base import\`, 500 MB in one file" /dev/null "base import big.tar b" "base delete b"
    compare "the same on standard input" big.tar "base import - b" "base delete b"
    compare "\`base import\`, 20,000 small files" /dev/null "base import small.tar b" "base delete b"
    for suffix in gz zst; do
        compare "\`base import\`, 500 MB of text, .$suffix" /dev/null "base import text.tar.$suffix b" "base delete b"
        compare "\`base import\`, 20,000 small files, .$suffix" /dev/null "base import small.tar.$suffix b" "base delete b"
    done
}

part_pull() {
    mkdir both
    ln big/random text both
    cp -al small both
    umoci init --layout l
    umoci new --image l:v
    umoci unpack --image l:v bundle
    mv both bundle/rootfs
    umoci repack --image l:v bundle
    skopeo copy -q oci:l:v oci-archive:image.tar:v
    rm -rf l bundle
    compare "\`base pull\` of an archive of an image: both, and the small files" /dev/null \
        "base pull oci-archive:image.tar b" "base delete b"
}

part_clone() {
    git init -q repository
    python3 - <<'EOR'
import os, random
for n in range(5000):
    os.makedirs(f"repository/{n // 50}", exist_ok=True)
    with open(f"repository/{n // 50}/{n}", "w") as f:
        f.write(random.randbytes(1000).hex())
EOR
    git -C repository add -A
    git -C repository -c user.name=a -c user.email=a@example.org commit -qm all
    compare "\`create --clone\`, 5,000 files" /dev/null "create --no-start --clone $work/repository c" "delete --now c"
}

for part in $parts; do
    part_"$part"
done
