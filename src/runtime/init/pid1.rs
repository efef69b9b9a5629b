//! PID 1 of a spark, as a program of its own.
//!
//! It owns three things: reaping whatever is orphaned in the PID namespace, the orderly stop
//! (SIGTERM for all, then the end of the namespace once nothing is left or the grace is over), and
//! the stop after idling if `argv[1]` gives a number of seconds, or a signal has given another since.
//!
//! It must not allocate, open, read or write anything: it is resident in every spark for as long
//! as that lives, and a few pages are all it may cost. It is built by the build script without
//! libc or start files, and it is no module of the crate.
//!
//! All signals are blocked, for good, and taken one by one in a single loop. A blocked signal is
//! queued even for the PID 1 of a namespace, which is otherwise deaf to what it has no handler for.

#![no_std]
#![no_main]

mod kernel;

use core::ffi::c_char;
use core::mem::MaybeUninit;

use kernel::{exit, syscall};

#[cfg(target_arch = "x86_64")]
mod nr {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const GETPID: usize = 39;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const PRCTL: usize = 157;
    pub const CLOCK_GETTIME: usize = 228;
}

#[cfg(target_arch = "aarch64")]
mod nr {
    pub const CLOCK_GETTIME: usize = 113;
    pub const KILL: usize = 129;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const PRCTL: usize = 167;
    pub const GETPID: usize = 172;
    pub const WAIT4: usize = 260;
}

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGUSR1: i32 = 10;
const SIGUSR2: i32 = 12;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGPWR: i32 = 30;
/// SIGRTMIN+3 and SIGRTMIN+4 in glibc's counting, by which others ask an init to halt.
const SIGHALT: i32 = 37;
const SIGPOWEROFF: i32 = 38;
/// Queued with the number of seconds to idle for from now on; 0 is never.
const SIGIDLE: i32 = 50;

const SI_QUEUE: i32 = -1;
const ESRCH: isize = -3;
/// The set of all signals.
static ALL: u64 = !0;
/// How long processes have to end after SIGTERM if the sender does not say, in milliseconds.
const GRACE: i64 = 10_000;

/// The kernel's siginfo of 128 bytes, with the members of a queued signal.
#[repr(C, align(8))]
struct SigInfo {
    signo: i32,
    errno: i32,
    code: i32,
    pad_pid_uid: [i32; 3],
    value: i32,
    rest: [i32; 25],
}

/// A stop under way: its deadline, and how long to pause before the next look.
struct Stop(i64, i64);

/// All of it; `stack` is what the kernel left for a new program: argc, argv, a null.
pub extern "C" fn run(stack: *const *const c_char) -> ! {
    // Anywhere else, its signals to all processes would go to those of the whole machine.
    // SAFETY: the call takes no arguments and cannot fail.
    if unsafe { syscall(nr::GETPID, 0, 0, 0, 0) } != 1 {
        exit(1)
    }
    // SAFETY: the set is 8 bytes as declared, and there is no old set to be written.
    unsafe { syscall(nr::RT_SIGPROCMASK, 0, &raw const ALL as usize, 0, 8) };
    // An older kernel names a program that was started from a descriptor after its number.
    // SAFETY: PR_SET_NAME (15) reads the given string, and it ends with a null.
    unsafe { syscall(nr::PRCTL, 15, c"spark-init".as_ptr() as usize, 0, 0) };

    // SAFETY: argc is followed by argv[0], which there always is, and then argv[1] or a null.
    let mut idle = seconds(unsafe { *stack.add(2) }).saturating_mul(1000);
    let mut stop: Option<Stop> = None;
    let mut alone_since: Option<i64> = None;
    loop {
        // At every turn, not at SIGCHLD alone: a child may have ended before the signals were
        // blocked, and several of them make a single signal.
        reap();

        let timeout = if let Some(stop) = &mut stop {
            let Stop(deadline, pause) = *stop;
            let left = deadline - now();
            if left <= 0 || alone() {
                // At the deadline, too, this is all it takes: the kernel refuses new processes in
                // a namespace without PID 1, kills the others and waits for them. A signal to
                // each from here could miss a new one, or one that is not ours to signal.
                exit(0)
            }
            // Processes entered from outside are no children of ours and end without a SIGCHLD.
            stop.1 = (pause + 5).min(20);
            Some(pause.min(left))
        } else if idle > 0 {
            if alone() {
                let now = now();
                let left = idle - (now - *alone_since.get_or_insert(now));
                if left <= 0 {
                    exit(0)
                }
                Some(left.min(1000))
            } else {
                alone_since = None;
                Some(1000)
            }
        } else {
            None
        };

        let Some(info) = wait(timeout) else { continue };
        // Any signal is activity, even of a process that came and went between two looks.
        alone_since = None;
        match info.signo {
            SIGTERM | SIGINT | SIGPWR | SIGHALT | SIGPOWEROFF => {
                let told = info.code == SI_QUEUE && info.value > 0;
                let grace = if told { i64::from(info.value) } else { GRACE };
                let deadline = now() + grace;
                match &mut stop {
                    // Whoever asked first has been promised that it takes no longer than that.
                    Some(stop) => stop.0 = stop.0.min(deadline),
                    None => {
                        stop = Some(Stop(deadline, 5));
                        kill_all(SIGTERM);
                        // A stopped process would take notice of it only after the grace.
                        kill_all(SIGCONT);
                    }
                }
            }
            SIGHUP | SIGUSR1 | SIGUSR2 => _ = kill_all(info.signo),
            SIGIDLE if info.code == SI_QUEUE && info.value >= 0 => idle = i64::from(info.value) * 1000,
            _ => {}
        }
    }
}

