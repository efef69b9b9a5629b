//! Simple quotas of btrfs: every extent counts for the subvolume that wrote it, as long as it is there.
//!
//! By ioctl, since btrfs-progs before 6.7 does not know them. A group is named by its level, in the upper 16 bits, and
//! a number; the groups of level 0 are the subvolumes, by their ids.

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Setter, Updater, opcode};

/// A group of level 1, of a number that has 48 bits at most.
pub fn group(number: u64) -> u64 {
    1 << 48 | number
}

/// `struct btrfs_ioctl_quota_ctl_args` of linux/btrfs.h.
#[repr(C)]
struct Control {
    command: u64,
    status: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
struct Create {
    create: u64,
    group: u64,
}

/// `struct btrfs_ioctl_qgroup_assign_args`.
#[repr(C)]
struct Assign {
    assign: u64,
    child: u64,
    parent: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct Limit {
    group: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved: [u64; 2],
}

const CONTROL: rustix::ioctl::Opcode = opcode::read_write::<Control>(0x94, 40);
const ASSIGN: rustix::ioctl::Opcode = opcode::write::<Assign>(0x94, 41);
const CREATE: rustix::ioctl::Opcode = opcode::write::<Create>(0x94, 42);
// The header says that it is read from. It is not.
const LIMIT: rustix::ioctl::Opcode = opcode::read::<Limit>(0x94, 43);
const ENABLE_SIMPLE: u64 = 4;
const MAX_REFERENCED: u64 = 1;

/// Turns simple quotas on, for good: kernels that do not know them refuse the filesystem from now on.
///
/// # Errors
/// `EINVAL` from a kernel before 6.7.
pub fn enable(pool: impl AsFd) -> io::Result<()> {
    let mut args = Control { command: ENABLE_SIMPLE, status: 0 };
    // SAFETY: the opcode is that of BTRFS_IOC_QUOTA_CTL, which reads `Control` and writes no more than that.
    Ok(unsafe { rustix::ioctl::ioctl(pool, Updater::<CONTROL, Control>::new(&mut args)) }?)
}

/// Whether they are on.
pub fn is_on(pool: impl AsFd) -> io::Result<bool> {
    let dir = super::block::sysfs(pool)?.join("qgroups");
    match std::fs::read_to_string(dir.join("mode")) {
        Ok(mode) => Ok(mode.trim() == "squota"),
        // Not on, or a kernel that has none.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes a group, if it is not there.
pub fn create(pool: impl AsFd, group: u64) -> io::Result<()> {
    made(set_there(pool, group, true))
}

/// Removes a group.
///
/// # Errors
/// `EBUSY` while there is something in it.
pub fn remove(pool: impl AsFd, group: u64) -> io::Result<()> {
    set_there(pool, group, false)
}

fn set_there(pool: impl AsFd, group: u64, there: bool) -> io::Result<()> {
    let args = Create { create: there.into(), group };
    // SAFETY: the opcode is that of BTRFS_IOC_QGROUP_CREATE, which reads `Create`.
    Ok(unsafe { rustix::ioctl::ioctl(pool, Setter::<CREATE, Create>::new(args)) }?)
}

/// Puts a subvolume, by its id, into a group, if it is not there.
pub fn assign(pool: impl AsFd, subvolume: u64, group: u64) -> io::Result<()> {
    made(set_member(pool, subvolume, group, true))
}

/// Takes a subvolume out of a group.
pub fn take_out(pool: impl AsFd, subvolume: u64, group: u64) -> io::Result<()> {
    set_member(pool, subvolume, group, false)
}

fn set_member(pool: impl AsFd, subvolume: u64, group: u64, member: bool) -> io::Result<()> {
    let args = Assign { assign: member.into(), child: subvolume, parent: group };
    // SAFETY: the opcode is that of BTRFS_IOC_QGROUP_ASSIGN, which reads `Assign`.
    Ok(unsafe { rustix::ioctl::ioctl(pool, Setter::<ASSIGN, Assign>::new(args)) }?)
}

fn made(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Limits the bytes of a group, or lifts its limit.
pub fn limit(pool: impl AsFd, group: u64, bytes: Option<u64>) -> io::Result<()> {
    let none = u64::MAX;
    let args = Limit {
        group,
        flags: MAX_REFERENCED,
        max_referenced: bytes.unwrap_or(none),
        max_exclusive: 0,
        reserved: [0; 2],
    };
    // SAFETY: the opcode is that of BTRFS_IOC_QGROUP_LIMIT, which reads `Limit`.
    Ok(unsafe { rustix::ioctl::ioctl(pool, Setter::<LIMIT, Limit>::new(args)) }?)
}
