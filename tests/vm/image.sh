#!/bin/bash
# Makes the image of the test VM, or finds the one made before: Debian 12 with
# its own kernel, systemd and cgroup v2. Prints the directory which holds
#
#   root.ext4    the root file system (sparse; boot it with snapshot=on)
#   vmlinux      the kernel, uncompressed: that saves seconds under TCG
#   initrd.cpio  busybox, the few modules that reach the root, an init script
#
# usage: image.sh              make or find it, print its directory
#        image.sh --packages   print the Debian packages needed on this host
#
# It takes half a minute or a few, once, and needs root (mmdebstrap). The image lies in
# $SPARK_VM_CACHE (default: ~/.cache/spark-vm), under a hash of this file: edit
# the recipe and the next run makes a new image. Packages come from this host's
# own apt sources for the suite, or from SPARK_VM_MIRROR if that is set.
set -euo pipefail

# What the host needs, as Debian package names.
host_packages=(qemu-system-x86 mmdebstrap debian-archive-keyring e2fsprogs
    cpio xz-utils)

suite=bookworm
disk_size=12G # sparse; room for pools of the tests

guest_packages=(systemd-sysv udev dbus kmod btrfs-progs busybox-static
    libseccomp2 libbtrfsutil1 zstd xz-utils tar iproute2 nftables procps
    util-linux jq apparmor iptables firewalld)

# Kernel modules that stay: paths below kernel/, as tar patterns. The others
# (graphics, sound, network cards) are most of the package.
kept_modules=('arch/*' 'block/*' 'crypto/*' 'fs/*' 'lib/*' 'mm/*' 'net/*'
    'drivers/block/*' 'drivers/char/hw_random/*' 'drivers/md/*'
    'drivers/net/veth.ko' 'drivers/net/dummy.ko' 'drivers/net/ifb.ko'
    'drivers/net/tun.ko' 'drivers/net/macvlan.ko' 'drivers/net/ipvlan/*'
    'drivers/net/tap.ko' 'drivers/net/vrf.ko' 'drivers/net/vxlan/*'
    'drivers/virtio/*')

# What the initrd loads, besides all that these need.
initrd_modules=(virtio_pci virtio_blk virtio_rng crc32c_generic ext4 9pnet_virtio 9p)

# Units that a test VM does without; most would only cost boot time. The network's test starts firewalld.
masked_units=(systemd-udev-trigger.service systemd-udev-settle.service
    systemd-timesyncd.service systemd-random-seed.service
    systemd-update-utmp.service systemd-update-utmp-runlevel.service
    systemd-journal-flush.service systemd-machine-id-commit.service
    systemd-firstboot.service systemd-hwdb-update.service
    systemd-binfmt.service systemd-pstore.service systemd-logind.service
    systemd-remount-fs.service systemd-tmpfiles-clean.timer
    systemd-user-sessions.service ldconfig.service getty.target
    'serial-getty@ttyS0.service' console-getty.service fstrim.timer
    apparmor.service firewalld.service e2scrub_all.timer e2scrub_reap.service apt-daily.timer
    apt-daily-upgrade.timer dpkg-db-backup.timer proc-sys-fs-binfmt_misc.automount
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount
    sys-kernel-tracing.mount 'modprobe@configfs.service'
    'modprobe@drm.service' 'modprobe@efi_pstore.service'
    'modprobe@dm_mod.service' 'modprobe@loop.service')

# The initrd's init: modules, root, the two shares, then systemd.
initrd_init() {
    cat <<'INIT'
#!/bin/busybox sh
bb=/bin/busybox
fail() {
    $bb echo "initrd: $*"
    $bb poweroff -f
}
$bb mkdir -p /proc /sys /dev /root
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
while read -r module; do
    $bb insmod "/modules/$module" || $bb echo "initrd: cannot load $module"
done </modules/list
tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -le 100 ] || fail "there is no /dev/vda"
    $bb usleep 100000
