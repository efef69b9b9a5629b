//! `linux.resources.devices` where cgroups are of version 2.
//!
//! Version 1 has files for it, which libcontainer writes. In version 2 a program in the kernel decides, and libcontainer
//! has none unless it is built with a library of its own for that: it would leave every device open to a container that
//! may make nodes.

use std::path::Path;

use crate::error::{Error, Result};
use crate::sys;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType as Type};

/// The kernel's numbers.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const ACCESS: [(char, i32); 3] = [('m', 1), ('r', 2), ('w', 4)];
/// All of them.
const ALL: i32 = 7;
/// More than any bundle has, and few enough for jumps to reach over them.
const MOST: usize = 500;

/// What runc and libcontainer allow whatever the bundle says: kind, major, minor, access.
const ALWAYS: [(i32, Option<i32>, Option<i32>, &str); 12] = [
    (CHARACTER, None, None, "m"),
    (BLOCK, None, None, "m"),
    // null, zero, full, random, urandom, tty
    (CHARACTER, Some(1), Some(3), "rwm"),
    (CHARACTER, Some(1), Some(5), "rwm"),
    (CHARACTER, Some(1), Some(7), "rwm"),
    (CHARACTER, Some(1), Some(8), "rwm"),
    (CHARACTER, Some(1), Some(9), "rwm"),
    (CHARACTER, Some(5), Some(0), "rwm"),
    // console, ptmx, pts, tun
    (CHARACTER, Some(5), Some(1), "rwm"),
    (CHARACTER, Some(5), Some(2), "rwm"),
    (CHARACTER, Some(136), None, "rwm"),
    (CHARACTER, Some(10), Some(200), "rwm"),
];

/// A rule: of those that are about an access, the last one counts.
#[derive(Debug, Clone)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: String,
}

/// Has the kernel keep a bundle's rules in a control group of version 2, by its directory. Nothing is done where the bundle
/// has none.
///
/// # Errors
/// `usage` for rules that are not the specification's.
pub(super) fn keep(group: &Path, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    if rules.len() > MOST {
        return Err(Error::usage(format!("linux.resources.devices has more than {MOST} rules")));
    }
    let rules: Vec<Rule> = rules.iter().map(Rule::of).collect::<Result<_>>()?;
    let always = ALWAYS.iter().map(|(kind, major, minor, access)| Rule {
        allow: true,
        kind: Some(*kind),
        major: *major,
        minor: *minor,
        access: (*access).into(),
    });
    let program = compile(&rules.into_iter().chain(always).collect::<Vec<_>>());
    let kept = sys::file::open_dir(group).and_then(|dir| sys::bpf::decide_on_devices(&dir, &program));
    match kept {
        // Nobody in a user namespace can open a device by a node that was made there.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) && is_inside() => Ok(()),
        kept => kept.map_err(Error::sys("have the kernel keep the container from devices")),
    }
}

/// Whether this is a user namespace below the host's.
fn is_inside() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}

impl Rule {
    fn of(given: &LinuxDeviceCgroup) -> Result<Rule> {
        let number = |number: Option<i64>| match number {
            // As in the kernel's own files: any.
            None | Some(-1) => Ok(None),
            Some(number) => i32::try_from(number)
                .ok()
                .filter(|number| *number >= 0)
                .map(Some)
                .ok_or_else(|| Error::usage(format!("{number} is no number of a device"))),
        };
        let access = given.access().clone().unwrap_or_else(|| "rwm".into());
        if !access.chars().all(|c| ACCESS.iter().any(|(letter, _)| *letter == c)) {
            return Err(Error::usage(format!("`{}` is no access to a device", access.escape_default())));
        }
        let kind = match given.typ() {
            None | Some(Type::A) => None,
            Some(Type::B) => Some(BLOCK),
            Some(Type::C | Type::U) => Some(CHARACTER),
            Some(Type::P) => return Err(Error::usage("a fifo is no device")),
        };
        Ok(Rule {
            allow: given.allow(),
            kind,
            major: number(given.major())?,
            minor: number(given.minor())?,
            access,
        })
    }

    /// The accesses that it is about, as the kernel's numbers.
    fn bits(&self) -> i32 {
        ACCESS.iter().filter(|(letter, _)| self.access.contains(*letter)).map(|(_, bit)| bit).sum()
    }

