//! Programs of the kernel's that decide on devices: `bpf(2)`, for control groups of version 2.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const CGROUP_DEVICE_PROGRAM: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// Those above and below in the hierarchy decide too: all of them have to agree.
const ALLOW_MULTI: u32 = 2;

/// Has a program decide which devices the processes of a control group may make, read and write.
///
/// `program` is instructions in the kernel's encoding, which begin with a pointer to `struct bpf_cgroup_dev_ctx` in
/// register 1 and end with 0 or 1 in register 0. It stays for as long as the group.
pub fn decide_on_devices(group: impl AsFd, program: &[u64]) -> io::Result<()> {
    // The beginnings of the kernel's `union bpf_attr`: what is behind them is taken for zero.
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        licence: u64,
        log: [u32; 2],
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let load = Load {
        kind: CGROUP_DEVICE_PROGRAM,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    let program = call(PROG_LOAD, &load)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let attach = Attach {
        target: group.as_fd().as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    call(PROG_ATTACH, &attach).map(drop)
}

fn call<T>(command: i32, attributes: &T) -> io::Result<i32> {
    // SAFETY: bpf(2) reads as many bytes as it is told, which are the structure's, and what it points to, which outlives
    // the call: instructions, of which their count is given, and a string with its end.
    let r = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    if r >= 0 { Ok(r as i32) } else { Err(io::Error::last_os_error()) }
}
