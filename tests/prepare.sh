#!/bin/bash
# To be sourced by scripts that run as root: installs what is missing on this
# host, and calls cargo as whoever it belongs to, so that no file of root's
# comes into a user's checkout or ~/.cargo.
#
#   need_root               ends the script unless it runs as root
#   install_missing PKG...  one apt-get install of the Debian packages that are not there
#   find_cargo              sets caller, caller_home, target (the target directory)
#   as_caller CMD...        runs a command as the caller, with their cargo in PATH
#   build_release           sets release, the directory with the finished programs
#
# Sourcing it changes to the top of the checkout, whose path is in `checkout`.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$checkout" || exit
# After `su` without `-`, what is root's is not in PATH.
PATH=$PATH:/usr/sbin:/sbin

# What building needs besides Rust, and what sparks call when they run.
# shellcheck disable=SC2034  # for those who source this
build_packages=(gcc libc6-dev pkg-config clang libbtrfsutil-dev libseccomp-dev)
# shellcheck disable=SC2034
run_packages=(btrfs-progs mount nftables git mmdebstrap debian-archive-keyring gpg ca-certificates busybox-static)

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || fail "this makes mounts and containers: run it as root, such as \`sudo $0\`"
}

is_installed() { # PKG
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

install_missing() { # PKG...
    local package missing=() command
    if ! command -v apt-get >/dev/null; then
        echo "There is no apt-get here. What Debian calls these has to be installed: $*"
        return
    fi
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ "${#missing[@]}" != 0 ] || return 0
    # A machine that has just begun may be at its own updates.
    command=(apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "${missing[@]}")
    export DEBIAN_FRONTEND=noninteractive
    # A fresh machine has no package lists, and an old one lists what is gone.
    echo '$ apt-get update'
    apt-get update || echo '(Going on with the package lists that are there.)'
    echo "\$ ${command[*]}"
    "${command[@]}" </dev/null
}

home_of() { # USER
    getent passwd "$1" | cut -d: -f6
}

# Where a user's cargo is, as PATH; fails if there is none.
cargo_path() { # USER
    local dir home
    home=$(home_of "$1")
    for dir in ${CARGO_HOME:+"$CARGO_HOME/bin"} "$home/.cargo/bin" /usr/local/cargo/bin \
        ${PATH//:/ } /usr/local/bin /usr/bin; do
        if runuser -u "$1" -- test -x "$dir/cargo"; then
            echo "$dir:$PATH"
            return
        fi
    done
    return 1
}

# The caller: who typed sudo, else who owns the checkout, if that is a user with
# a cargo. Else root.
find_cargo() {
    local user owner
    owner=$(stat -c %U "$checkout")
    for user in "${SUDO_USER:-}" "$owner" root; do
        if [ -n "$user" ] && id "$user" >/dev/null 2>&1 &&
            runuser -u "$user" -- test -r "$checkout/Cargo.toml" &&
            caller_path=$(cargo_path "$user"); then
            caller=$user
            break
        fi
    done
    [ -n "${caller:-}" ] ||
        fail 'there is no cargo: install Rust 1.91 or newer with rustup, as the user who has this checkout'
    caller_home=$(home_of "$caller")
    # Into the checkout only what belongs to its owner.
    target=${CARGO_TARGET_DIR:-$checkout/target}
    if [ -z "${CARGO_TARGET_DIR:-}" ] && [ "$caller" != "$owner" ]; then
        target=$caller_home/.cache/sparks/target
    fi
    # Where programs go: .cargo/config.toml names the host as target.
    # shellcheck disable=SC2034
    built=$target/$(as_caller rustc -vV | sed -n 's/^host: //p')
}

as_caller() { # CMD...
    runuser -u "$caller" -- env HOME="$caller_home" PATH="$caller_path" CARGO_TARGET_DIR="$target" "$@"
}

build_release() {
    # shellcheck disable=SC2034
    release=$built/release
    echo "\$ cargo build --release --locked"
    as_caller cargo build --release --locked </dev/null
}
