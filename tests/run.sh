#!/bin/bash
# Installs what is missing and runs every test:
#
#   sudo tests/run.sh                      all of them
#   sudo tests/run.sh fmt unit host        some parts
#   sudo tests/run.sh host -- base::list   arguments for the test programs
#   sudo tests/run.sh --full host          1,000 snapshots of each database, not 25: hours
#   sudo tests/run.sh --full odd           14,000 odd archives and images, not 350: half an hour
#   tests/run.sh --list                    the parts
#
# Parts are fmt, clippy, shell, dependencies, unit, doc, each file and directory
# of tests/ that is a Rust test program, docs, odd, quickstart, vm and left. Programs are
# built by whoever the checkout belongs to and run as root. A part that fails does not
# keep the others from running. The last line is `N passed, N failed`.
#
# SPARK_VM_CACHE    where the image of the test VM is kept (/var/cache/spark-vm)
# SPARK_TEST_CACHE  where the root filesystem with databases is (/var/cache/spark-tests)
set -uo pipefail

# shellcheck source=prepare.sh
. "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"
# shellcheck source=left.sh
. tests/left.sh

test_packages=(
    shellcheck python3 bsdutils git jq runc iproute2 iputils-ping nftables socat netcat-openbsd procps systemd strace
    xz-utils zstd attr libcap2-bin openssl docker-registry skopeo umoci podman containerd pass gnupg gdb
    containernetworking-plugins protobuf-compiler python3-grpcio python3-protobuf python3-yaml
)
# A part that prints nothing for so many seconds hangs. How long one takes is the machine's affair.
patience=1200

build_tests=(cargo test --locked --features faults)

### The parts. Each is a function part_NAME, and fails if its tests do.

part_fmt() { as_caller cargo fmt --check; }

# What is shipped has no `faults`.
part_clippy() {
    as_caller cargo clippy --locked --all-targets --features faults -- -D warnings &&
        as_caller cargo clippy --locked --lib --bins -- -D warnings
}

part_shell() {
    local scripts
    mapfile -t scripts < <(find benches examples tests .ci -type f \( -name '*.sh' -o -path .ci/run \) | sort)
    shellcheck "${scripts[@]}" && tests/smoke.sh --list
}

