#!/bin/bash
# Runs a script in a throw-away VM: Debian 12 with its own kernel, systemd as
# process 1 and pure cgroup v2. Nothing of a run stays in the image.
#
# usage: boot.sh GUEST_SCRIPT SHARE_DIR [--data-disk SIZE] [--out DIR]
#
# In the guest bash runs GUEST_SCRIPT as root, from a systemd service, and again if
# it rebooted, which ends nothing else; SHARE_DIR is /share (read-only), /out is writable. What the script prints comes out here
# as it is printed, and boot.sh ends with the script's exit status. Other endings:
#
#   124  nothing was printed for too long: the VM was killed, its console's end printed
#   125  the VM could not start, or stopped before the script had ended
#
#   --data-disk SIZE  an empty second disk, /dev/vdb, such as 4G
#   --out DIR         keep console.log, output and what the script left in /out
#
# SPARK_VM_PATIENCE  seconds without a line until the VM is killed (900)
# SPARK_VM_MEMORY    the VM's memory (2G)
# SPARK_VM_ACCEL     qemu's accelerator (tcg,thread=single); kvm where that works
#
# Both processors are emulated in one thread. In two, one may execute an instruction that the other has just replaced: a
# kernel that patches itself, as at the first cpu.max, is then caught for ever in its handler of int3 (qemu 7.2).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
patience=${SPARK_VM_PATIENCE:-900}
work=
maker=
qemu=
timer=
reader=

die() {
    echo "boot.sh: $*" >&2
    exit 125
}

# shellcheck disable=SC2317  # the trap calls it
cleanup() {
    local pid
    if [ -n "$maker" ]; then
        kill "$maker" 2>/dev/null || true # it cleans up itself
        wait "$maker" 2>/dev/null || true
    fi
    for pid in $qemu $timer $reader; do
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    [ -z "$work" ] || rm -rf "$work"
}

console_tail() {
    echo "boot.sh: the console's last lines:" >&2
    tail -n 60 "$out/console.log" 2>/dev/null | tr -d '\r' | sed 's/^/  | /' >&2
}

[ $# -ge 2 ] || die "usage: boot.sh GUEST_SCRIPT SHARE_DIR [--data-disk SIZE] [--out DIR]"
script=$1
share=$2
shift 2
data_size=
out=
while [ $# -gt 0 ]; do
    case $1 in
    --data-disk) data_size=${2:?} ;;
    --out) out=${2:?} ;;
    *) die "unknown argument $1" ;;
    esac
    shift 2
done
[ -f "$script" ] || die "$script is not a file"
[ -d "$share" ] || die "$share is not a directory"
command -v qemu-system-x86_64 >/dev/null || die "qemu-system-x86_64 is missing"

trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
work=$(mktemp -d "${TMPDIR:-/var/tmp}/spark-vm.XXXXXX")

# In the background: a signal is handled at once, not when the image is made.
"$here/image.sh" >"$work/image" &
maker=$!
wait "$maker" || {
    maker=
    die "there is no image"
}
maker=
image=$(cat "$work/image")

out=${out:-$work/out}
mkdir -p "$out"
rm -f "$out/status" "$out/status.new"
cp "$script" "$out/script"
: >"$out/output"
: >"$out/console.log"

# A comma in a path would end qemu's option: it is written twice.
share=${share//,/,,}
options=(
    -nodefaults -no-user-config -display none
    -machine q35 -accel "${SPARK_VM_ACCEL:-tcg,thread=single}" -cpu max
    -smp 2 -m "${SPARK_VM_MEMORY:-2G}"
    -kernel "$image/vmlinux" -initrd "$image/initrd.cpio"
    -append "console=ttyS0 loglevel=5 panic=-1 mitigations=off random.trust_cpu=on cryptomgr.notests nosoftlockup workqueue.watchdog_thresh=0 sysctl.kernel.hung_task_timeout_secs=3600 systemd.show_status=error systemd.default_timeout_start_sec=1h systemd.service_watchdogs=no"
    -serial "file:${out//,/,,}/console.log"
    -device virtio-rng-pci
    -drive "file=${image//,/,,}/root.ext4,if=virtio,format=raw,snapshot=on,cache=unsafe"
    -virtfs "local,path=$share,mount_tag=share,security_model=none,readonly=on,multidevs=remap"
    -virtfs "local,path=${out//,/,,},mount_tag=out,security_model=none,multidevs=remap"
)
if [ -n "$data_size" ]; then
    truncate -s "$data_size" "$work/data"
    options+=(-drive "file=${work//,/,,}/data,if=virtio,format=raw,cache=unsafe")
fi

# The scratch copy of the disk goes to TMPDIR. The VM dies with this script,
# even if the script is killed with no chance to clean up.
TMPDIR=$work setpriv --pdeathsig KILL \
    qemu-system-x86_64 "${options[@]}" </dev/null >"$work/qemu.log" 2>&1 &
qemu=$!
# Not a limit for the whole: how long that takes is the machine's affair.
setpriv --pdeathsig KILL "$here/../until-silent.sh" "$patience" "$out/output" "$out/console.log" >/dev/null 2>&1 &
timer=$!
# It ends by itself once the VM is gone and all is printed.
setpriv --pdeathsig KILL tail -n +1 -f --pid="$qemu" -s 0.2 "$out/output" &
reader=$!

ended=
wait -n -p ended "$qemu" "$timer" || true
if [ "$ended" = "$timer" ]; then
    timer=
    kill -KILL "$qemu" 2>/dev/null || true
    wait "$qemu" 2>/dev/null || true
    qemu=
    wait "$reader" || true
    reader=
    echo "boot.sh: nothing was printed for $patience s, the VM was killed" >&2
    console_tail
    exit 124
fi
qemu=
wait "$reader" || true
reader=
sed 's/^/qemu: /' "$work/qemu.log" >&2
if ! [ -s "$out/status" ]; then
    echo "boot.sh: the VM stopped before the script had ended" >&2
    console_tail
    exit 125
fi
exit "$(cat "$out/status")"
