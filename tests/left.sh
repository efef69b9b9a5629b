#!/bin/bash
# To be sourced: what a machine has that tests could leave behind.
#
#   state                       a line for each thing, sorted
#   remove_what_tools_leave F   removes what tools that the tests call have made, and what the state in F did not have
#   check_new_machine DIR       whether both are right on a machine that has never run these tools

# `caller`, `caller_home` and `checkout` are those of prepare.sh.
# shellcheck disable=SC2154
state() {
    {
        findmnt -rn -o TARGET,SOURCE,FSTYPE | sed 's/^/mount /'
        losetup -a | sed 's/^/loop device /'
        cgroups | sed 's/^/cgroup /'
        ip -o link 2>/dev/null | sed -E 's/^[0-9]+: ([^:@]+).*/link \1/'
        ip netns list 2>/dev/null | sed 's/^/network namespace /'
        for family in -4 -6; do
            ip "$family" rule list 2>/dev/null | sed "s/^/rule $family /"
            ip "$family" route list table 5353 2>/dev/null | sed "s/^/route $family /"
        done
        nft list ruleset 2>/dev/null | sed 's/ packets [0-9]* bytes [0-9]*//; s/^/nft /'
        for name in spark qemu youki containerd; do pgrep -l "^$name"; done | sed 's/^/process /'
        find /run -maxdepth 1 \( -name 'spark*' ! -name spark-ids ! -name spark-nets \) -o -name netns
        find /run/spark-ids /run/spark-nets -mindepth 1 ! -name ports 2>/dev/null
        find /tmp /var/tmp /var/lib /etc -maxdepth 1 -iname '*spark*'
        [ "$caller" = root ] || find "$checkout" "$caller_home/.cargo" "$caller_home/.cache" \
            -user root 2>/dev/null | sed "s/^/file of root's /"
    } | sort -u
}

# The cgroups of sparks, and those that podman and containerd are told to use.
cgroups() {
    find /sys/fs/cgroup -regextype posix-extended -depth -type d \( -path '*/spark*' \
        -o -regex '/sys/fs/cgroup(/[a-z_,]+)?/(libpod_parent|default|t[0-9a-z]{26})(/.*)?' \)
}

# What was there before may be in use, and stays.
remove_what_tools_leave() { # STATE_BEFORE
    local dir
    # Engines leave the directories above those of containers.
    cgroups | grep -E '/(spark|libpod_parent(/conmon)?|default)$' | while read -r dir; do
        grep -qxF "cgroup $dir" "$1" || rmdir "$dir" 2>/dev/null
    done
    # The first `ip netns add` makes this directory, and a mount of it upon itself.
    if ! grep -qF 'mount /run/netns ' "$1" && mountpoint -q /run/netns &&
        [ -z "$(ls -A /run/netns)" ]; then
        umount /run/netns
    fi
    # The default root of spark-oci, which no variable moves.
    grep -qxF /run/spark "$1" || [ -n "$(ls -A /run/spark/containers 2>/dev/null)" ] || rm -rf /run/spark
    grep -qxF /run/netns "$1" || rmdir --ignore-fail-on-non-empty /run/netns 2>/dev/null
    return 0
}

# In a mount namespace whose /run is empty, as after a first boot.
check_new_machine() { # DIR
    unshare -m --propagation private bash -s "$1" <<'INSIDE'
        set -u
        . tests/prepare.sh
        . tests/left.sh
        find_cargo
        # The mount of this machine would be listed below the new /run.
        while mountpoint -q /run/netns; do umount -l /run/netns || exit; done
        mount -t tmpfs tmpfs /run || exit
        state >"$1/new-before"
        ip netns add first-of-this-machine && ip netns delete first-of-this-machine || exit
        state >"$1/new-used"
        grep -q '^mount /run/netns ' <(comm -13 "$1/new-before" "$1/new-used") || {
            echo '`ip netns` makes no mount at /run/netns any more: this check, and what it checks, can go'
            exit 1
        }
        remove_what_tools_leave "$1/new-before"
        state >"$1/new-after"
        # What was there and has ended meanwhile is left by nobody.
        left=$(comm -13 "$1/new-before" "$1/new-after")
        [ -z "$left" ] || ! echo "$left"
INSIDE
}
