//! Signals by name and number.

const NAMES: [(&str, i32); 34] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The first and the last of the real-time signals, as signal(7) numbers them for programs.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The real-time signals that programs may send.
pub const REAL_TIME: std::ops::RangeInclusive<i32> = RTMIN..=RTMAX;

/// The number of a signal: `9`, `KILL`, `SIGKILL`, `RTMIN+3`, in any case.
pub fn number(text: &str) -> Result<i32, String> {
    let wrong = || format!("`{}` is no signal", text.escape_default());
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=RTMAX).contains(&number) { Ok(number) } else { Err(wrong()) };
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => offset(rest).and_then(|n| n.checked_add(RTMIN)),
        (_, Some(rest)) => offset(rest).and_then(|n| n.checked_add(RTMAX)),
        _ => None,
    };
    real_time.filter(|n| (RTMIN..=RTMAX).contains(n)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name_and_a_number() {
        for (text, expected) in
            [("9", 9), ("KILL", 9), ("SIGkill", 9), ("0", 0), ("RTMIN", 34), ("SIGRTMAX-1", 63)]
        {
            assert_eq!(number(text).unwrap(), expected, "{text}");
        }
        for text in ["", "65", "-1", "NOPE", "SIG", "RTMIN-1", "RTMAX+1", "RTMINx"] {
            assert!(number(text).is_err(), "{text}");
        }
    }
}