/// Takes the next signal, or none when `timeout` milliseconds have passed. Without a timeout there
/// is no timer either: an idle spark does not wake the processor.
fn wait(timeout: Option<i64>) -> Option<SigInfo> {
    let spec = timeout.map(|ms| [ms / 1000, ms % 1000 * 1_000_000]);
    let spec = spec.as_ref().map_or(0, |spec| &raw const *spec as usize);
    let mut info = MaybeUninit::<SigInfo>::uninit();
    let (set, to) = (&raw const ALL as usize, info.as_mut_ptr() as usize);
    // SAFETY: the set is 8 bytes as declared, `info` has the size of the kernel's siginfo, and
    // `spec` is null or the address of the seconds and nanoseconds above, which outlive the call.
    let signo = unsafe { syscall(nr::RT_SIGTIMEDWAIT, set, to, spec, 8) };
    // SAFETY: the kernel fills in all 128 bytes whenever it returns a signal.
    (signo > 0).then(|| unsafe { info.assume_init() })
}

fn reap() {
    // SAFETY: WNOHANG (1) is given, and no status or usage is asked for, so nothing is written.
    while unsafe { syscall(nr::WAIT4, -1isize as usize, 0, 1, 0) } > 0 {}
}

/// Sends a signal to every process of the namespace but this one.
fn kill_all(signal: i32) -> isize {
    // SAFETY: the call takes no pointers, and -1 never includes the PID 1 of the namespace.
    unsafe { syscall(nr::KILL, -1isize as usize, signal as usize, 0, 0) }
}

/// Whether no other process is left; one that nobody has reaped yet still counts, since the
/// namespace could not go away before that.
fn alone() -> bool {
    kill_all(0) == ESRCH
}

/// The monotonic clock in milliseconds.
fn now() -> i64 {
    let mut spec = [0i64; 2];
    // SAFETY: CLOCK_MONOTONIC (1) always exists, and seconds and nanoseconds fit into `spec`.
    unsafe { syscall(nr::CLOCK_GETTIME, 1, &raw mut spec as usize, 0, 0) };
    spec[0] * 1000 + spec[1] / 1_000_000
}

/// Reads a decimal number; anything else, and no argument at all, is 0, which means never.
fn seconds(mut text: *const c_char) -> i64 {
    let mut sum: i64 = 0;
    // SAFETY: an argument ends with a null byte, and the walk does not go beyond it.
    while let Some(byte) = unsafe { text.as_ref() }.filter(|byte| **byte != 0) {
        let digit = (*byte as u8).wrapping_sub(b'0');
        if digit > 9 {
            return 0;
        }
        sum = sum.saturating_mul(10).saturating_add(i64::from(digit));
        text = text.wrapping_add(1);
    }
    sum
}
