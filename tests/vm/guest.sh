#!/bin/bash
# What run.sh runs in the test VM: that the VM is what it should be, then the
# life of a spark in it. Needs nothing but the guest's packages; never run it on
# a machine that is not thrown away. It asserts no latencies: the VM is emulated.
# shellcheck disable=SC2317  # check calls most functions by name
set -uo pipefail

passed=0
failed=0
log=$(mktemp)

# check SENTENCE COMMAND...: the command must succeed.
check() {
    local sentence=$1 status=0
    shift
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" = 0 ]; then
        passed=$((passed + 1))
        echo "ok - $sentence"
    else
        failed=$((failed + 1))
        echo "not ok - $sentence"
        echo "# status $status of: $*"
        tail -n 20 "$log" | sed 's/^/# /'
    fi
}

# equals EXPECTED COMMAND...: the command must succeed and print just that.
equals() {
    local expected=$1 got
    shift
    got=$("$@") || return
    [ "$got" = "$expected" ] || {
        echo "expected: $expected"
        echo "got:      $got"
        return 1
    }
}

# same COMMAND -- COMMAND: both succeed and print the same, which is not nothing.
same() {
    local first=() one two
    while [ "$1" != -- ]; do
        first+=("$1")
        shift
    done
    shift
    one=$("${first[@]}") || return
    two=$("$@") || return
    echo "first:  $one"
    echo "second: $two"
    [ -n "$one" ] && [ "$one" = "$two" ]
}

# nothing COMMAND...: the command prints nothing, whatever its status.
nothing() {
    local got
    got=$("$@")
    [ -z "$got" ] || {
        echo "left: $got"
        return 1
    }
}

finish() {
    rm -f "$log"
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ]
    exit
}

### The VM

only_cgroup2() {
    nothing findmnt -rn -t cgroup -o TARGET &&
        equals /sys/fs/cgroup findmnt -rn -t cgroup2 -o TARGET
}

controllers() {
    local name
    for name in cpu io memory pids; do
        grep -qw "$name" /sys/fs/cgroup/cgroup.controllers || {
            echo "no controller $name"
            return 1
        }
    done
}

freezer() {
    local dir=/sys/fs/cgroup/smoke pid tries status=1
    mkdir "$dir" || return
    sleep 100 &
    pid=$!
    echo "$pid" >"$dir/cgroup.procs"
    echo 1 >"$dir/cgroup.freeze"
    for tries in {1..50}; do
        if grep -qx 'frozen 1' "$dir/cgroup.events"; then
            status=0
            break
        fi
        sleep 0.1
    done
    echo "after $tries tries:" && cat "$dir/cgroup.events"
    echo 1 >"$dir/cgroup.kill"
    wait "$pid"
    rmdir "$dir"
    return "$status"
}

user_namespace() {
    equals 0 unshare --user --map-root-user --pid --fork --mount-proc id -u
}

loop_btrfs() {
    local dir
    dir=$(mktemp -d) &&
        truncate -s 256M "$dir/image" &&
        mkfs.btrfs -q "$dir/image" &&
        mkdir "$dir/mnt" &&
        mount -o loop "$dir/image" "$dir/mnt" &&
        btrfs subvolume create "$dir/mnt/one" &&
        echo hello >"$dir/mnt/one/file" &&
        btrfs subvolume snapshot "$dir/mnt/one" "$dir/mnt/two" &&
        equals hello cat "$dir/mnt/two/file" &&
        umount "$dir/mnt" &&
        rm -r "$dir"
}

overlay() {
    local dir
    dir=$(mktemp -d) &&
        mkdir "$dir"/{lower,upper,work,mnt} &&
        mount -t overlay -o "lowerdir=$dir/lower,upperdir=$dir/upper,workdir=$dir/work" none "$dir/mnt" &&
        umount "$dir/mnt" &&
        rm -r "$dir"
}

network_namespace() {
    ip netns add smoke &&
        ip link add smoke0 type veth peer name smoke1 netns smoke &&
        nft add table inet smoke &&
        nft delete table inet smoke &&
        ip netns delete smoke
}

echo "# kernel $(uname -r), $(systemctl --version | head -n 1)"
echo "# root's subtree_control: $(cat /sys/fs/cgroup/cgroup.subtree_control)"
check 'process 1 is systemd' equals systemd cat /proc/1/comm
check 'the guest script runs in a systemd service' grep -qx '0::/system.slice/vm-run.service' /proc/self/cgroup
check '/sys/fs/cgroup is cgroup2, and there is no other cgroup hierarchy' only_cgroup2
check 'cgroup2 has the controllers cpu, io, memory and pids' controllers
check 'a cgroup can be frozen and killed' freezer
check 'the kernel has btrfs' modprobe btrfs
check 'the kernel has loop devices' modprobe loop
check 'user namespaces work' user_namespace
check 'a btrfs can be made in a file, mounted and snapshotted' loop_btrfs
check 'overlay can be mounted' overlay
check 'network namespaces, veth and nft work' network_namespace
check 'no unit has failed' nothing systemctl --failed --no-legend --plain

