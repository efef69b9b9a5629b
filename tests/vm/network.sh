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
# An address that the host gets while sparks run, by systemd-networkd.
late4=203.0.113.9 late6=2001:db8:9::9
# A container that has published nothing, on a bridge as Docker makes one.
container4=172.17.0.2 container6=fd00:d0c::2
metadata=169.254.169.254

# A way to everywhere, by a device that takes routes by router advertisement.
make_internet() {
    ip netns add beyond &&
        ip link add up0 type veth peer name up0 netns beyond &&
        ip addr add $host4/24 dev up0 && ip addr add $host6/64 dev up0 nodad &&
        ip -n beyond addr add $beyond4/24 dev up0 && ip -n beyond addr add $beyond6/64 dev up0 nodad &&
        ip link set up0 up && ip -n beyond link set up0 up && ip -n beyond link set lo up &&
        ip route add default via $beyond4 && ip -6 route add default via $beyond6 || return
    ip netns exec beyond busybox nc -ll -p 80 -e echo beyond </dev/null >/dev/null 2>&1 &
    ip netns exec beyond busybox nc -ll -p 81 -e echo beyond </dev/null >/dev/null 2>&1 &
    busybox nc -ll -p 7000 -e echo host </dev/null >/dev/null 2>&1 &
    # What clouds have at that address, on the way to everywhere.
    ip -n beyond addr add $metadata/32 dev lo &&
        soon listens ip netns exec beyond && soon sh -c 'ip -6 route | grep -q "fe80::/64 dev up0"'
}
# Its neighbours on the internet know the way to it by the host.
make_container() {
    ip netns add container &&
        ip link add docker0 type bridge && ip link add vc0 type veth peer name eth0 netns container &&
        ip link set vc0 master docker0 up && ip link set docker0 up &&
        ip addr add 172.17.0.1/16 dev docker0 && ip addr add fd00:d0c::1/64 dev docker0 nodad &&
        ip -n container addr add $container4/16 dev eth0 && ip -n container addr add $container6/64 dev eth0 nodad &&
        ip -n container link set eth0 up && ip -n container link set lo up &&
        ip -n container route add default via 172.17.0.1 && ip -n container -6 route add default via fd00:d0c::1 &&
        ip -n beyond route add 172.17.0.0/16 via $host4 && ip -n beyond -6 route add fd00:d0c::/64 via $host6 ||
        return
    ip netns exec container busybox nc -ll -p 80 -e echo container </dev/null >/dev/null 2>&1 &
    soon listens ip netns exec container
}
listens() { "$@" ss -Hltn | grep -q ':80 '; }

