//! The keeper of a log, as a program of its own: copies what a detached command writes from a pipe to the spark's log, and
//! keeps that within its bound.
//!
//! It runs outside of the spark's pid namespace, as a user of the spark's own range, without capabilities. What it may use
//! was opened before it was executed: the pipe (0), the newer and the older file (1, 2), the file of `start` (3) and a pidfd of
//! the spark's PID 1 (4). It opens nothing and never allocates: one runs beside each detached command. It ends when nobody has
//! the pipe's other end any more, or with the spark.

#![no_std]
#![no_main]

#[path = "../log/bounded.rs"]
mod bounded;
mod kernel;

use core::ffi::c_char;
use core::mem::MaybeUninit;

use bounded::{CHUNK, DIGITS, Files};
use kernel::{exit, syscall};

#[cfg(target_arch = "x86_64")]
mod nr {
    /// AUDIT_ARCH_X86_64 of `linux/audit.h`.
    pub const ARCH: u32 = 0xc000_003e;
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const LSEEK: usize = 8;
    pub const PREAD64: usize = 17;
    pub const PWRITE64: usize = 18;
    pub const FLOCK: usize = 73;
    pub const FTRUNCATE: usize = 77;
    pub const PRCTL: usize = 157;
    pub const EXIT_GROUP: usize = 231;
    pub const PPOLL: usize = 271;
    pub const SECCOMP: usize = 317;
}

#[cfg(target_arch = "aarch64")]
mod nr {
    /// AUDIT_ARCH_AARCH64 of `linux/audit.h`.
    pub const ARCH: u32 = 0xc000_00b7;
    pub const FLOCK: usize = 32;
    pub const FTRUNCATE: usize = 46;
    pub const LSEEK: usize = 62;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const PREAD64: usize = 67;
    pub const PWRITE64: usize = 68;
    pub const PPOLL: usize = 73;
    pub const EXIT_GROUP: usize = 94;
    pub const PRCTL: usize = 167;
    pub const SECCOMP: usize = 277;
}

/// What it does from the filter on.
const ALLOWED: [usize; 9] = [
    nr::PPOLL,
    nr::FLOCK,
    nr::LSEEK,
    nr::READ,
    nr::WRITE,
    nr::PREAD64,
    nr::PWRITE64,
    nr::FTRUNCATE,
    nr::EXIT_GROUP,
];

const PIPE: usize = 0;
const NEWER: usize = 1;
const OLDER: usize = 2;
const START: usize = 3;
const INIT: usize = 4;

/// How often the pipe is read when the spark has ended: more than a pipe holds.
const LAST_READS: u32 = 1024;
/// What the log says where bytes could not be written to it.
const LOST: &[u8] = b"\nspark: output was lost here: the disk was full\n";

/// The kernel's `sock_filter`.
#[repr(C)]
struct Instruction(u16, u8, u8, u32);

/// The kernel's `pollfd`.
#[repr(C)]
struct Poll {
    fd: i32,
    events: i16,
    revents: i16,
}

/// Kills this process at any other system call.
static FILTER: [Instruction; ALLOWED.len() + 5] = filter();

static mut BUFFER: MaybeUninit<[u8; CHUNK]> = MaybeUninit::uninit();

pub extern "C" fn run(_: *const *const c_char) -> ! {
    // An older kernel names a program that was started from a descriptor after its number.
    // SAFETY: PR_SET_NAME (15) reads the given string, and it ends with a null.
    unsafe { syscall(nr::PRCTL, 15, c"spark-log".as_ptr() as usize, 0, 0) };
    confine();
    let mut keeper = Keeper { has_lost: false };
    loop {
        let [pipe, init] = wait();
        if pipe && !keeper.pass_on() {
            exit(0)
        }
        if init {
            // All inside have ended. What they wrote is in the pipe, unless somebody elsewhere got hold of that.
            for _ in 0..LAST_READS {
                if !wait_not()[0] || !keeper.pass_on() {
                    break;
                }
            }
            exit(0)
        }
    }
}

const fn filter() -> [Instruction; ALLOWED.len() + 5] {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const KILL_PROCESS: u32 = 0x8000_0000;
    const ALLOW: u32 = 0x7fff_0000;
    let last = ALLOWED.len() as u8;
    let mut program = [const { Instruction(RETURN, 0, 0, KILL_PROCESS) }; ALLOWED.len() + 5];
    program[0] = Instruction(LOAD, 0, 0, 4);
    program[1] = Instruction(JUMP_IF_EQUAL, 0, last + 1, nr::ARCH);
    program[2] = Instruction(LOAD, 0, 0, 0);
    let mut i = 0;
    while i < ALLOWED.len() {
        program[3 + i] = Instruction(JUMP_IF_EQUAL, last - i as u8, 0, ALLOWED[i] as u32);
        i += 1;
    }
    program[ALLOWED.len() + 4] = Instruction(RETURN, 0, 0, ALLOW);
    program
}

