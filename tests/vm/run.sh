#!/bin/bash
# Runs guest.sh, or another script of this folder, in the test VM with the binaries of a directory.
#
# usage: run.sh [BIN_DIR] [--guest SCRIPT] [--out DIR]
#
# BIN_DIR holds `spark`; its executables come to the guest's PATH. Without
# BIN_DIR only the VM itself is checked. --out keeps the console's log and the
# output. The last line of the output is "N passed, N failed". What the host needs
# is printed by `image.sh --packages`; boot.sh lists the exit statuses.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
share=$(mktemp -d)
child=
# shellcheck disable=SC2317  # the trap calls it
cleanup() {
    if [ -n "$child" ]; then
        kill "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    rm -rf "$share"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

chmod 755 "$share"
mkdir "$share/bin"
case ${1:-} in
'' | --*) ;;
*)
    if [ ! -x "$1/spark" ]; then
        echo "run.sh: there is no spark in $1" >&2
        exit 2
    fi
    find "$1/" -maxdepth 1 -type f -executable -exec cp --reflink=auto -t "$share/bin" {} +
    shift
    ;;
esac

guest=guest.sh
if [ "${1:-}" = --guest ]; then
    guest=${2:?}
    shift 2
fi
cp "$here"/{checks,guest-secrets}.sh "$here"/../../packaging/systemd/*.service "$share/"

# In the background, so that a signal is handled at once and passed on.
"$here/boot.sh" "$here/$guest" "$share" "$@" &
child=$!
status=0
wait "$child" || status=$?
child=
exit "$status"
