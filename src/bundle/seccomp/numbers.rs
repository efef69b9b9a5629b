//! System calls that libseccomp does not know, in a profile that allows what it does not list.
//!
//! Such a profile lists what it forbids. If a name was left out because libseccomp is older than the system call, then the
//! call would be allowed. So rules for it are applied by number, in instructions that stand before libseccomp's own. A name
//! that nobody knows is refused.

use libseccomp::ScmpArch;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};

use super::failed;
use super::unknown::{Code, X32_BIT, is_permissive};
use crate::error::Result;

/// System calls that libseccomp 2.5.4 as released does not know; distributions add some. All architectures give them the same number; those of mips
/// add to it, and no kernel that Sparks runs on has one of those.
const NEWER: [(&str, u32); 21] = [
    ("set_mempolicy_home_node", 450),
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
    ("listns", 470),
];

/// Rules by number.
#[derive(Debug, Default)]
pub(super) struct Numbered(Vec<(u32, u32)>);

impl Numbered {
    /// Adds what a rule does with a name that libseccomp does not know.
    ///
    /// # Errors
    /// `not_supported` if the call would be allowed though the rule forbids it.
    pub(super) fn add(&mut self, profile: &LinuxSeccomp, rule: &LinuxSyscall, name: &str) -> Result<()> {
        // What is not listed is refused: no rule can make the call more forbidden than it is.
        if !is_permissive(profile.default_action()) || is_permissive(rule.action()) {
            return Ok(());
        }
        let number = NEWER.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
        let Some(number) = number else {
            return Err(failed(format!(
                "it forbids the system call `{}`, which neither libseccomp nor Sparks knows, so that it would be allowed",
                name.escape_default()
            )));
        };
        if rule.args().as_ref().is_some_and(|args| !args.is_empty()) {
            return Err(failed(format!(
                "`{name}` is newer than libseccomp, and can be forbidden only without `args`"
            )));
        }
        self.0.push((number, answer(rule)?));
        Ok(())
    }

    /// The instructions.
    pub(super) fn code(&self, architectures: &[(Arch, ScmpArch)]) -> Vec<u8> {
        let mut code = Code::default();
        let has_x32 = architectures.iter().any(|(_, arch)| *arch == ScmpArch::X32);
        for (token, arch) in architectures.iter().filter(|(_, arch)| *arch != ScmpArch::X32) {
            let mut rules = self.0.clone();
            if has_x32 && *arch == ScmpArch::X8664 {
                rules.extend(self.0.iter().map(|(number, answer)| (number | X32_BIT, *answer)));
            }
            code.answers(*token as u32, &rules);
        }
        code.0
    }
}

/// What the kernel reads as the answer of a filter: <linux/seccomp.h>
fn answer(rule: &LinuxSyscall) -> Result<u32> {
    use LinuxSeccompAction as Action;
    Ok(match rule.action() {
        Action::ScmpActErrno => {
            libc::SECCOMP_RET_ERRNO | (rule.errno_ret().unwrap_or(libc::EPERM as u32) & 0xffff)
        }
        Action::ScmpActKill | Action::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        Action::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
        other => return Err(failed(format!("action {other:?} is not supported"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(names: &[&str], rule: serde_json::Value) -> Result<Vec<u8>> {
        let mut call = serde_json::json!({"names": names, "action": "SCMP_ACT_ERRNO"});
        call.as_object_mut().unwrap().extend(rule.as_object().unwrap().clone());
        let profile = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [call]});
        super::super::compile(&serde_json::from_value(profile).unwrap())
    }

    #[test]
    fn what_would_be_allowed_because_nobody_knows_it_is_refused() {
        let none = serde_json::json!({});
        let plain = compiled(&["personality"], none.clone()).unwrap();
        // Three instructions for the architecture, and two for the number.
        assert_eq!(compiled(&["personality", "mseal"], none.clone()).unwrap().len(), plain.len() + 5 * 8);
        let refused = compiled(&["personality", "nosuchcall"], none).unwrap_err().to_string();
        assert!(refused.contains("`nosuchcall`"), "{refused}");
        let args = serde_json::json!({"args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]});
        assert!(compiled(&["mseal"], args).unwrap_err().to_string().contains("only without `args`"));
        let allowed = serde_json::json!({"action": "SCMP_ACT_LOG"});
        compiled(&["nosuchcall"], allowed).unwrap();
    }
}