    /// What becomes of a device that it is about. It comes to the program's end, or runs on to the rule before.
    fn verdict(&self) -> Vec<u64> {
        let bits = self.bits();
        match self.allow {
            allow if bits == ALL => end(allow.into()).to_vec(),
            true => {
                let mut code = vec![instruction(0x57, 3, 0, 0, !bits)]; // r3 &= !bits
                code.extend(end_if_decided());
                code
            }
            false => {
                let mut code = vec![
                    instruction(0xbf, 1, 3, 0, 0),    // r1 = r3
                    instruction(0x57, 1, 0, 0, bits), // r1 &= bits
                    instruction(0x15, 1, 0, 2, 0),    // if r1 == 0, behind the end
                ];
                code.extend(end(0));
                code
            }
        }
    }
}

/// The kernel's instructions. Registers: 1 scratch, 2 kind, 3 what is asked for and not decided yet, 4 major, 5 minor.
///
/// Every rule that decides ends the program, so that the kernel's verifier looks at each instruction about once. A program
/// that went on to the next access would make it follow every combination of rules, which takes milliseconds.
fn compile(rules: &[Rule]) -> Vec<u64> {
    let mut code = vec![
        load(2, 0),
        instruction(0xbf, 3, 2, 0, 0),      // r3 = r2
        instruction(0x77, 3, 0, 0, 16),     // r3 >>= 16
        instruction(0x57, 2, 0, 0, 0xffff), // r2 &= 0xffff
        load(4, 4),
        load(5, 8),
    ];
    code.extend(end_if_decided());
    // The last rule about an access counts, so it comes first.
    for rule in rules.iter().rev() {
        let verdict = rule.verdict();
        let checks: Vec<(u64, i32)> = [(2, rule.kind), (4, rule.major), (5, rule.minor)]
            .into_iter()
            .filter_map(|(register, wanted)| Some((register, wanted?)))
            .collect();
        for (n, (register, wanted)) in checks.iter().enumerate() {
            let over = checks.len() - n - 1 + verdict.len();
            code.push(instruction(0x56, *register, 0, over as i16, *wanted)); // if it is another, behind the verdict
        }
        code.extend(verdict);
        if checks.is_empty() && rule.bits() == ALL {
            // The verifier wants no instruction that is never reached.
            return code;
        }
    }
    code.extend(end(1));
    code
}

/// Allows, if every access that was asked for is allowed.
fn end_if_decided() -> Vec<u64> {
    let mut code = vec![instruction(0x55, 3, 0, 2, 0)]; // if r3 != 0, behind the end
    code.extend(end(1));
    code
}

/// Returns a value.
fn end(value: i32) -> [u64; 2] {
    [instruction(0xb7, 0, 0, 0, value), instruction(0x95, 0, 0, 0, 0)]
}

/// Reads 32 bits of the context.
fn load(to: u64, at: i16) -> u64 {
    instruction(0x61, to, 1, at, 0)
}

