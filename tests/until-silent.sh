#!/bin/bash
# Ends when none of some files has been written to for a while, or one of them is gone (status 1).
#
# usage: until-silent.sh SECONDS FILE...
patience=$1
shift
while written=$(stat -c %Y "$@") || exit; [ $(($(date +%s) - $(sort -n <<<"$written" | tail -n 1))) -lt "$patience" ]; do
    sleep 2
done