# Bans, sources and licences. What `cargo deny` adds is checked where it is installed, and with --full.
part_dependencies() {
    local cargo_deny=(cargo deny --all-features --locked) databases
    as_caller python3 tests/dependencies.py || return
    if [ -n "${full:-}" ] && ! as_caller cargo deny --version >/dev/null 2>&1; then
        as_caller cargo install --locked cargo-deny || return
    fi
    if as_caller cargo deny --version >/dev/null 2>&1; then
        as_caller "${cargo_deny[@]}" check bans licenses sources || return
    else
        echo 'cargo deny: not checked, since it is not installed'
    fi
    databases=("${CARGO_HOME:-$caller_home/.cargo}"/advisory-dbs/*)
    if [ -e "${databases[0]}" ] && as_caller cargo deny --version >/dev/null 2>&1; then
        as_caller "${cargo_deny[@]}" check --disable-fetch advisories
    else
        echo 'advisories: not checked, since there is no database of them here'
    fi
}

# There are no examples in it to run: what is checked is that it can be made, and that its links lead somewhere.
part_doc() {
    as_caller env RUSTDOCFLAGS='-D warnings' \
        cargo doc --locked --features faults --no-deps --lib --document-private-items
}

part_docs() { python3 tests/docs.py --spark "$debug/spark"; }

part_odd() { python3 tests/odd/run.py --spark "$debug/spark"; }

# The quickstart twice, the second time over what the first left. Then what it
# says of removing everything, typed as it stands there.
part_quickstart() {
    local line
    mkdir -m 700 "$work/root"
    apart examples/quickstart.sh || return
    apart examples/quickstart.sh >"$work/quickstart.log" 2>&1 || {
        echo 'The second time:'
        cat "$work/quickstart.log"
        return 1
    }
    for line in '^Hello, world!' '^written before the stop' '/dev/pts/[0-9]'; do
        grep -q "$line" "$work/quickstart.log" || {
            echo "The second time it printed no line like $line"
            return 1
        }
    done
    sed '1,/^### To remove everything/d' "$work/quickstart.log" >"$work/remove.sh"
    bash -ex "$work/remove.sh" && [ ! -e "$work/root" ] && [ ! -e "$run" ]
}

# Runs a command with a place of its own for sparks.
apart() { SPARK_ROOT=$work/root SPARK_RUN=$run "$@"; }

part_vm() {
    local networks oci status=0
    mkdir -p "$work/bin" "$work/oci"
    build_release && cp "$release/spark" "$work/bin/" || return
    cp "$release"/{spark,spark-oci,containerd-shim-spark-v1} /usr/bin/{containerd,ctr} "$work/oci/" || return
    # Side by side: each is emulated by one thread.
    in_vm networks "$work/bin" --guest network.sh &
    networks=$!
    in_vm oci "$work/oci" --guest oci.sh &
    oci=$!
    in_vm life "$work/bin" || status=1
    wait "$networks" || status=1
    wait "$oci" || status=1
    return "$status"
}

in_vm() { # NAME ARGUMENT...
    tests/vm/run.sh "${@:2}" 2>&1 | sed -u "s/^/$1: /"
}

# Compares what this machine has now with what it had before.
part_left() {
    local left limit start
    check_new_machine "$work" || {
        echo 'On a machine that has never run the tools of the tests, something would be left.'
        return 1
    }
    remove_what_tools_leave "$work/before"
    start=$SECONDS
    while :; do
        state >"$work/after"
        left=$(comm -13 "$work/before" "$work/after")
        [ -n "$left" ] || return 0
        # A process ends, and the kernel takes a moment to let go of a device. As long as one of them is there, other
        # things may go with it. By itself nothing else does.
        if grep -qE '^(process|loop device|link) ' <<<"$left"; then limit=120; else limit=5; fi
        [ "$((SECONDS - start))" -lt "$limit" ] || break
        sleep 0.2
    done
    echo "After $((SECONDS - start)) seconds this is left:"
    echo "$left"
    return 1
}

### Test programs

# Writes NAME PATH of every test program that cargo builds; `unit NAME` for the
# tests inside of the library and the binaries.
build_test_programs() {
    as_caller "${build_tests[@]}" --no-run --message-format=json-render-diagnostics >"$work/build.json" ||
        return
    python3 - "$work/build.json" >"$work/programs" <<'PY'
import json, sys
for line in open(sys.argv[1]):
    m = json.loads(line)
    if m.get("reason") != "compiler-artifact" or not m.get("executable") or not m["profile"]["test"]:
        continue
    kind = m["target"]["kind"][0]
    print(m["target"]["name"] if kind == "test" else "unit", m["executable"])
PY
}

run_programs() { # NAME
    local name path status=0
    grep -q "^$1 " "$work/programs" || {
        echo "cargo built no test program $1"
        return 1
    }
    while read -r name path; do
        [ "$name" = "$1" ] || continue
        "$path" "${arguments[@]}" || status=1
    done <"$work/programs"
    return "$status"
}

### Running parts and counting

passed=0
failed=0
summary=()
job=
timer=

# Adds up what a log counts: Rust's `test result:` lines, and `N passed, N failed`, of a VM with its name before it.
counts_in() { # LOG
    awk '
        /^test result: / || /^([a-z]+: )?[0-9]+ passed, [0-9]+ failed$/ {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^passed/) good += $(i - 1)
                if ($i ~ /^failed/) bad += $(i - 1)
            }
        }
        END { print good + 0, bad + 0 }' "$1"
}

end_group() { # LEADER
    [ -z "$1" ] || kill -TERM -- "-$1" 2>/dev/null
}

# Runs a part and shows what it writes. A part that counts nothing counts as one.
run_part() { # NAME COMMAND...
    local name=$1 start=$SECONDS status=0 good bad
    shift
    printf '\n===== %s\n' "$name"
    : >"$work/log"
    # A process group of its own, so that a part that hangs can be ended whole.
    set -m
    "$@" >>"$work/log" 2>&1 </dev/null &
    job=$!
    {
        tests/until-silent.sh "$patience" "$work/log" &&
            echo "===== $name has printed nothing for $patience s" && end_group "$job"
    } &
    timer=$!
    set +m
    # Not through a pipe: what a part leaves behind must not keep this waiting. Nor in the
    # foreground: a signal is handled at once.
    tail -n +1 -f -s 0.2 --pid="$job" "$work/log" &
    wait "$!"
    wait "$job" || status=$?
    job=
    end_group "$timer"
    wait "$timer" 2>/dev/null
    timer=
    read -r good bad < <(counts_in "$work/log")
    if [ "$status" = 0 ] && [ "$((good + bad))" = 0 ]; then
        good=1
    elif [ "$status" != 0 ] && [ "$bad" = 0 ]; then
        bad=1
    fi
    passed=$((passed + good))
    failed=$((failed + bad))
    summary+=("$(printf '%-12s %5d passed %4d failed %5d s' "$name" "$good" "$bad" "$((SECONDS - start))")")
    printf '===== %s\n' "${summary[-1]}"
}

# The Rust test programs of tests/, as cargo names them.
test_programs() {
    local path name
    for path in tests/*.rs tests/*/main.rs; do
        name=${path#tests/}
        name=${name%/main.rs}
        echo "${name%.rs}"
    done | sort
}

all_parts() {
    echo fmt clippy shell dependencies unit doc
    test_programs
    echo docs odd quickstart vm left
}

cleanup() {
    end_group "$timer"
    end_group "$job"
    [ -z "$job" ] || wait "$job" 2>/dev/null
    if [ -n "${work:-}" ]; then
        # A part that failed may have left its pool mounted.
        [ ! -e "$work/root/pool/layout.json" ] || [ ! -x "$release/spark" ] ||
            apart "$release/spark" list -a -q | apart xargs -r "$release/spark" stop -t 0
        findmnt -rn -o TARGET | grep "^$work/" | tac | while read -r mount; do umount "$mount"; done
        rm -rf --one-file-system "$work" "$run"
    fi
}

### What to do

mapfile -t known < <(all_parts | tr ' ' '\n')
parts=()
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
    --list)
        printf '%s\n' "${known[@]}"
        exit
        ;;
    --full)
        full=yes
        export SPARKS_TEST_ROUNDS=40 # of 25 snapshots, or 350 odd archives
        patience=86400
        ;;
    --)
        shift
        arguments=("$@")
        break
        ;;
    *)
        [[ " ${known[*]} " = *" $1 "* ]] || fail "there is no part \`$1\`: there are ${known[*]}"
        parts+=("$1")
        ;;
    esac
    shift
