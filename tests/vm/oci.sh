#!/bin/bash
# What run.sh runs in the test VM with --guest oci.sh: containers of bundles where
# cgroups are of version 2 alone, made without systemd and by it, and the shim
# under containerd. Needs nothing but the guest's packages and /share/bin; never
# run it on a machine that is not thrown away.
# shellcheck disable=SC2317  # check calls most functions by name
set -uo pipefail
# shellcheck source=checks.sh
. /share/checks.sh

install -m 755 -t /usr/local/bin /share/bin/*
modprobe loop
work=$(mktemp -d /var/tmp/oci.XXXXXX)
chmod 711 "$work"
mkdir -p "$work/bundle/rootfs"/{bin,dev,proc,sys,tmp}
cp /bin/busybox "$work/bundle/rootfs/bin/"
for applet in $(busybox --list); do
    ln -s busybox "$work/bundle/rootfs/bin/$applet" 2>/dev/null
done
cd "$work/bundle" || exit

flags=()
oci() { timeout "$patience" /usr/local/bin/spark-oci "${flags[@]}" "$@"; }
quietly() { oci "$@" >/dev/null 2>"$work/said" </dev/null || {
    cat "$work/said"
    return 1
}; }
configure() { # FILTER: changes the configuration that `spec` proposes
    rm -f config.json
    oci spec && jq '.process.terminal = false | .process.args = ["sleep", "1000"] | .process.env = ["PATH=/bin"]
        | .root.readonly = false | .linux.cgroupsPath = $path
        | .linux.resources += {memory: {limit: 67108864}, pids: {limit: 50}, cpu: {quota: 33333, period: 100000, shares: 512}}
        | '"$1" --arg path "$path" config.json >config.new && mv config.new config.json
}
status_of() { oci state "$1" | jq -r .status; }
has_status() { [ "$(status_of "$1")" = "$2" ]; }
place_of() { sed -n 's/^0:://p' "/proc/$(oci state "$1" | jq -r .pid)/cgroup"; }
limit() { cat "$group/$1"; }
frozen() { grep -qx "frozen $1" "$group/cgroup.events"; }
processes() { grep -c . "$group/cgroup.procs"; }

out_of_memory() {
    local watcher status=0
    oci events --interval 1m c >"$work/events" &
    watcher=$!
    soon grep -q '"type":"stats"' "$work/events" || return
    oci exec c tail /dev/zero || status=$?
    soon grep -qx '{"type":"oom","id":"c"}' "$work/events"
    kill "$watcher"
    [ "$status" = 137 ]
}

life() { # WHERE: in which control group it has to be
    check "create" configure .
    check "a container is created" quietly create c
    check "it is where it belongs" equals "$1" place_of c
    group=/sys/fs/cgroup$1
    check "it is alone there" equals 1 processes
    check "memory.max holds the limit" equals 67108864 limit memory.max
    check "pids.max holds the limit" equals 50 limit pids.max
    check "cpu.max holds the limit, to the microsecond" equals '33333 100000' limit cpu.max
    check "it is started" oci start c
    check "it runs" equals running status_of c
    check "exec" equals hello oci exec c echo hello
    check "exec in the background" quietly exec -d c sleep 1000
    check "it is in the same place" equals 2 processes
    check "update" oci update --memory 32M --pids-limit 20 c
    check "memory.max is changed" equals 33554432 limit memory.max
    check "pids.max is changed" equals 20 limit pids.max
    check "cpu.max is as it was" equals '33333 100000' limit cpu.max
    check "systemd reads its configuration anew" systemctl daemon-reload
    check "memory.max is as it was" equals 33554432 limit memory.max
    check "pids.max is as it was" equals 20 limit pids.max
    check "pause" oci pause c
    check "it is frozen" soon frozen 1
    check "and says so" equals paused status_of c
    check "resume" oci resume c
    check "it is not frozen" soon frozen 0
    check "want of memory is an event" out_of_memory
    check "a disk's node can be made and not be opened" fails 'Operation not permitted' \
        oci exec --cap CAP_MKNOD c sh -c 'rm -f /tmp/x; mknod /tmp/x c 10 237 && true </tmp/x'
    check "/dev/null can" oci exec c sh -c 'echo x >/dev/null'
    check "kill" oci kill --all c KILL
    check "it has stopped" soon has_status c stopped
    check "delete" oci delete c
    check "its control group is gone" test ! -e "$group"
    check "it can be made again at once" quietly run -d c
    check "and in the same place" equals "$1" place_of c
    check "delete of one that runs" oci delete --force c
    check "its control group is gone again" test ! -e "$group"
    mapped='.linux.namespaces += [{type: "user"}] | .mounts |= map(select(.type != "cgroup" and .type != "mqueue"))
        | .linux.uidMappings = [{containerID: 0, hostID: 1000000, size: 65536}] | .linux.gidMappings = .linux.uidMappings
        | .process.args = ["sh", "-c", "head -n 1 /proc/self/uid_map | tr -s \" \""]'
    check "with a user namespace" configure "$mapped"
    check "it runs there" equals ' 0 1000000 65536' oci run c
    check "what cannot be executed" configure '.process.args = ["nosuch"]'
    check "is told" fails 'executable file not found' oci create c
    check "and leaves no container" nothing oci list -q
    check "and no control group" soon test ! -e "$group"
}

# A container that makes control groups in its own, and gives them its controllers: no process may be in its own any more.
delegated() { # WHERE: in which control group it has to be
    local made=$work/bundle/rootfs/tmp/made own='.process.args = ["sh", "-c", "cd /sys/fs/cgroup && mkdir -p own/deeper &&
        echo 0 >own/cgroup.procs && echo +memory +pids >cgroup.subtree_control && >/tmp/made; sleep 1001 & exec sleep 1002"]
        | (.mounts[] | select(.type == "cgroup") | .options) |= map(select(. != "ro"))'
    group=/sys/fs/cgroup$1
    rm -f "$made"
    check "one that makes control groups" configure "$own"
    check "is run" quietly run -d c
    check "it has made them" soon test -e "$made"
    check "its own has no process" nothing limit cgroup.procs
    check "its processes are known" soon equals 2 eval 'oci ps -f json c | jq length'
    check "exec" equals hello oci exec c echo hello
    check "exec in the background" quietly exec -d c sleep 1003
    check "that is known too" equals 3 eval 'oci ps -f json c | jq length'
    check "exec below" equals 0::/own/deeper oci exec --cgroup own/deeper c cat /proc/self/cgroup
    check "exec nowhere" fails 'there is no cgroup' oci exec --cgroup nosuch c true
    check "exec out of it" fails 'no cgroup below' oci exec --cgroup ../nosuch c true
    check "pause" oci pause c
    check "all of it is frozen" soon frozen 1
    check "resume" oci resume c
    check "none of it is frozen" soon frozen 0
    check "update" oci update --memory 32M c
    check "memory.max is changed" equals 33554432 limit memory.max
    check "what is below has that limit" eval '! oci exec c tail /dev/zero'
    check "it still runs" equals running status_of c
    check "kill of all" oci kill --all c KILL
    check "it has stopped" soon has_status c stopped
    check "no process is left" soon equals 0 eval 'oci ps -f json c | jq length'
    check "delete" oci delete c
    check "its control groups are gone" test ! -e "$group"
    rm -f "$made"
    check "another" quietly run -d c
    check "has made them" soon test -e "$made"
    check "delete of one that runs" oci delete --force c
    check "those control groups are gone" test ! -e "$group"
}

echo '# without systemd'
path=/made/here
life /made/here
delegated /made/here
check 'a path that is relative begins at the top' equals /made/here \
    eval 'path=made/here; configure . && quietly run -d c && place_of c && oci delete --force c'

echo '# by systemd'
check 'the loop device could be opened' sh -c 'true </dev/loop-control'
flags=(--systemd-cgroup)
path=machine.slice:libpod:c
life /machine.slice/libpod-c.scope
property() { systemctl show -p "$1" --value libpod-c.scope; }
check 'systemd has let go of it' soon equals not-found property LoadState
delegated /machine.slice/libpod-c.scope
check 'systemd lets go of that too' soon equals not-found property LoadState
check 'systemd knows no such unit any more' equals not-found property LoadState
check 'one more' eval 'configure . && quietly run -d c'
check 'systemd knows its limit' equals 67108864 property MemoryMax
check 'systemd knows whose it is' equals 'container c' property Description
check 'its scope is not given to another' fails 'libpod-c.scope' quietly create d
check 'of which nothing is left' equals c oci list -q
check 'the first is as it was' equals running status_of c
kill -KILL "$(oci state c | jq -r .pid)"
check 'one that has ended' soon has_status c stopped
check 'has no scope' soon equals not-found property LoadState
check 'and is deleted' oci delete c
killed_maker() {
    local maker
    quietly_held() { exec timeout "$patience" /usr/local/bin/spark-oci --systemd-cgroup create c >/dev/null 2>&1 </dev/null; }
    quietly_held &
    maker=$!
    soon pgrep -f 'sleep 424[2]' && equals loaded property LoadState || return
    pkill -KILL -P "$maker"
    pkill -KILL -f 'sleep 424[2]'
    wait "$maker"
    [ "$(ls -A /run/spark/containers)" != '' ]
}
check 'a hook that waits' configure '.hooks = {createRuntime: [{path: "/usr/bin/sleep", args: ["sleep", "4242"]}]}'
check 'its maker is killed' killed_maker
check 'nothing is listed' nothing oci list -q
check 'nothing is there' nothing ls -A /run/spark/containers
check 'systemd has no scope of it' soon equals not-found property LoadState
path=/made/here
check 'a path of another form' configure .
check 'is refused' fails 'slice:prefix:name' oci create c
check 'without a path' configure 'del(.linux.cgroupsPath)'
check 'it is called after the container' equals /system.slice/spark-oci-c.scope eval 'quietly run -d c && place_of c'
check 'and deleted' oci delete --force c

echo '# AppArmor'
flags=()
label() { cat "/proc/$(oci state c | jq -r .pid)/attr/current"; }
load() { # NAME: a profile that allows everything but one file
    apparmor_parser --replace --skip-cache <<<"profile $1 flags=(attach_disconnected) {
        file, capability, network, signal, ptrace, mount, umount, pivot_root, deny /tmp/closed w, }"
}
check 'the kernel has it' equals Y cat /sys/module/apparmor/parameters/enabled
check 'a profile is loaded' load spark-test
check 'and another' load spark-other
check 'a bundle names it' configure '.process.apparmorProfile = "spark-test"'
check 'its container is run' quietly run -d c
check 'the first process has the profile' equals 'spark-test (enforce)' label
check 'a command that joins has it too' equals 'spark-test (enforce)' oci exec c cat /proc/self/attr/current
check 'and is kept from what it denies' fails 'Permission denied' oci exec c sh -c '>/tmp/closed'
check 'and from nothing else' oci exec c sh -c '>/tmp/opened'
check 'a command may have another' equals 'spark-other (enforce)' oci exec --apparmor spark-other c cat /proc/self/attr/current
check 'but none that is not loaded' fails 'No such file or directory' oci exec --apparmor spark-nosuch c true
check 'which is deleted' oci delete --force c
check 'a bundle names one that is not loaded' configure '.process.apparmorProfile = "spark-nosuch"'
check 'its container is refused' fails 'No such file or directory' oci create c
check 'and none is left' nothing oci list -q
check 'without a profile' configure .
check 'a container is run' quietly run -d c
check 'it has none' equals unconfined label
check 'and is deleted too' oci delete --force c

echo '# containerd and the shim'
containers() { timeout "$patience" ctr -a "$work/sock" "$@"; }
answers() { containers version; }
if command -v containerd >/dev/null; then
    cat >"$work/config.toml" <<TOML
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[timeouts]
"io.containerd.timeout.shim.cleanup" = "300s"
"io.containerd.timeout.shim.load" = "300s"
"io.containerd.timeout.shim.shutdown" = "300s"
"io.containerd.timeout.task.state" = "300s"
[grpc]
address = "$work/sock"
TOML
    containerd --config "$work/config.toml" >"$work/containerd.log" 2>&1 &
    daemon=$!
    check 'containerd answers' soon answers
    check 'a task is run' containers run -d --runtime io.containerd.spark.v1 --memory-limit 67108864 \
        --rootfs "$work/bundle/rootfs" t sleep 1000
    task() { containers tasks "$@"; }
    has_task() { task ls | grep -qE "^t +[0-9]+ +$1"; }
    check 'it runs' has_task RUNNING
    check 'exec' equals hello task exec --exec-id e t echo hello
    check 'its memory is measured' eval 'task metrics --format json t | jq -e ".memory.usage > 0 and .memory.usage_limit == 67108864"'
    check 'pause' task pause t
    check 'it is paused' has_task PAUSED
    check 'resume' task resume t
    check 'kill' task kill -s KILL t
    check 'it has stopped' soon has_task STOPPED
    check 'delete of the task' task delete t
    check 'delete of the container' containers containers delete t
    check 'no shim is left' soon nothing pgrep -f 'shim-spark-v[1]'
    kill "$daemon" && wait "$daemon"
    [ "$failed" = 0 ] || tail -n 30 "$work/containerd.log" | sed 's/^/# containerd: /'
fi

check 'no unit has failed' nothing systemctl --failed --no-legend --plain
check 'the kernel has no complaint' \
    nothing sh -c "dmesg | grep -E 'BUG:|WARNING:|Oops|blocked for more than'"
finish