if ! ls /share/bin/* >/dev/null 2>&1; then
    echo "# no binaries: only the VM was checked"
    finish
fi

### The life of a spark

# The binaries run from the disk: a user's binary does not lie on 9p.
install -m 755 -t /usr/local/bin /share/bin/*

spark() { timeout 120 /usr/local/bin/spark "$@"; }
inside() { spark exec web -- "$@"; }
id_of() { spark info "$1" --json | jq -er .id; }
limit_of() { cat "/sys/fs/cgroup/spark/$(id_of "$1")/$2"; } # SPARK FILE

# Events of a cgroup change shortly after the command that caused them.
soon() {
    local tries
    for tries in {1..50}; do
        ! "$@" || return 0
        sleep 0.1
    done
    echo "still not so after $tries tries: $*"
    return 1
}
frozen() { # SPARK 0|1
    grep -qx "frozen $2" "/sys/fs/cgroup/spark/$(id_of "$1")/cgroup.events"
}

check 'the guest has the libraries that spark needs' \
    nothing sh -c "ldd /usr/local/bin/spark 2>&1 | grep 'not found'"
check 'version' spark version
check 'doctor finds nothing amiss' spark doctor
sed 's/^/# doctor: /' "$log" 2>/dev/null
check 'pool init' spark pool init --size 2G
check 'base bootstrap' spark base bootstrap minimal
check 'create' spark create web --network none
check 'exec writes a file' inside sh -c 'echo hello > /root/f'
check 'stop' spark stop web
check 'resume after stop' spark resume web
check 'the file is still there' equals hello inside cat /root/f

check 'pause' spark pause web
check 'a paused spark is frozen' soon frozen web 1
check 'resume after pause' spark resume web
check 'a resumed spark is not frozen' soon frozen web 0
check 'exec works after pause and resume' equals hello inside cat /root/f

held_still() {
    local said
    said=$(spark -v snapshot create web once 2>&1)
    echo "$said"
    grep -q ' held still' <<<"$said"
}
check 'a snapshot holds the spark still' held_still
check 'after a snapshot it is not frozen' soon frozen web 0

### exec is confined as init is

# The command prints something inside, but not what it prints outside.
not_the_hosts() { # COMMAND...
    local inner outer
    inner=$(inside "$@") || return
    outer=$("$@")
    echo "inside:  $inner"
    echo "outside: $outer"
    [ -n "$inner" ] && [ "$inner" != "$outer" ]
}

check 'the spark has a cgroup of its own' test -d "/sys/fs/cgroup/spark/$(id_of web)"
check 'exec is in the cgroup of init' same inside cat /proc/self/cgroup -- inside cat /proc/1/cgroup
check 'exec is in the user namespace of init' same inside readlink /proc/self/ns/user -- inside readlink /proc/1/ns/user
check 'exec has the uid_map of init' same inside cat /proc/self/uid_map -- inside cat /proc/1/uid_map
check 'the uid_map is not that of the host' not_the_hosts cat /proc/self/uid_map
check 'exec has the seccomp mode and capabilities of init' \
    same inside grep -E '^(Seccomp|CapBnd|NoNewPrivs)' /proc/self/status -- \
    inside grep -E '^(Seccomp|CapBnd|NoNewPrivs)' /proc/1/status
check 'seccomp filters are on' inside grep -qE '^Seccomp:[[:space:]]*2$' /proc/self/status
check 'capabilities are bounded' not_the_hosts grep CapBnd /proc/self/status

### What must not work inside

# refused COMMAND_LINE: runs inside and fails, and not for want of the tool.
refused() {
    local tool=${1%% *} status=0
    case $tool in
    echo | :) ;;
    *) inside sh -c "command -v $tool" || return ;;
    esac
    inside sh -c "$1" || status=$?
    echo "status $status"
    [ "$status" != 0 ] && [ "$status" != 124 ] && [ "$status" != 127 ]
}

check 'the refusals mean something: exec itself works' inside true
check 'the refusals mean something: mount works outside' \
    unshare -m busybox sh -c 'busybox mount -t tmpfs none /mnt'
check 'the refusals mean something: unshare -U works outside' busybox unshare -U true
check 'the refusals mean something: mknod works outside' busybox mknod /tmp/disk b 254 0
check 'mount of a tmpfs is refused inside' refused 'mount -t tmpfs none /mnt'
check 'mount of a proc is refused inside' refused 'mount -t proc proc /mnt'
check 'a bind mount is refused inside' refused 'mount -o bind /root /mnt'
check 'remounting /proc/sys writable is refused inside' refused 'mount -o remount,rw,bind /proc/sys'
check 'unshare -U is refused inside' refused 'unshare -U true'
check 'writing /proc/sysrq-trigger is refused inside' refused 'echo h > /proc/sysrq-trigger'
check 'writing a sysctl of the kernel is refused inside' refused 'echo x > /proc/sys/kernel/core_pattern'
check 'mknod of a disk is refused inside' refused 'mknod /root/disk b 254 0'
check 'writing to /proc/1/exe is refused inside' refused ': > /proc/1/exe'
check 'writing its own memory limit is refused inside' refused 'echo max > /sys/fs/cgroup/memory.max'

### Limits

check 'create with limits' spark create lim --memory 64M --pids 50 --network none
check 'memory.max holds the limit' equals $((64 * 1024 * 1024)) limit_of lim memory.max
check 'pids.max holds the limit' equals 50 limit_of lim pids.max

### Nothing is left

processes_left() {
    grep -ls ':/spark/' /proc/[0-9]*/cgroup
    pgrep -xa spark
}
mounts_left() { awk '$5 ~ "^/run/spark/" { print $5 }' /proc/self/mountinfo; }
cgroups_left() { find /sys/fs/cgroup/spark -mindepth 1 -type d 2>/dev/null; }

check 'delete' spark delete -f web lim
check 'no process is left' soon nothing processes_left
check 'no mount is left below /run/spark' nothing mounts_left
check 'no cgroup is left' soon nothing cgroups_left
check 'no unit has failed since' nothing systemctl --failed --no-legend --plain
check 'the kernel has no complaint' \
    nothing sh -c "dmesg | grep -E 'BUG:|WARNING:|Oops|blocked for more than'"

finish