done
$bb mount -t ext4 -o noatime,noinit_itable /dev/vda /root || fail "cannot mount the root"
nine=trans=virtio,version=9p2000.L,msize=262144
$bb mount -t 9p -o ro,$nine share /root/share || fail "cannot mount the share"
$bb mount -t 9p -o $nine out /root/out || fail "cannot mount the outbox"
for dir in proc sys dev; do
    $bb mount -o move /$dir /root/$dir
done
exec $bb switch_root /root /sbin/init
INIT
}

# The service that runs the guest script, and powers off whatever becomes of it.
guest_unit() {
    cat <<'UNIT'
[Unit]
Description=Guest script of the test
After=basic.target
SuccessAction=poweroff-immediate
FailureAction=poweroff-immediate

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/vm-run
Environment=HOME=/root LANG=C.UTF-8
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
StandardInput=null
StandardOutput=journal+console
StandardError=inherit
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
UNIT
}

# What that service starts. The output goes straight to the file, not through a
# pipe: a process that the script leaves behind must not keep the VM running.
guest_runner() {
    cat <<'RUN'
#!/bin/bash
read -r up _ </proc/uptime
echo "vm: the guest script starts $up s after the kernel did"
: >/out/output
tail -f /out/output &
cd /root
bash /out/script >>/out/output 2>&1
status=$?
sleep 0.2
kill $!
read -r up _ </proc/uptime
echo "vm: the guest script ended with status $status, $up s after the kernel's start"
echo "$status" >/out/status.new
mv /out/status.new /out/status
sync /out/output /out/status
RUN
}

say() { echo "image.sh: $*" >&2; }
die() {
    say "$*"
    exit 1
}

