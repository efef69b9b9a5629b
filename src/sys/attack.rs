//! What a process that was taken over would try, for tests to see that it cannot.

/// Does nothing without the feature `faults`.
#[cfg(not(feature = "faults"))]
pub(super) fn attack() {}

/// Does what `SPARK_FAULT=isolated.ATTACK=attack` names, as code that a hostile input has brought in would. A call that comes
/// back in any way, refused or not, is the end of the process with status 0, which says that all went well. `says:BYTES` writes bytes,
/// in hexadecimal, in the place of what the process would have made of its input.
#[cfg(feature = "faults")]
pub(super) fn attack() {
    use std::ffi::CStr;
    let fault = std::env::var("SPARK_FAULT").unwrap_or_default();
    let Some(attack) = fault.strip_prefix("isolated.").and_then(|f| f.strip_suffix("=attack")) else {
        return;
    };
    if let Some(bytes) = attack.strip_prefix("says:") {
        say(bytes);
    }
    let shadow: &CStr = c"/etc/shadow";
    let parent: i32 = std::env::args().nth(3).and_then(|pid| pid.parse().ok()).unwrap_or_default();
    // SAFETY: the pointers are of constants and null, and a raw call touches no other memory of this process.
    unsafe {
        match attack {
            "spin" => loop {
                std::hint::spin_loop();
            },
            "open" => libc::syscall(libc::SYS_openat, libc::AT_FDCWD, shadow.as_ptr(), libc::O_RDONLY),
            "execute" => {
                let none = std::ptr::null::<*const libc::c_char>();
                libc::syscall(libc::SYS_execve, c"/bin/sh".as_ptr(), none, none)
            }
            "socket" => libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0),
            "socketpair" => libc::syscall(libc::SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, 0),
            "trace" => libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, parent, 0, 0),
            "kill" => libc::syscall(libc::SYS_kill, parent, libc::SIGKILL),
            "user" => libc::syscall(libc::SYS_setuid, 0),
            "fork" => libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0),
            "namespace" => libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER),
            "code" => libc::syscall(
                libc::SYS_mmap,
                0,
                4096,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            ),
            _ => return,
        };
    }
    super::process::exit_now(0);
}

/// Writes bytes as what was read, and ends as if all had gone well.
#[cfg(feature = "faults")]
fn say(hex: &str) -> ! {
    let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    let mut left = &bytes[..];
    // A reader that refuses what it has read reads no more.
    while !left.is_empty()
        && let Ok(n) = rustix::io::write(super::exec::standard_stream(1), left)
    {
        left = &left[n..];
    }
    super::process::exit_now(0)
}
