//! What a process that was taken over would try, for tests to see that it cannot.

/// What a process gives up before it reads what is not trusted. Each is a wall of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wall {
    Network,
    Limits,
    User,
    Capabilities,
    /// Landlock.
    Files,
    /// The filter of system calls, which nothing but a test leaves out.
    #[cfg(feature = "faults")]
    Filter,
}

/// Whether a wall is put up. All are, unless a test wants to know what one of them holds alone.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(super) fn stands(_wall: Wall) -> bool {
    true
}

/// Whether a wall is put up. With `SPARK_FAULT=isolated.ATTACK/WALL=attack` only the named one is; `none` names none of them.
#[cfg(feature = "faults")]
pub(super) fn stands(wall: Wall) -> bool {
    let fault = std::env::var("SPARK_FAULT").unwrap_or_default();
    let only = asked(&fault).and_then(|(_, only)| only);
    only.is_none_or(|only| format!("{wall:?}").eq_ignore_ascii_case(only))
}

/// The attack that a test asks for, and the only wall that is to stand.
#[cfg(feature = "faults")]
fn asked(fault: &str) -> Option<(&str, Option<&str>)> {
    let attack = fault.strip_prefix("isolated.")?.strip_suffix("=attack")?;
    Some(attack.split_once('/').map_or((attack, None), |(attack, only)| (attack, Some(only))))
}

/// Does nothing without the feature `faults`.
#[cfg(not(feature = "faults"))]
pub(super) fn attack() {}

/// Does what `SPARK_FAULT=isolated.ATTACK=attack` names, as code that a hostile input has brought in would. A call that comes
/// back in any way, refused or not, is the end of the process with status 0, which says that all went well. If only one wall
/// stands, then the process says with which error the call came back. `says:BYTES` writes bytes, in hexadecimal, in the place
/// of what the process would have made of its input.
#[cfg(feature = "faults")]
pub(super) fn attack() {
    let fault = std::env::var("SPARK_FAULT").unwrap_or_default();
    let Some((attack, only)) = asked(&fault) else { return };
    if let Some(bytes) = attack.strip_prefix("says:") {
        say(bytes);
    }
    let Some(done) = call(attack) else { return };
    if only.is_some() {
        let errno = if done < 0 { std::io::Error::last_os_error().raw_os_error() } else { Some(0) };
        let text = format!("the attack came back with error {}.", errno.unwrap_or_default());
        let _ = rustix::io::write(super::exec::standard_stream(2), text.as_bytes());
        super::process::exit_now(1);
    }
    super::process::exit_now(0);
}

/// Makes the system call of an attack, and returns what that returns. `None` if there is no such attack.
#[cfg(feature = "faults")]
fn call(attack: &str) -> Option<libc::c_long> {
    let shadow = c"/etc/shadow";
    let parent: i32 = std::env::args().nth(3).and_then(|pid| pid.parse().ok()).unwrap_or_default();
    if let Some(port) = attack.strip_prefix("connect:") {
        return Some(connect(port.parse().ok()?));
    }
    // SAFETY: the pointers are of constants and null, and a raw call touches no other memory of this process.
    let done = unsafe {
        match attack {
            "spin" => loop {
                std::hint::spin_loop();
            },
            "open" => libc::syscall(libc::SYS_openat, libc::AT_FDCWD, shadow.as_ptr(), libc::O_RDONLY),
            "chroot" => libc::syscall(libc::SYS_chroot, c"/".as_ptr()),
            // Whether a signal would be let through, without one.
            "reach" => libc::syscall(libc::SYS_kill, parent, 0),
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
            _ => return None,
        }
    };
    Some(done)
}

/// Connects to a port of this host.
#[cfg(feature = "faults")]
fn connect(port: u16) -> libc::c_long {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    // SAFETY: the address is valid, has the length that is given, and outlives the call.
    unsafe {
        match libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0) {
            socket if socket < 0 => socket,
            socket => libc::syscall(libc::SYS_connect, socket, &raw const address, size_of_val(&address)),
        }
    }
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