# This host's apt sources for the suite, in the one-line form.
host_sources() {
    local file
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ ! -f "$file" ] || awk -v suite="$suite" '
            $1 != "deb" { next }
            {
                at = 2
                if ($2 ~ /^\[/) { while ($at !~ /\]$/ && at < NF) at++; at++ }
                if ($(at + 1) != suite && index($(at + 1), suite "-") != 1) next
                if ($(at + 1) ~ /backports|proposed/) next
                line = "deb"
                for (i = 2; i <= at + 1; i++) line = line " " $i
                print line " main"
            }' "$file"
    done
    for file in /etc/apt/sources.list.d/*.sources; do
        [ ! -f "$file" ] || awk -v suite="$suite" '
            function flush(   u, s, i, j) {
                if (field["types"] ~ /(^| )deb( |$)/ && tolower(field["enabled"]) !~ /no|false/) {
                    nu = split(field["uris"], u, " ")
                    ns = split(field["suites"], s, " ")
                    by = field["signed-by"]
                    by = by ~ /^\// ? "[signed-by=" by "] " : ""
                    for (i = 1; i <= nu; i++)
                        for (j = 1; j <= ns; j++)
                            if ((s[j] == suite || index(s[j], suite "-") == 1) && s[j] !~ /backports|proposed/)
                                print "deb " by u[i] " " s[j] " main"
                }
                split("", field)
            }
            /^#/ { next }
            /^[ \t]*$/ { flush(); next }
            /^[ \t]/ { field[key] = field[key] $0; next }
            {
                key = tolower(substr($0, 1, index($0, ":") - 1))
                value = substr($0, index($0, ":") + 1)
                sub(/^[ \t]+/, "", value)
                field[key] = value
            }
            END { flush() }' "$file"
    done
}

# The uncompressed kernel inside a bzImage: try what follows each magic.
extract_vmlinux() { # FROM TO
    local magic at tool
    while read -r magic tool; do
        while read -r at; do
            # The tools complain of what follows the stream: only the result counts.
            tail -c "+$((at + 1))" "$1" | $tool >"$2" 2>/dev/null || true
            if [ "$(head -c 4 "$2" | tail -c 3)" = ELF ]; then
                return
            fi
        done < <(LC_ALL=C grep -aboP "$magic" "$1" | cut -d: -f1)
    done <<'MAGICS'
\xfd7zXZ\x00 xz -dc
\x28\xb5\x2f\xfd zstd -dcq
\x1f\x8b\x08 gzip -dc
\x02\x21\x4c\x18 lz4 -dc
MAGICS
    return 1
}

make_root() { # DIR
    local sources=()
    if [ -n "${SPARK_VM_MIRROR:-}" ]; then
        sources=("$SPARK_VM_MIRROR")
    else
        host_sources | sort -u >"$work/sources.list"
        if grep -q " $suite main" "$work/sources.list"; then
            sources=(-)
        fi # or else mmdebstrap's own default
    fi
    : >>"$work/sources.list"
    mkdir "$work/deb"
    chmod 755 "$work" "$work/deb"
    # The kernel's package is fetched but not installed: installing it would
    # make a stock initrd, which takes long and is not used.
    # In namespaces of its own: mmdebstrap would finish its work before it heeds
    # a signal, but a killed unshare takes all of it along, mounts included.
    # shellcheck disable=SC2016  # the hook's shell expands these
    WORK=$work setpriv --pdeathsig KILL \
        unshare --mount --pid --fork --kill-child=KILL --mount-proc \
        mmdebstrap --quiet --mode=root --format=directory \
        --variant=essential \
        --include="$(IFS=,; echo "${guest_packages[*]}")" \
        --aptopt='APT::Install-Recommends "false"' \
        --aptopt='Acquire::Languages "none"' \
        --aptopt='APT::Sandbox::User "root"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/i18n/*' \
        --dpkgopt='force-unsafe-io' \
        --customize-hook='
            export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
            kernel=$(apt-cache depends linux-image-amd64 |
                sed -n "s/.*Depends: \(linux-image-[0-9].*\)/\1/p" | head -n 1)
            cd "$WORK/deb" && apt-get -q download "$kernel"' \
        "$suite" "$1" "${sources[@]}" <"$work/sources.list" >&2 &
    child=$!
    wait "$child"
    child=
}

add_kernel() { # ROOT
    local root=$1 deb version patterns=() module
    deb=$(echo "$work"/deb/linux-image-*.deb)
    for module in "${kept_modules[@]}"; do
        patterns+=("./lib/modules/*/kernel/$module")
    done
    mkdir "$work/kernel"
    # tar says "not found" of a pattern that this kernel has nothing for.
    dpkg-deb --fsys-tarfile "$deb" |
        tar -x -C "$work/kernel" --wildcards './boot/*' \
            './lib/modules/*/modules.*' "${patterns[@]}" 2>"$work/tar.log" || true
    version=$(basename "$work"/kernel/lib/modules/*)
    [ -f "$work/kernel/boot/vmlinuz-$version" ] || die "no kernel in the package"
    mkdir -p "$root/usr/lib/modules"
    mv "$work/kernel/lib/modules/$version" "$root/usr/lib/modules/"
    cp "$work/kernel/boot/config-$version" "$root/boot/"
    chroot "$root" /sbin/depmod "$version"
    extract_vmlinux "$work/kernel/boot/vmlinuz-$version" "$work/out/vmlinux" ||
        die "cannot find the kernel inside its bzImage"
    say "kernel $version"

    # The initrd: each module after those it needs (modules.dep lists them last first).
    local tree="$work/initrd" modules="$root/usr/lib/modules/$version" line dep
    mkdir -p "$tree/bin" "$tree/modules"
    cp "$root/bin/busybox" "$tree/bin/"
    initrd_init >"$tree/init"
    chmod 755 "$tree/init"
    for module in "${initrd_modules[@]}"; do
        line=$(grep -E "/${module//_/[-_]}\.ko:" "$modules/modules.dep") ||
            die "the kernel has no module $module"
        for dep in $(tr ' ' '\n' <<<"${line/:/}" | tac); do
            [ ! -e "$tree/modules/${dep##*/}" ] || continue
            cp "$modules/$dep" "$tree/modules/"
            echo "${dep##*/}" >>"$tree/modules/list"
        done
    done
    (cd "$tree" && find . | cpio --quiet -o -H newc) >"$work/out/initrd.cpio"
}

