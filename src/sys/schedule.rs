//! When a process gets a processor and a disk: `sched_setattr(2)`, `ioprio_set(2)`.

use std::io;

/// What `sched_setattr(2)` takes. Times are in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Schedule {
    /// `SCHED_OTHER` is 0.
    pub policy: u32,
    /// `SCHED_FLAG_*`
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// Has the kernel schedule this thread in a way that its programs inherit.
pub fn set(schedule: &Schedule) -> io::Result<()> {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: schedule.policy,
        sched_flags: schedule.flags,
        sched_nice: schedule.nice,
        sched_priority: schedule.priority,
        sched_runtime: schedule.runtime,
        sched_deadline: schedule.deadline,
        sched_period: schedule.period,
    };
    // SAFETY: sched_setattr(2) reads as many bytes as the structure says that it has, which are all initialised.
    let r = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel schedules this process by a real-time policy, or by deadlines.
pub fn is_real_time() -> bool {
    // SAFETY: sched_getscheduler(2) takes a plain number; 0 is the calling process.
    let policy = unsafe { libc::sched_getscheduler(0) } & !libc::SCHED_RESET_ON_FORK;
    matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR | libc::SCHED_DEADLINE)
}

/// Has the kernel serve this thread's requests to disks by a class, and a level within it.
pub fn set_io_priority(class: u8, level: u8) -> io::Result<()> {
    const PROCESS: i32 = 1;
    let value = i32::from(class) << 13 | i32::from(level);
    // SAFETY: ioprio_set(2) takes plain numbers.
    let r = unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, value) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
