#!/bin/bash
# What run.sh --guest network.sh runs in the test VM: networks of projects on a
# host of systemd, cgroup v2 and a kernel that knows IPv6 forwarding only for all
# devices at once. The internet is a network namespace. See guest.sh.
# shellcheck disable=SC2317  # check calls most functions by name
set -uo pipefail

# shellcheck source=checks.sh
. /share/checks.sh

spark() { timeout "$patience" /usr/local/bin/spark "$@"; }
address() { spark info "$1" --json | jq -er ".network.$2"; } # SPARK ipv4|ipv6

host4=198.51.100.1 beyond4=198.51.100.2
host6=2001:db8:1::1 beyond6=2001:db8:1::2

# A way to everywhere, by a device that takes routes by router advertisement.
make_internet() {
    ip netns add beyond &&
        ip link add up0 type veth peer name up0 netns beyond &&
        ip addr add $host4/24 dev up0 && ip addr add $host6/64 dev up0 nodad &&
        ip -n beyond addr add $beyond4/24 dev up0 && ip -n beyond addr add $beyond6/64 dev up0 nodad &&
        ip link set up0 up && ip -n beyond link set up0 up && ip -n beyond link set lo up &&
        ip route add default via $beyond4 && ip -6 route add default via $beyond6 || return
    ip netns exec beyond busybox nc -ll -p 80 -e echo beyond </dev/null >/dev/null 2>&1 &
    busybox nc -ll -p 7000 -e echo host </dev/null >/dev/null 2>&1 &
    soon listens ip netns exec beyond && soon sh -c 'ip -6 route | grep -q "fe80::/64 dev up0"'
}
listens() { "$@" ss -Hltn | grep -q ':80 '; }

# All of the host that a network changes.
host_state() {
    ip -o link | cut -d ' ' -f 2
    ip route
    ip -6 route | grep -v '^unreachable'
    nft list ruleset
    grep . /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv6/conf/*/{forwarding,accept_ra}
    find /run/spark-nets -mindepth 1 ! -name ports 2>/dev/null
}
kept=/var/lib/vm-state
as_before() {
    host_state >/tmp/now
    diff "$kept" /tmp/now
}

talks() { # SPARK
    spark exec -d "$1" -- busybox nc -ll -p 80 -e echo "$1" && soon inside_listens "$1"
}
inside_listens() { spark exec "$1" -- sh -c 'netstat -ltn | grep -q ":80 "'; }
hears() { spark exec "$1" -- nc -w 120 "$2" "$3"; } # SPARK ADDRESS PORT
refused() { ! hears "$@"; }
heard() { timeout "$patience" "${@:3}" busybox nc -w 120 "$1" "$2" </dev/null; } # ADDRESS PORT [COMMAND...]
from_beyond=(ip netns exec beyond)

ports_are() { [ "$(ip -o link | grep -c ': spv')" = "$1" ]; }
# No command of ours comes between: it would take the port back.
refuses_when_it_has_ended() {
    local said
    kill -9 "$(spark info one/b --json | jq -er .pid)" && soon ports_are 2 || return
    said=$(heard $host4 8080 "${from_beyond[@]}" 2>&1) && return 1
    echo "$said"
    # This kernel has no nft_reject_netdev: the host has to notice that nobody answers.
    grep -qE 'Connection refused|No route to host' <<<"$said"
}

reaches_its_project_and_beyond() { # SPARK OTHER
    check "$1 reaches $2 by name" equals "$2" hears "$1" "${2#*/}" 80
    check "$1 reaches $2 by IPv4" equals "$2" hears "$1" "$(address "$2" ipv4)" 80
    check "$1 reaches $2 by IPv6" equals "$2" hears "$1" "$(address "$2" ipv6)" 80
    check "$1 reaches what is beyond by IPv4" equals beyond hears "$1" $beyond4 80
    check "$1 reaches what is beyond by IPv6" equals beyond hears "$1" $beyond6 80
}

if rebooted; then
    check 'nothing of the networks is there after a reboot' nothing \
        sh -c "ip -o link | grep -E ' sp[kv]'; nft list ruleset; ls /run/spark-nets 2>/dev/null"
    check 'an internet' make_internet
    check 'the settings of the kernel are those of a host that never had sparks' soon as_before
    check 'sparks that ran before the reboot are resumed' spark resume one/a one/b
    check 'a spark has the address that it had' equals "$(cat /var/lib/vm-address)" address one/a ipv4
    check 'one/b talks' talks one/b
    reaches_its_project_and_beyond one/a one/b
    check 'they end' spark delete -f --now one/a one/b two/a
    check 'the host is as it was before' soon as_before
    finish
fi

install -m 755 -t /usr/local/bin /share/bin/*
echo "# kernel $(uname -r)"
check 'this kernel has IPv6 forwarding for all devices only' \
    test ! -e /proc/sys/net/ipv6/conf/all/force_forwarding
check 'an internet' make_internet
check 'a router may be told of' equals 1 cat /proc/sys/net/ipv6/conf/up0/accept_ra
check 'the host forwards nothing' equals 0 cat /proc/sys/net/ipv6/conf/all/forwarding
host_state >"$kept"
check 'pool init' spark pool init --size 2G
check 'base bootstrap' spark base bootstrap minimal
check 'create one/a' spark create one/a
check 'create one/b with a port' spark create one/b -p 8080:80
check 'create two/a, which is not to leave' spark create two/a --egress deny
for spark in one/a one/b two/a; do
    check "$spark talks" talks "$spark"
done
reaches_its_project_and_beyond one/a one/b
check 'the other project is not reached by IPv4' refused one/a "$(address two/a ipv4)" 80
check 'the other project is not reached by IPv6' refused one/a "$(address two/a ipv6)" 80
check 'a spark reaches itself by its address' equals two/a hears two/a "$(address two/a ipv4)" 80
check 'the host is not reached by IPv4' refused one/a $host4 7000
check 'the host is not reached by IPv6' refused one/a $host6 7000
check 'the refusals mean something: the host listens' equals host heard $host4 7000
check 'what may not leave does not, by IPv4' refused two/a $beyond4 80
check 'what may not leave does not, by IPv6' refused two/a $beyond6 80
check 'a published port is reached from beyond by IPv4' equals one/b heard $host4 8080 "${from_beyond[@]}"
check 'a published port is reached from beyond by IPv6' equals one/b heard $host6 8080 "${from_beyond[@]}"
check 'a published port is reached from the host' equals one/b heard 127.0.0.1 8080
check 'the host forwards by IPv6' equals 1 cat /proc/sys/net/ipv6/conf/all/forwarding
check 'and takes routes as before' equals 2 cat /proc/sys/net/ipv6/conf/up0/accept_ra
check 'the port of a spark that was killed refuses, without a timeout' refuses_when_it_has_ended
check 'all are stopped' spark stop one/a one/b two/a
check 'the host is as it was before' soon as_before

check 'two of them run' spark resume one/a one/b
address one/a ipv4 >/var/lib/vm-address
check 'the host forwards by IPv6 again' equals 1 cat /proc/sys/net/ipv6/conf/all/forwarding
reboot_and_go_on
