# shellcheck shell=bash
# For the scripts that run in the test VM: checks in words, counted, and a reboot in the middle.

# Seconds after which a command hangs; boot.sh waits longer.
patience=300
passed=0
failed=0
log=$(mktemp)
# What the guest wrote here was before its reboot.
before=/var/lib/vm-before
begun=/var/lib/vm-begun

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

# fails WORDS COMMAND...: the command must fail, and say that.
fails() {
    local words=$1 got
    shift
    if got=$("$@" 2>&1); then
        echo "it passed: $got"
        return 1
    fi
    echo "$got"
    grep -qF -- "$words" <<<"$got"
}

# soon COMMAND...: the command succeeds in a while. Nothing here may depend on time: the VM is emulated.
soon() {
    local end=$((SECONDS + patience))
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || {
            echo "still not so after $patience s: $*"
            return 1
        }
        sleep 0.1
    done
}

finish() {
    rm -f "$log"
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ]
    exit
}

# Whether the VM was rebooted by reboot_and_go_on: what was counted before counts on. A kernel that panicked has rebooted
# too, and that is the end.
rebooted() {
    if [ -f "$before" ]; then
        read -r passed failed <"$before"
        rm "$before"
        sync
        return
    fi
    [ -f "$begun" ] || {
        touch "$begun"
        sync
        return 1
    }
    check 'the VM was not rebooted by its kernel' false
    finish
}

reboot_and_go_on() {
    echo "$passed $failed" >"$before"
    sync
    echo '# reboot'
    systemctl reboot --force
    sleep infinity
}