fn instruction(code: u64, to: u64, from: u64, offset: i16, value: i32) -> u64 {
    code | to << 8 | from << 12 | u64::from(offset as u16) << 16 | u64::from(value as u32) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would make of a program, by an interpreter of the few instructions that there are.
    fn allows(code: &[u64], kind: i32, device: (i32, i32), access: i32) -> bool {
        let context = [(access << 16) | kind, device.0, device.1];
        let mut registers = [0_i64; 6];
        let mut at = 0;
        loop {
            let word = code[at];
            let (to, from) = ((word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (offset, value) = ((word >> 16) as i16, (word >> 32) as i32);
            at += 1;
            let jump = match word as u8 {
                0x61 => {
                    registers[to] = i64::from(context[offset as usize / 4]);
                    false
                }
                0xbf => {
                    registers[to] = registers[from];
                    false
                }
                0xb7 => {
                    registers[to] = value.into();
                    false
                }
                0x77 => {
                    registers[to] >>= value;
                    false
                }
                0x57 => {
                    registers[to] &= i64::from(value);
                    false
                }
                0x05 => true,
                0x15 => registers[to] == i64::from(value),
                0x55 => registers[to] != i64::from(value),
                0x56 => registers[to] as i32 != value,
                0x95 => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            };
            if jump {
                at = at.strict_add_signed(offset.into());
            }
        }
    }

    fn rule(allow: bool, kind: Option<i32>, device: (Option<i32>, Option<i32>), access: &str) -> Rule {
        Rule { allow, kind, major: device.0, minor: device.1, access: access.into() }
    }

    #[test]
    fn the_last_rule_about_an_access_counts_and_all_that_are_asked_for_are_needed() {
        let any = (None, None);
        let code = compile(&[
            rule(true, Some(CHARACTER), (Some(1), Some(3)), "rwm"),
            rule(false, None, any, "rwm"),
            rule(true, Some(CHARACTER), (Some(10), None), "rw"),
            rule(false, Some(CHARACTER), (Some(10), Some(7)), "w"),
            rule(true, Some(BLOCK), (Some(8), Some(1)), "r"),
        ]);
        let (make, read, write) = (1, 2, 4);
        assert!(!allows(&code, CHARACTER, (1, 3), read), "denied after it was allowed");
        assert!(allows(&code, CHARACTER, (10, 1), read | write));
        assert!(!allows(&code, CHARACTER, (10, 1), read | make));
        assert!(!allows(&code, BLOCK, (10, 1), read));
        assert!(allows(&code, CHARACTER, (10, 7), read));
        assert!(!allows(&code, CHARACTER, (10, 7), write));
        assert!(!allows(&code, CHARACTER, (10, 7), read | write));
        assert!(allows(&code, BLOCK, (8, 1), read));
        assert!(!allows(&code, BLOCK, (8, 1), write));
        assert!(!allows(&code, BLOCK, (8, 2), read));
        assert!(allows(&code, BLOCK, (8, 2), 0), "nothing is asked for");
    }

    #[test]
    fn every_access_gets_what_the_last_rule_about_it_says() {
        let maybe = |n: usize, some: i32| [None, Some(some), Some(some + 1)][n % 3];
        let accesses = ["r", "w", "m", "rw", "rm", "wm", "rwm"];
        let all: Vec<Rule> = (0..60)
            .map(|n| rule(n % 2 == 0, maybe(n / 2, 1), (maybe(n / 3, 8), maybe(n / 5, 1)), accesses[n % 7]))
            .collect();
        for (from, to) in (0..60).flat_map(|from| [1, 2, 5, 13].map(|n| (from, (from + n).min(60)))) {
            let rules = &all[from..to];
            let code = compile(rules);
            for (kind, major, minor) in [(1, 8, 1), (1, 9, 2), (2, 8, 2), (2, 7, 7)] {
                let is_about = |rule: &&Rule| {
                    [(rule.kind, kind), (rule.major, major), (rule.minor, minor)]
                        .iter()
                        .all(|(wanted, is)| wanted.is_none_or(|wanted| wanted == *is))
                };
                let allowed = |letter: char| {
                    let about = rules.iter().filter(is_about).rfind(|rule| rule.access.contains(letter));
                    about.is_none_or(|rule| rule.allow)
                };
                for asked in 1..=ALL {
                    let all =
                        ACCESS.iter().filter(|(_, bit)| asked & bit != 0).all(|(letter, _)| allowed(*letter));
                    assert_eq!(allows(&code, kind, (major, minor), asked), all, "{rules:?} {asked}");
                }
            }
        }
    }

    #[test]
    fn a_rule_costs_the_verifier_a_few_instructions_and_no_combinations() {
        let always = |count: i32| -> Vec<Rule> {
            let one = |n| rule(true, Some(CHARACTER), (Some(1), Some(n)), "rwm");
            std::iter::once(rule(false, None, (None, None), "rwm")).chain((0..count).map(one)).collect()
        };
        // Three comparisons, and an end.
        assert_eq!(compile(&always(12)).len() - compile(&always(11)).len(), 5);
        let code = compile(&always(400));
        // Who is not about a device goes on to the next rule, and who is ends: nothing is reached on two ways.
        let jumps_back = code
            .iter()
            .any(|word| matches!(*word as u8, 0x05 | 0x15 | 0x55 | 0x56) && (*word >> 16) as i16 <= 0);
        assert!(!jumps_back && !code.iter().any(|word| *word as u8 == 0x05));
    }

    #[test]
    fn what_no_rule_is_about_is_allowed_and_the_last_word_for_all_stands_alone() {
        let one = rule(false, Some(BLOCK), (Some(8), Some(0)), "w");
        let code = compile(std::slice::from_ref(&one));
        assert!(allows(&code, BLOCK, (8, 1), 4) && allows(&code, BLOCK, (8, 0), 3));
        assert!(!allows(&code, BLOCK, (8, 0), 4));
        let code = compile(&[one, rule(true, None, (None, None), "rwm")]);
        assert!(allows(&code, BLOCK, (8, 0), 7));
    }
}
