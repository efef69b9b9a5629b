#!/usr/bin/env bash
# For benchmarks that run other programs beside spark.

# To be called in a mount namespace of the script's own. Gives what runs in it a /dev/null that is not the host's: crun 1.8
# gives the standard streams of a container to the user that its root is mapped to, and so the host's device, if it is one.
own_null() {
    local dir
    dir=$(mktemp -d)
    mount -t tmpfs -o mode=700,size=64k null "$dir"
    mknod "$dir/null" c 1 3
    chmod 666 "$dir/null"
    mount --bind "$dir/null" /dev/null
    # The mount upon /dev/null keeps the device.
    umount -l "$dir"
    rmdir "$dir"
    # Standard error goes through a pipe: the caller may have given the host's device for it.
    exec </dev/null 2> >(exec cat >&2)
}
