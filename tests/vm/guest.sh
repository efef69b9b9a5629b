#!/bin/bash
# What run.sh runs in the test VM: that the VM is what it should be, then the
# life of a spark in it. Needs nothing but the guest's packages; never run it on
# a machine that is not thrown away. It asserts no latencies: the VM is emulated.
# shellcheck disable=SC2317  # check calls most functions by name
set -uo pipefail

# shellcheck source=checks.sh
. /share/checks.sh

io_max_is() { # LIMITS: of the spark lim, on the loop device that the pool is on
    limit_of lim io.max
    limit_of lim io.max | grep -qE "^7:[0-9]+ $1 "
}
cgroups_left() { find /sys/fs/cgroup/spark -mindepth 1 -type d 2>/dev/null; }

### After the reboot

spark() { timeout "$patience" /usr/local/bin/spark "$@"; }
inside() { spark exec web -- "$@"; }
id_of() { spark info "$1" --json | jq -er .id; }
limit_of() { cat "/sys/fs/cgroup/spark/$(id_of "$1")/$2"; } # SPARK FILE
field_of() { spark info "$1" --json | jq -er "$2"; }        # SPARK FILTER

if rebooted; then
    check 'a spark that ran before the reboot is stopped after it' equals stopped field_of lim .state
    check 'and has its limits still' equals 50331648 field_of lim .options.limits.memory
    check 'it is resumed' spark resume lim
    check 'memory.max holds the limit that was set' equals 50331648 limit_of lim memory.max
    check 'no swap on top of it' equals 0 limit_of lim memory.swap.max
    check 'pids.max holds the limit that was set' equals 40 limit_of lim pids.max
    check 'cpu.max holds the limit that was set' equals '50000 100000' limit_of lim cpu.max
    check 'io.max holds the limit that was set' io_max_is 'rbps=2097152 wbps=2097152'
    check 'the file is still there' equals hello spark exec lim -- cat /root/f
    check 'delete after the reboot' spark delete -f --now lim
    check 'no cgroup is left' nothing cgroups_left
    finish
fi

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
    local dir=/sys/fs/cgroup/smoke pid status=1
    mkdir "$dir" || return
    sleep 100 &
    pid=$!
    echo "$pid" >"$dir/cgroup.procs"
    echo 1 >"$dir/cgroup.freeze"
    soon grep -qx 'frozen 1' "$dir/cgroup.events" && status=0
    cat "$dir/cgroup.events"
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

frozen() { # SPARK 0|1
    grep -qx "frozen $2" "/sys/fs/cgroup/spark/$(id_of "$1")/cgroup.events"
}

check 'the guest has the libraries that spark needs' \
    nothing sh -c "ldd /usr/local/bin/spark 2>&1 | grep 'not found'"
check 'version' spark version
check 'doctor finds nothing amiss' spark doctor
sed 's/^/# doctor: /' "$log" 2>/dev/null
no_quota() {
    local said
    said=$(spark pool init --quota --size 2G 2>&1) && return 1
    echo "$said"
    grep -q 'no simple quotas' <<<"$said" && [ ! -e /var/lib/spark/pool.json ]
}
check 'a kernel without simple quotas refuses them, and nothing is made' no_quota
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

# What does not come to a stand in time is not waited for.
held_still() {
    local said
    said=$(spark -v snapshot create web 2>&1)
    echo "$said"
    grep -q ' held still' <<<"$said"
}
check 'a snapshot holds the spark still' soon held_still
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

### Devices

# Runs a command as the host's root in the group of a spark: nothing but the group's rules keeps it from a device.
in_group() { # SPARK COMMAND...
    # shellcheck disable=SC2016  # the inner shell expands them
    sh -c 'echo $$ >"/sys/fs/cgroup/spark/$0/cgroup.procs" && exec "$@"' "$(id_of "$1")" "${@:2}"
}
disk=$(findmnt -no SOURCE /)
disk_is_refused() {
    local said
    said=$(in_group web head -c 1 "$disk" 2>&1) && return 1
    echo "$said"
    grep -q 'Operation not permitted' <<<"$said"
}
check 'the refusal means something: the disk can be read outside' head -c 1 "$disk"
check 'the devices of every spark can be used in its group' in_group web head -c 1 /dev/zero
check 'the disk of the host cannot' disk_is_refused

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

# The defaults: half of the host; the soft bound is 15/16 of that. Both are whole pages.
half_of_memory=$(awk '/^MemTotal:/ { print int($2 * 1024 / 2 / 4096) * 4096 }' /proc/meminfo)
soft_bound=$(((half_of_memory - half_of_memory / 16) / 4096 * 4096))
half_of_tasks=$(cat /proc/sys/kernel/{threads-max,pid_max} | sort -n | head -n 1)
half_of_tasks=$((half_of_tasks / 2 < 4096 ? half_of_tasks / 2 : 4096))
check 'memory.max is half of the host by default' equals "$half_of_memory" limit_of web memory.max
check 'memory.high is below it' equals "$soft_bound" limit_of web memory.high
check 'no swap on top of the default' equals 0 limit_of web memory.swap.max
check 'pids.max is half of the host by default, and at most 4096' equals "$half_of_tasks" limit_of web pids.max
check 'a lifted default is lifted' spark set web --memory none
check 'memory.max is lifted for web' equals max limit_of web memory.max
check 'memory.high is lifted for web' equals max limit_of web memory.high
check 'the default comes back' spark set web --memory default
check 'memory.max is half of the host again' equals "$half_of_memory" limit_of web memory.max
check 'memory.high is below it again' equals "$soft_bound" limit_of web memory.high