done
[ "${#parts[@]}" != 0 ] || parts=("${known[@]}")
# The comparison is of all that came before.
[ "${parts[-1]}" = left ] || parts+=(left)

need_root
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
start=$SECONDS

echo '===== install what is missing'
[[ " ${parts[*]} " != *' vm '* ]] || mapfile -t vm_packages < <(tests/vm/image.sh --packages | tr ' ' '\n')
install_missing "${build_packages[@]}" "${run_packages[@]}" "${test_packages[@]}" "${vm_packages[@]}" ||
    fail 'cannot install what is missing'
find_cargo
echo "cargo is $caller's, building goes to $target"
if ! as_caller cargo fmt --version >/dev/null 2>&1 || ! as_caller cargo clippy --version >/dev/null 2>&1; then
    as_caller rustup component add rustfmt clippy
fi

work=$(mktemp -d /var/tmp/run-tests.XXXXXX)
run=$(mktemp -d /run/run-tests.XXXXXX)
chmod 711 "$run"
debug=$built/debug
release=$built/release
export SPARK_VM_CACHE=${SPARK_VM_CACHE:-/var/cache/spark-vm}
export SPARK_TEST_CACHE=${SPARK_TEST_CACHE:-/var/cache/spark-tests}
# Snapshots of expected output are compared, never written.
export INSTA_UPDATE=no INSTA_WORKSPACE_ROOT=$checkout CARGO_MANIFEST_DIR=$checkout
# Tests wait more than they compute: for the kernel, for disks, and for each other.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) * 2))}
unset SPARK_ROOT SPARK_RUN SPARK_PROJECT SPARK_BASE SPARK_LOG SPARK_CONFIG

run_part build build_test_programs
state >"$work/before"
for part in "${parts[@]}"; do
    if declare -F "part_$part" >/dev/null; then
        run_part "$part" "part_$part"
    else
        run_part "$part" run_programs "$part"
    fi
done

printf '\n===== all of it in %d s\n' "$((SECONDS - start))"
printf '%s\n' "${summary[@]}"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
