//! System calls that are newer than a profile: `ENOSYS`, so that programs fall back to an older one.
//!
//! A profile that refuses what it does not list was written when nobody knew those calls, and its `EPERM` would make a
//! program give up. runc answers them with `ENOSYS` since 1.0.0-rc93: every call whose number is above the highest one
//! that the profile names. Instructions that do so stand before libseccomp's own.

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction};

// <linux/bpf_common.h>, <linux/seccomp.h>
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
/// Where `struct seccomp_data` has the number of the call, and the architecture.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const REFUSE: u32 = 0x0005_0000;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// What calls of x32 have in their number, which share an architecture with those of 64 bits.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Whether an action lets a call happen.
pub(super) fn is_permissive(action: LinuxSeccompAction) -> bool {
    use LinuxSeccompAction as Action;
    matches!(action, Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace)
}

/// The instructions, or none where the profile allows what it does not list, or answers `ENOSYS` anyway.
pub(super) fn answer(profile: &LinuxSeccomp, architectures: &[(Arch, ScmpArch)]) -> Vec<u8> {
    let mut code = Code::default();
    if is_permissive(profile.default_action()) || profile.default_errno_ret() == Some(libc::ENOSYS as u32) {
        return code.0;
    }
    let highest = |arch: &ScmpArch| {
        let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
        let numbers = names.filter_map(|name| ScmpSyscall::from_name_by_arch(name, *arch).ok());
        // Those that an architecture does not have are negative.
        let highest = numbers.filter_map(|call| u32::try_from(call.as_raw_syscall()).ok()).max();
        highest.filter(|number| *number > 0)
    };
    let x32 = architectures.iter().find(|(_, arch)| *arch == ScmpArch::X32);
    let x32 = x32.and_then(|(_, arch)| highest(arch));
    for (token, arch) in architectures.iter().filter(|(_, arch)| *arch != ScmpArch::X32) {
        let Some(highest) = highest(arch) else { continue };
        // The specification's numbers are the kernel's, but for x32.
        let token = *token as u32;
        code.section(token, highest, x32.filter(|_| token == AUDIT_ARCH_X86_64));
    }
    code.0
}

/// Instructions as the kernel reads them.
#[derive(Default)]
pub(super) struct Code(pub(super) Vec<u8>);

impl Code {
    fn push(&mut self, code: u16, (if_true, if_false): (u8, u8), value: u32) {
        self.0.extend(code.to_ne_bytes());
        self.0.extend([if_true, if_false]);
        self.0.extend(value.to_ne_bytes());
    }

    /// Answers calls of one architecture by their numbers. Others go on behind the section.
    pub(super) fn answers(&mut self, arch: u32, rules: &[(u32, u32)]) {
        let Some(length) = u8::try_from(1 + 2 * rules.len()).ok().filter(|_| !rules.is_empty()) else {
            return;
        };
        self.push(LOAD, (0, 0), ARCHITECTURE);
        self.push(IF_EQUAL, (0, length), arch);
        self.push(LOAD, (0, 0), NUMBER);
        for (number, answer) in rules {
            self.push(IF_EQUAL, (0, 1), *number);
            self.push(RETURN, (0, 0), *answer);
        }
    }

    /// Answers calls of one architecture whose number is too high. Others go on behind the section.
    fn section(&mut self, arch: u32, highest: u32, highest_x32: Option<u32>) {
        self.push(LOAD, (0, 0), ARCHITECTURE);
        match highest_x32 {
            // libseccomp ends a process that calls by a table which the profile does not list.
            None if arch == AUDIT_ARCH_X86_64 => {
                self.push(IF_EQUAL, (0, 4), arch);
                self.push(LOAD, (0, 0), NUMBER);
                self.push(IF_SET, (2, 0), X32_BIT);
                self.push(IF_GREATER, (0, 1), highest);
            }
            None => {
                self.push(IF_EQUAL, (0, 3), arch);
                self.push(LOAD, (0, 0), NUMBER);
                self.push(IF_GREATER, (0, 1), highest);
            }
            Some(highest_x32) => {
                self.push(IF_EQUAL, (0, 5), arch);
                self.push(LOAD, (0, 0), NUMBER);
                self.push(IF_SET, (1, 0), X32_BIT);
                self.push(IF_GREATER, (1, 2), highest);
                self.push(IF_GREATER, (0, 1), highest_x32);
            }
        }
        self.push(RETURN, (0, 0), REFUSE | libc::ENOSYS as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the instructions as the kernel does. None: they have no answer.
    fn answered(code: &[u8], arch: u32, number: u32) -> Option<u32> {
        let instructions: Vec<_> = code.chunks_exact(8).collect();
        let (mut at, mut value) = (0, 0);
        while let Some(i) = instructions.get(at) {
            let k = u32::from_ne_bytes([i[4], i[5], i[6], i[7]]);
            let jump = |yes: bool| usize::from(if yes { i[2] } else { i[3] });
            at += 1;
            match u16::from_ne_bytes([i[0], i[1]]) {
                LOAD => value = if k == NUMBER { number } else { arch },
                IF_EQUAL => at += jump(value == k),
                IF_GREATER => at += jump(value > k),
                IF_SET => at += jump(value & k != 0),
                _ => return Some(k),
            }
        }
        None
    }

    fn profile(action: &str) -> LinuxSeccomp {
        let calls = serde_json::json!([{"names": ["read", "getpid", "nosuch"], "action": "SCMP_ACT_ALLOW"}]);
        serde_json::from_value(serde_json::json!({"defaultAction": action, "syscalls": calls})).unwrap()
    }

    #[test]
    fn numbers_above_the_highest_that_is_named_are_unknown() {
        let all = [
            (Arch::ScmpArchX86_64, ScmpArch::X8664),
            (Arch::ScmpArchX86, ScmpArch::X86),
            (Arch::ScmpArchX32, ScmpArch::X32),
        ];
        let code = answer(&profile("SCMP_ACT_ERRNO"), &all);
        let unknown = Some(REFUSE | 38);
        // getpid is 39, 20 and 39 with a bit.
        for (arch, highest) in [(0xc000_003e, 39), (0x4000_0003, 20), (0xc000_003e, X32_BIT | 39)] {
            assert_eq!(answered(&code, arch, highest - 1), None);
            assert_eq!(answered(&code, arch, highest), None);
            assert_eq!(answered(&code, arch, highest + 1), unknown);
        }
        // An architecture that is not listed is libseccomp's to refuse.
        assert_eq!(answered(&code, 0xc000_00b7, 9999), None);
        let alone = answer(&profile("SCMP_ACT_KILL"), &all[..1]);
        assert_eq!(answered(&alone, 0xc000_003e, 40), unknown);
        for left_alone in [39, X32_BIT | 39, X32_BIT | 999] {
            assert_eq!(answered(&alone, 0xc000_003e, left_alone), None);
        }
        for permissive in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"] {
            assert!(answer(&profile(permissive), &all).is_empty());
        }
    }
}