check 'create with limits' spark create lim --memory 64M --pids 50 --network none
check 'memory.max holds the limit' equals $((64 * 1024 * 1024)) limit_of lim memory.max
check 'pids.max holds the limit' equals 50 limit_of lim pids.max
check 'no swap on top of the memory' equals 0 limit_of lim memory.swap.max
check 'limits are changed' spark set lim --memory 96M --pids 60 --cpus 1.5 --io 4M
check 'memory.max is raised' equals 100663296 limit_of lim memory.max
check 'memory.swap.max stays' equals 0 limit_of lim memory.swap.max
check 'memory.high is as it was' equals max limit_of lim memory.high
check 'pids.max is changed' equals 60 limit_of lim pids.max
check 'cpu.max is set' equals '150000 100000' limit_of lim cpu.max
check 'io.max is set, on the disk of the pool' io_max_is 'rbps=4194304 wbps=4194304'
check 'info tells the limits in force' equals '{"memory":100663296,"cpus_milli":1500,"pids":60,"io":4194304}' \
    field_of lim '.limits | tojson'

lower_than_used() {
    local said
    spark exec lim -- dd if=/dev/zero of=/dev/shm/x bs=1M count=40 || return
    said=$(spark set lim --memory 16M 2>&1) && return 1
    echo "$said"
    grep -q 'cannot lower the memory limit' <<<"$said" &&
        equals 100663296 limit_of lim memory.max &&
        equals max limit_of lim memory.high &&
        equals 0 field_of lim .usage.oom_kills &&
        spark exec lim -- rm /dev/shm/x
}
killed_for_memory() {
    local said status=0
    said=$(spark exec lim -- awk 'BEGIN { x = "x"; while (1) x = x x }' 2>&1) || status=$?
    echo "status $status: $said"
    [ "$status" = 137 ] && grep -q 'ran out of its 96.0 MiB of memory' <<<"$said" &&
        equals 1 field_of lim .usage.oom_kills
}
check 'memory that is in use cannot be taken, and nobody is killed for it' lower_than_used
check 'who is killed for memory is told so' killed_for_memory
check 'limits are lifted' spark set lim --memory none --cpus none --io none --pids none
check 'memory.max is lifted' equals max limit_of lim memory.max
check 'memory.swap.max is lifted' equals max limit_of lim memory.swap.max
check 'cpu.max is lifted' equals 'max 100000' limit_of lim cpu.max
check 'io.max is lifted' nothing limit_of lim io.max
check 'pids.max is the default' equals "$half_of_tasks" limit_of lim pids.max

### Secrets

check 'a secret is in no journal and in no core dump' bash /share/guest-secrets.sh

### Up on connect, down when idle

fetch() (
    exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /hello HTTP/1.0\r\n\r\n' >&3 &&
        timeout "$patience" tail -n 1 <&3
)
is_stopped() { [ "$(spark info served --json | jq -r .state)" = stopped ]; }
is_inactive() { [ "$(systemctl is-active spark-default.served.8080.service)" = inactive ]; }

check 'create with an idle stop' spark create served --network none --idle-stop 2s
check 'it has something to serve' spark exec served -- sh -c 'mkdir /www && echo hello > /www/hello'
check 'up-on-connect installs units' spark up-on-connect served 8080:80 --idle 2s --install -- \
    httpd -f -p 127.0.0.1:80 -h /www
check 'systemd takes them' systemctl daemon-reload
check 'systemd listens' systemctl start spark-default.served.8080.socket
check 'the spark stops when idle' soon is_stopped
check 'a connection is answered by the spark that was stopped' equals hello fetch
# What is connected keeps it.
exec 9<>/dev/tcp/127.0.0.1/8080
check 'it runs now' soon equals running sh -c 'spark info served --json | jq -r .state'
check 'the next is answered at once' equals hello fetch
check 'the spark is in no cgroup of the service' \
    nothing grep -l 'spark-default.served' /proc/"$(spark info served --json | jq -r .pid)"/cgroup
exec 9>&-
check 'the relay ends when nobody is connected' soon is_inactive
check 'then the spark stops too' soon is_stopped
check 'and is there again for the next connection' equals hello fetch
check 'the end of the socket' systemctl stop spark-default.served.8080.socket spark-default.served.8080.service
check 'what served ends with the relay' soon is_stopped

### Nothing is left

processes_left() {
    grep -ls ':/spark/' /proc/[0-9]*/cgroup
    pgrep -xa spark
}
mounts_left() { awk '$5 ~ "^/run/spark/" { print $5 }' /proc/self/mountinfo; }

check 'delete' spark delete -f web lim served
check 'no process is left' soon nothing processes_left
check 'no mount is left below /run/spark' nothing mounts_left
check 'no cgroup is left' soon nothing cgroups_left
check 'no unit has failed since' nothing systemctl --failed --no-legend --plain
check 'the kernel has no complaint' \
    nothing sh -c "dmesg | grep -E 'BUG:|WARNING:|Oops|blocked for more than'"

### A reboot

check 'what was deleted is brought back' spark undelete lim
check 'it is given limits while it is stopped' spark set lim --memory 64M --pids 50
check 'it is resumed' spark resume lim
check 'and given others while it runs' spark set lim --memory 48M --pids 40 --cpus 0.5 --io 2M
check 'it has a file' spark exec lim -- sh -c 'echo hello > /root/f; sync'
check 'it runs' equals running field_of lim .state
reboot_and_go_on