/// Loads the filter. This process cannot gain privileges any more, so it may.
fn confine() {
    #[repr(C)]
    struct Program(u16, *const Instruction);
    let program = Program(FILTER.len() as u16, FILTER.as_ptr());
    // SAFETY: SECCOMP_SET_MODE_FILTER (1) reads the program and its instructions, which are valid for its length.
    if unsafe { syscall(nr::SECCOMP, 1, 0, &raw const program as usize, 0) } != 0 {
        exit(1)
    }
}

/// Waits until there is something to read or nobody to write it, or until the spark has ended.
fn wait() -> [bool; 2] {
    poll(0)
}

/// Looks, without waiting.
fn wait_not() -> [bool; 2] {
    let now = [0i64; 2];
    poll(&raw const now as usize)
}

fn poll(timeout: usize) -> [bool; 2] {
    const POLLIN: i16 = 1;
    let poll = |fd: usize| Poll { fd: fd as i32, events: POLLIN, revents: 0 };
    let mut polls = [poll(PIPE), poll(INIT)];
    // SAFETY: there are two as declared; `timeout` is null or the address of two numbers that outlive the call, and the mask
    // of signals is null: all are blocked, and stay so.
    unsafe { syscall(nr::PPOLL, &raw mut polls as usize, polls.len(), timeout, 0) };
    [polls[0].revents != 0, polls[1].revents != 0]
}

struct Keeper {
    /// Whether bytes could not be written since some could.
    has_lost: bool,
}

impl Keeper {
    /// Passes on what is in the pipe, up to what the buffer holds. False if nobody can write to it any more.
    ///
    /// It is read with the log locked: who has the lock and finds the pipe empty knows that the log has all.
    fn pass_on(&mut self) -> bool {
        const LOCK_EX: usize = 2;
        const LOCK_UN: usize = 8;
        const EAGAIN: isize = -11;
        const EINTR: isize = -4;
        // SAFETY: the call takes no pointers.
        unsafe { syscall(nr::FLOCK, NEWER, LOCK_EX, 0, 0) };
        bounded::make_room(self, CHUNK as u64);
        // SAFETY: the buffer has that many bytes, and nothing refers to them.
        let n = unsafe { syscall(nr::READ, PIPE, buffer(), CHUNK, 0) };
        if n > 0 {
            self.append(n as usize);
        }
        // SAFETY: the call takes no pointers.
        unsafe { syscall(nr::FLOCK, NEWER, LOCK_UN, 0, 0) };
        n > 0 || n == EAGAIN || n == EINTR
    }

    /// Writes the buffer's first bytes to the log. What cannot be written is lost: a command must not wait for a disk that
    /// may be full for days.
    fn append(&mut self, bytes: usize) {
        if self.has_lost && write_all(LOST.as_ptr() as usize, LOST.len()) {
            self.has_lost = false;
        }
        self.has_lost |= !write_all(buffer(), bytes);
    }
}

/// Writes bytes at an address that is valid for so many.
fn write_all(address: usize, bytes: usize) -> bool {
    let mut done = 0;
    while done < bytes {
        // SAFETY: the caller's bytes are valid, and `done` is within them.
        let n = unsafe { syscall(nr::WRITE, NEWER, address + done, bytes - done, 0) };
        if n <= 0 {
            return false;
        }
        done += n as usize;
    }
    true
}

fn buffer() -> usize {
    &raw mut BUFFER as usize
}

impl Files for Keeper {
    fn length(&mut self) -> u64 {
        const SEEK_END: usize = 2;
        // SAFETY: the call takes no pointers. The file is written at its end only, wherever its position is.
        unsafe { syscall(nr::LSEEK, NEWER, 0, SEEK_END, 0) }.max(0) as u64
    }

    fn read(&mut self, at: u64) -> usize {
        // SAFETY: the buffer has that many bytes, and nothing refers to them.
        unsafe { syscall(nr::PREAD64, NEWER, buffer(), CHUNK, at as usize) }.max(0) as usize
    }

    fn write_older(&mut self, at: u64, bytes: usize) -> bool {
        // SAFETY: the buffer's first bytes were just read into it.
        unsafe { syscall(nr::PWRITE64, OLDER, buffer(), bytes, at as usize) == bytes as isize }
    }

    fn empty_older(&mut self) {
        // SAFETY: the call takes no pointers.
        unsafe { syscall(nr::FTRUNCATE, OLDER, 0, 0, 0) };
    }

    fn empty(&mut self) {
        // SAFETY: the call takes no pointers.
        unsafe { syscall(nr::FTRUNCATE, NEWER, 0, 0, 0) };
    }

    fn advance(&mut self, by: u64) {
        let mut digits = [0u8; DIGITS];
        // SAFETY: the array has that many bytes; a shorter file leaves zeros, which are no digits.
        unsafe { syscall(nr::PREAD64, START, &raw mut digits as usize, DIGITS, 0) };
        let digits = bounded::format(bounded::parse(&digits).wrapping_add(by));
        // SAFETY: the array has that many bytes.
        unsafe { syscall(nr::PWRITE64, START, &raw const digits as usize, DIGITS, 0) };
    }
}