configure_root() { # ROOT
    local root=$1 unit
    mkdir -p "$root/share" "$root/out" "$root/usr/local/sbin" \
        "$root/etc/systemd/system/multi-user.target.wants"
    echo sparkvm >"$root/etc/hostname"
    echo '127.0.0.1 localhost sparkvm' >"$root/etc/hosts"
    : >"$root/etc/fstab"
    # A machine id of its own: without one systemd takes each boot for the first.
    printf '%032x\n' 0x5ba4c >"$root/etc/machine-id"
    guest_unit >"$root/etc/systemd/system/vm-run.service"
    guest_runner >"$root/usr/local/sbin/vm-run"
    chmod 755 "$root/usr/local/sbin/vm-run"
    ln -s ../vm-run.service "$root/etc/systemd/system/multi-user.target.wants/"
    ln -sf /usr/lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
    for unit in "${masked_units[@]}"; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
    mkdir -p "$root/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=32M\n' \
        >"$root/etc/systemd/journald.conf.d/vm.conf"
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* \
        "$root"/usr/share/{doc,man,info,locale}/* "$root"/var/log/*
    # Newer than /usr: nothing to update at boot.
    touch "$root/etc/.updated" "$root/var/.updated"
}

make_image() {
    say "making the image of the test VM in $image (once; half a minute or a few)"
    mkdir "$work/out"
    say "1/4 Debian $suite"
    make_root "$work/root"
    say "2/4 kernel and initrd"
    add_kernel "$work/root"
    say "3/4 configuration"
    configure_root "$work/root"
    say "4/4 file system"
    truncate -s "$disk_size" "$work/out/root.ext4"
    mke2fs -q -F -t ext4 -O ^has_journal -i 65536 -m 0 -L spark-vm \
        -d "$work/root" "$work/out/root.ext4" >&2
    say "$(du -sh "$work/out" | cut -f 1) on disk"
    mv -T "$work/out" "$image"
    # Images of other recipes that nobody used for a while.
    find "$cache" -mindepth 1 -maxdepth 1 -mtime +14 -exec rm -rf --one-file-system {} +
}

cleanup() {
    if [ -n "$child" ]; then
        kill -KILL "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    [ -z "$work" ] || rm -rf --one-file-system "$work"
}

case ${1:-} in
--packages)
    echo "${host_packages[@]}"
    exit
    ;;
'') ;;
*) die "unknown argument $1" ;;
esac

cache=${SPARK_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/spark-vm}
key=$(sha256sum <"${BASH_SOURCE[0]}" | cut -c 1-16)
image=$cache/$key
work=
child=

if [ ! -f "$image/root.ext4" ]; then
    [ "$(id -u)" = 0 ] || die "making the image needs root"
    PATH=$PATH:/usr/sbin:/sbin
    for tool in mmdebstrap mke2fs cpio xz dpkg-deb flock; do
        command -v "$tool" >/dev/null ||
            die "$tool is missing; needed are: ${host_packages[*]}"
    done
    mkdir -p "$cache"
    # One at a time: whoever waited finds the image made.
    exec 9>"$cache/$key.lock"
    flock 9
    if [ ! -f "$image/root.ext4" ]; then
        rm -rf --one-file-system "$cache/.making.$key".* # of one that was killed
        trap cleanup EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM HUP
        work=$(mktemp -d "$cache/.making.$key.XXXXXX")
        start=$SECONDS
        make_image
        say "made in $((SECONDS - start)) s"
    fi
    exec 9>&-
fi
touch "$image" 2>/dev/null || true
echo "$image"
