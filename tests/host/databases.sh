#!/bin/bash
# Makes the root filesystem that tests of real programs run in, or finds the one
# made before: Debian 12 with PostgreSQL, SQLite, MariaDB, nginx, git and an ssh server. Prints the path of its
# archive, which `spark base import` takes.
#
# It takes a minute or a few, once, and needs root (mmdebstrap). The archive lies
# in $SPARK_TEST_CACHE (default: /var/cache/spark-tests) under a hash of this
# file: edit the recipe and the next run makes a new one.
set -euo pipefail

suite=bookworm
packages=postgresql,sqlite3,git,openssh-server,mariadb-server-core,mariadb-client-core,nginx

# What no test looks at: half of the whole is what compiles queries to machine code.
left_out=('/usr/share/doc/*' '/usr/share/man/*' '/usr/share/info/*' '/usr/share/locale/*'
    '/usr/share/i18n/*' '/usr/lib/*/libLLVM*' '/usr/lib/*/libz3*'
    '/usr/lib/postgresql/*/lib/llvmjit*' '/usr/lib/postgresql/*/lib/bitcode/*')

options=(--quiet --variant=apt --include="$packages" --aptopt='Acquire::Languages "none"'
    --dpkgopt=force-unsafe-io)
for path in "${left_out[@]}"; do
    options+=(--dpkgopt="path-exclude=$path")
done
# The database cluster that the package makes is to have checksums. The tests
# start it, with the configuration that Debian gives it.
# shellcheck disable=SC2016  # for the shell that mmdebstrap runs it in
options+=(--dpkgopt=force-confold
    --essential-hook='mkdir -p "$1/etc/postgresql-common" &&
        printf "initdb_options = \047--data-checksums\047\n" >"$1/etc/postgresql-common/createcluster.conf"'
    --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*')

cache=${SPARK_TEST_CACHE:-/var/cache/spark-tests}
key=$(sha256sum <"${BASH_SOURCE[0]}" | cut -c 1-16)
archive=$cache/databases-$key.tar
work=

if [ ! -f "$archive" ]; then
    mkdir -p "$cache"
    # One at a time: whoever waited finds it made.
    exec 9>"$cache/lock"
    flock 9
    if [ ! -f "$archive" ]; then
        rm -rf --one-file-system "$cache"/.making.* # of one that was killed
        trap 'rm -rf --one-file-system "$work"' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM HUP
        work=$(mktemp -d "$cache/.making.XXXXXX")
        # apt fetches as a user of its own, who has to get through.
        chmod 755 "$work"
        echo "making a Debian with $packages in $cache (once)" >&2
        TMPDIR=$work LC_ALL=C.UTF-8 mmdebstrap "${options[@]}" "$suite" "$work/new.tar" >&2
        find "$cache" -maxdepth 1 -name 'databases-*.tar' -delete # of other recipes
        mv "$work/new.tar" "$archive"
    fi
    exec 9>&-
fi
echo "$archive"
