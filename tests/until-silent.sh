#!/bin/bash
# Ends when none of some files has been written to for a while, or one of them is gone (status 1).
#
# usage: until-silent.sh SECONDS FILE...
patience=$1
shift
# Counted, not read from a clock: that one jumps where it is set, or where a machine was suspended.
silent=0
before=
while [ "$silent" -lt "$patience" ]; do
    now=$(stat -c '%y %s' "$@") || exit
    [ "$now" = "$before" ] || silent=0
    before=$now
    sleep 2
    silent=$((silent + 2))
done