# All of the host that a network changes.
host_state() {
    ip -o link | cut -d ' ' -f 2
    ip route
    ip -6 route | grep -v '^unreachable'
    ip rule
    ip -6 rule
    ip route show table 5353 2>/dev/null
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

in_router=(nsenter --net=/run/spark/net/router)
ports_are() { [ "$("${in_router[@]}" ip -o link | grep -c ': spv')" = "$1" ]; }
# No command of ours comes between: it would take the port back.
refuses_when_it_has_ended() {
    local said
    kill -9 "$(spark info one/b --json | jq -er .pid)" && soon ports_are 2 || return
    said=$(heard $host4 8080 "${from_beyond[@]}" 2>&1) && return 1
    echo "$said"
    grep -q 'Connection refused' <<<"$said"
}

# Which of these places answer. All are asked at once, and those that drop are given up: what is open has been reached
# by the same command before.
open_to() { # SPARK ADDRESS PORT [ADDRESS PORT...]
    # shellcheck disable=SC2016  # the shell of the spark expands these
    spark exec "$1" -- sh -c '
        while [ $# -gt 0 ]; do
            (said=$(nc -w 20 "$1" "$2" </dev/null 2>/dev/null) && [ -n "$said" ] && echo "$1 $2 $said") &
            shift 2
        done
        wait' sh "${@:2}" | sort
}
lines() { printf '%s\n' "$@" | sort; }

# What a spark of the project `one` must not reach, in whatever state the rules of the host are.
closed_places() {
    local place uplink
    uplink=$(ip -4 -o addr show | awk '/: spk-/ { sub("/.*", "", $4); print $4 }')
    for place in $host4 $host6 $late4 $late6 172.17.0.1 fd00:d0c::1 "$uplink"; do
        echo "$place" 7000
    done
    for place in $container4 $container6 $metadata "$other4" "$other6"; do
        echo "$place" 80
    done
}
stays_closed() { # AFTER WHAT
    local places
    mapfile -t places < <(closed_places | tr ' ' '\n')
    check "$1: a spark reaches its project, and nothing of the host or of others" \
        equals "$(lines "$b4 80 one/b" "$b6 80 one/b")" open_to one/a "${places[@]}" "$b4" 80 "$b6" 80
    check "$1: the host forwards nothing between its own devices" nothing forwarded
}
# The same way, by what may pass.
probe_works() { # AFTER WHAT
    check "$1: a spark with --allow-host reaches the host, and so the probe works" \
        equals "$(lines "$host4 7000 host" "$host6 7000 host" "$late4 7000 host" "$late6 7000 host")" \
        open_to one/trusted $host4 7000 $host6 7000 $late4 7000 $late6 7000
}
forwarded() {
    local address asked=()
    for address in $container4 $container6; do
        ip netns exec beyond busybox nc -w 20 "$address" 80 </dev/null 2>/dev/null &
        asked+=($!)
    done
    wait "${asked[@]}"
}
set_forwarding() { sysctl -qw net.ipv4.ip_forward="$1" net.ipv6.conf.all.forwarding="$1"; }
leaves() {
    equals "$(lines "$beyond4 80 beyond" "$beyond6 80 beyond")" open_to one/a $beyond4 80 $beyond6 80
}
mended() { # AFTER WHAT
    check "$1: spark gc" spark gc
    check "$1: after it a spark reaches what is beyond" leaves
}
our_rules() {
    ip rule show | grep '^535'
    ip -6 rule show | grep '^535'
    ip route show table 5353
    ip -6 route show table 5353
}
# The device and the rules that networkd sets up and takes away.
restart_networkd() {
    ip link show nd0 >/dev/null 2>&1 || ip link add nd0 type dummy || return
    mkdir -p /run/systemd/network
    printf '%s\n' '[Match]' Name=nd0 '[Network]' Address=$late4/24 Address=$late6/64 LinkLocalAddressing=no IPv6AcceptRA=no \
        >/run/systemd/network/nd0.network
    ip rule add priority 5349 iif nd0 lookup main protocol static &&
        ip route add unreachable 192.0.2.0/24 table 5354 protocol static &&
        systemctl restart systemd-networkd && soon has_late && soon networkd_took_away
}
has_late() { ip -o addr show dev nd0 | grep -q "$late4" && ip -o addr show dev nd0 | grep -q "$late6"; }
networkd_took_away() { ! ip rule show | grep '^5349:' && ! ip route show table 5354 2>/dev/null | grep unreachable; }

# The first lines of the administrator's own rules: all that is forwarded is dropped, but for what sparks append.
nftables_conf() {
    cat <<'CONF'
flush ruleset
table inet filter {
  chain forward {
    type filter hook forward priority filter; policy drop;
    ip daddr 198.51.100.2 tcp dport 81 drop
  }
}
CONF
}
docker_rules() {
    local tables
    for tables in iptables ip6tables; do
        "$tables" -P FORWARD DROP && "$tables" -N DOCKER-USER && "$tables" -A DOCKER-USER -j RETURN &&
            "$tables" -I FORWARD -j DOCKER-USER || return
    done
}
# As its daemon does when it starts: its own chain is made anew.
docker_again() {
    local tables
    for tables in iptables ip6tables; do
        "$tables" -F DOCKER-USER && "$tables" -A DOCKER-USER -j RETURN || return
    done
}
has_firewalld() { nft list chain inet firewalld filter_FORWARD >/dev/null 2>&1; }
# It says that it runs before it has made its rules.
start_firewalld() { systemctl start firewalld && soon has_firewalld; }
# As docs/network.md has it.
firewalld_policy() {
    firewall-cmd --permanent --new-zone=sparks &&
        firewall-cmd --permanent --zone=sparks --add-interface=spk-+ &&
        firewall-cmd --permanent --new-policy=sparks-out &&
        firewall-cmd --permanent --policy=sparks-out --add-ingress-zone=sparks &&
        firewall-cmd --permanent --policy=sparks-out --add-egress-zone=ANY &&
        firewall-cmd --permanent --policy=sparks-out --set-target=ACCEPT &&
        firewall-cmd --reload && soon has_firewalld
}
holds_81() { # AFTER WHAT
    check "$1: a drop of the administrator holds for sparks too" equals "$beyond4 80 beyond" \
        open_to one/a $beyond4 81 $beyond4 80
}

### What the host's firewall is made to do

fails_closed() {
    check 'systemd-networkd starts, and takes away the rules and routes of others' restart_networkd
    our_rules >/tmp/rules
    check 'rules and routes of sparks are there' test -s /tmp/rules
    stays_closed 'rules as made'
    probe_works 'rules as made'
    check 'rules as made: port 81 beyond is open' equals "$beyond4 81 beyond" open_to one/a $beyond4 81

    check 'systemd-networkd is restarted' restart_networkd
    our_rules >/tmp/now
    check 'it leaves the rules and routes of sparks' diff /tmp/rules /tmp/now
    stays_closed 'systemd-networkd restarted'
    check 'systemd-networkd restarted: a spark reaches what is beyond' leaves

    check 'the host is flushed' nft flush ruleset
    stays_closed 'the host flushed'
    probe_works 'the host flushed'
    check 'the router is flushed' "${in_router[@]}" nft flush ruleset
    stays_closed 'both flushed'
    check 'iptables-legacy is flushed' sh -c 'iptables-legacy -F && iptables-legacy -t nat -F'
    mended 'both flushed'
    probe_works 'both flushed and mended'

    nftables_conf >/etc/nftables.conf
    check 'nftables is restarted' systemctl restart nftables
    stays_closed 'nftables restarted'
    mended 'nftables restarted'
    holds_81 'nftables restarted'
    stays_closed 'nftables restarted and mended'
    nft flush ruleset

    check 'rules of Docker' docker_rules
    stays_closed 'rules of Docker'
    mended 'rules of Docker'
    check 'a drop in DOCKER-USER' iptables -I DOCKER-USER -d $beyond4 -p tcp --dport 81 -j DROP
    holds_81 'rules of Docker'
    check 'Docker makes its chain anew' docker_again
    stays_closed 'Docker restarted'
    mended 'Docker restarted'
    nft flush ruleset

    rm /etc/systemd/system/firewalld.service
    systemctl daemon-reload
    systemctl -q disable firewalld
    check 'firewalld starts' start_firewalld
    stays_closed 'firewalld started'
    check 'firewalld started: spark gc' spark gc
    check 'firewalld started: doctor prints the policy that is missing' prints_policy
    check 'firewalld started: what its zones refuse stays refused' equals '' open_to one/a $beyond4 80 $beyond6 80
    check 'firewalld gets a policy for sparks, and is reloaded' firewalld_policy
    check 'firewalld reloaded: doctor has no policy to print' sh -c '! spark doctor | grep new-policy'
    stays_closed 'firewalld reloaded'
    mended 'firewalld reloaded'
    check 'firewalld is restarted' systemctl restart firewalld
    check 'its rules are there' soon has_firewalld
    stays_closed 'firewalld restarted'
    mended 'firewalld restarted'
    check 'firewalld is stopped' systemctl stop firewalld
    stays_closed 'firewalld stopped'
    nft flush ruleset
    unit_follows

    printf '%s\n' net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 >/etc/sysctl.d/99-no-router.conf
    check 'the settings of the kernel are read anew' sysctl --system
    stays_closed 'sysctl --system'
    probe_works 'sysctl --system'
    mended 'sysctl --system'
    stays_closed 'sysctl --system and mended'
    uplink=$(ip -o link | sed -n 's/.*: \(spk-[^@:]*\).*/\1/p')
    check 'the uplink goes down' ip link set "$uplink" down
    stays_closed 'the uplink down'
    check 'the uplink goes up' ip link set "$uplink" up
    stays_closed 'the uplink down and up'
    mended 'the uplink down and up'
    probe_works 'the uplink down and up and mended'
    stays_closed 'the uplink mended'

    systemctl stop systemd-networkd systemd-networkd.socket
    rm /run/systemd/network/nd0.network
    ip link del nd0
}

prints_policy() { spark doctor | grep -q -e '--new-policy=sparks-out'; }
# From within the spark's network: a command of ours would mend it.
leaves_unseen() {
    [ "$(nsenter -t "$(spark info one/a --json | jq -er .pid)" -n busybox nc -w 20 $beyond4 80 </dev/null)" = beyond ]
}
unit_follows() {
    install -m 644 -t /etc/systemd/system /share/spark-network@.service
    systemctl daemon-reload
    check 'a unit follows nftables and firewalld' systemctl enable spark-network@nftables spark-network@firewalld
    check 'nftables is restarted, with the unit' systemctl restart nftables
    check 'its rules are those that drop' sh -c 'nft list chain inet filter forward | grep -q "policy drop"'
    check 'the unit has mended what a restart of nftables took away' soon leaves_unseen
    check 'nftables is reloaded, with the unit' systemctl reload nftables
    check 'the unit has mended what a reload of nftables took away' soon leaves_unseen
    systemctl -q disable spark-network@nftables spark-network@firewalld
    nft flush ruleset
    check 'what the unit left is mended' spark gc
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
        sh -c "ip -o link | grep -E ' sp[kv]'; nft list ruleset; ip rule | grep ^535; ls /run/spark-nets 2>/dev/null"
    check 'an internet' make_internet
    check 'a container' make_container
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
check 'a container' make_container
check 'the container is not reached through the host' nothing forwarded
set_forwarding 1
check 'it would be if the host forwarded' equals "$(printf 'container\ncontainer')" forwarded
set_forwarding 0
check 'the host reaches what answers as a cloud does' equals beyond heard $metadata 80
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
check 'create one/trusted, which may reach the host' spark create one/trusted --allow-host
b4=$(address one/b ipv4) b6=$(address one/b ipv6)
other4=$(address two/a ipv4) other6=$(address two/a ipv6)
fails_closed
check 'sparks are made anew on a host that was tampered with' spark stop one/a one/b one/trusted two/a
check 'one/trusted goes' spark delete -f one/trusted
check 'the host is as it was before the rules of others' soon as_before
check 'they run again' spark resume one/a one/b two/a
check 'one/b talks again' talks one/b
check 'the port is reached again' equals one/b heard $host4 8080 "${from_beyond[@]}"
check 'the port of a spark that was killed refuses, without a timeout' refuses_when_it_has_ended
check 'all are stopped' spark stop one/a one/b two/a
check 'the host is as it was before' soon as_before

check 'two of them run' spark resume one/a one/b
address one/a ipv4 >/var/lib/vm-address
check 'the host forwards by IPv6 again' equals 1 cat /proc/sys/net/ipv6/conf/all/forwarding
reboot_and_go_on
