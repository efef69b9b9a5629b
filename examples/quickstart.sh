#!/bin/bash
# From a Debian with a Rust toolchain to a spark that has been made, used,
# stopped, resumed and deleted:
#
#   sudo examples/quickstart.sh
#
# It prints each command before it runs it. What it makes stays in
# /var/lib/spark, to go on with; its last lines say how to remove it. It may be
# run again. Without a terminal it asks nothing.
#
# SPARK_ROOT and SPARK_RUN, if set, say where everything goes instead.
set -euo pipefail

# shellcheck source=../tests/prepare.sh
. "$(dirname "${BASH_SOURCE[0]}")/../tests/prepare.sh"

need_root
root=${SPARK_ROOT:-/var/lib/spark}
run=${SPARK_RUN:-/run/spark}
# Progress is drawn on a terminal; elsewhere it is a line per step.
terminal=
verbose=' --verbose'
if [ -t 0 ] && [ -t 1 ] && [ -t 2 ]; then
    terminal=yes
    verbose=
fi

heading() { printf '\n### %s\n\n' "$*"; }

# Prints a command line as one would type it, and runs it.
try() {
    printf '$ %s\n' "$1"
    eval "$1"
}

trap 'echo "quickstart.sh: this went wrong: $BASH_COMMAND" >&2' ERR
set -E

heading 'What building and running need'
install_missing "${build_packages[@]}" "${run_packages[@]}"
find_cargo

heading 'Build'
build_release
PATH=$release:$PATH

heading 'Can this host run sparks?'
try 'spark doctor'

heading 'A place for them, and a Debian to start from'
try 'spark pool init'
if spark base info bookworm >/dev/null 2>&1; then
    echo '(There is a base bookworm already.)'
else
    try "spark base bootstrap bookworm$verbose"
fi
try 'spark base list'

heading 'A spark: made, and used'
if spark info quickstart >/dev/null 2>&1; then
    echo '(There is a spark of an earlier run. It goes to the trash.)'
    try 'spark delete -f quickstart'
fi
try 'spark create quickstart --base bookworm'
try 'spark exec quickstart -- apt-get update'
try 'spark exec quickstart -- sh -c "apt-get install -y hello && hello"'
try 'spark exec quickstart -- sh -c "echo written before the stop > /root/note"'

heading 'Stopped, it keeps its files'
try 'spark stop quickstart'
try 'spark list'
try 'spark resume quickstart'
try 'spark list'
try 'spark exec quickstart -- cat /root/note'
try 'spark exec quickstart -- hello'

heading 'A console in it'
if [ -n "$terminal" ]; then
    echo '(This is the shell of the spark. Look around; type exit to come back.)'
    # Whatever the shell's last command ended with.
    try 'spark console quickstart || true'
else
    # It has a terminal inside all the same.
    try "printf 'tty; hostname; cat note; exit 0\n' | spark console -t quickstart"
fi

heading 'Deleted, it can be had back for a day'
try 'spark delete -f quickstart'
try 'spark list --deleted'
try 'spark undelete quickstart'
try 'spark delete --now quickstart'

cat <<END

### What to try next, as root

install -m 755 $release/spark /usr/local/bin/   # for \`spark\` without its path
spark create web                                # a spark to keep
spark console web                               # a shell in it
spark exec - -- uname -a                        # a spark that lives as long as its command
spark help                                      # all commands

### To remove everything again, as root

${SPARK_ROOT:+export SPARK_ROOT=$root
}${SPARK_RUN:+export SPARK_RUN=$run
}$release/spark list -a -q | xargs -r $release/spark stop
END
if mountpoint -q "$root/pool"; then
    echo "umount $root/pool"
else # it is a directory of a btrfs, and the bases in it are read-only subvolumes
    echo "find $root/pool -inum 256 -exec btrfs property set -f {} ro false ';'"
fi
echo "rm -r $root $run"
