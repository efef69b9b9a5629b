//! The system call filter: from the profile to instructions for the kernel.
//!
//! libcontainer 0.7.0 exchanges mask and value of `SCMP_CMP_MASKED_EQ`, so its own filter would let through
//! what ours refuses, and compiling one takes 2 ms of every start. So the filter is compiled here, once per boot
//! and profile, and our executors load the ready instructions (docs/adr/0003).

use std::io::{Read, Seek};
use std::os::fd::AsFd;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};

use crate::error::{Error, Result};

/// The profile of every template that does not bring its own.
const PROFILE: &str = include_str!("../../bundles/seccomp.json");

/// The embedded profile, for this machine's architecture.
pub fn profile() -> Result<LinuxSeccomp> {
    let mut profile: LinuxSeccomp = serde_json::from_str(PROFILE).map_err(|e| failed(e.to_string()))?;
    profile.set_architectures(Some(vec![native()?]));
    Ok(profile)
}

fn native() -> Result<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => Ok(Arch::ScmpArchX86_64),
        "aarch64" => Ok(Arch::ScmpArchAarch64),
        other => Err(Error::NotSupported {
            what: format!("there is no system call filter for {other}"),
            hint: None,
        }),
    }
}

/// Compiles a profile into the bytes of a `struct sock_filter` array.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(wrap)?;
    filter.set_ctl_nnp(false).map_err(wrap)?;
    // A binary tree instead of a list: shorter ways for every call that is made inside.
    filter.set_ctl_optimize(2).map_err(wrap)?;
    for arch in profile.architectures().iter().flatten() {
        if *arch != native()? {
            let arch = arch_of(*arch)?;
            filter.add_arch(arch).map_err(wrap)?;
        }
    }
    for flag in profile.flags().iter().flatten() {
        if *flag != LinuxSeccompFilterFlag::SeccompFilterFlagLog {
            return Err(failed(format!("flag {flag:?} is not supported")));
        }
    }
    for rule in profile.syscalls().iter().flatten() {
        let act = action(rule.action(), rule.errno_ret())?;
        if act == default {
            continue;
        }
        for name in rule.names() {
            // A name that this libseccomp does not know gets the default action, as an unknown number does.
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            match rule.args().as_deref() {
                None | Some([]) => filter.add_rule(act, call).map(drop),
                Some(args) => {
                    let args: Vec<ScmpArgCompare> = args.iter().map(compare).collect();
                    filter.add_rule_conditional(act, call, &args).map(drop)
                }
            }
            .map_err(wrap)?;
        }
    }
    let mut out = tempfile::tempfile().map_err(Error::sys("hold the filter"))?;
    filter.export_bpf(out.as_fd()).map_err(wrap)?;
    let mut bytes = Vec::new();
    out.rewind().and_then(|()| out.read_to_end(&mut bytes)).map_err(Error::sys("read the filter"))?;
    Ok(bytes)
}

/// OCI: for `SCMP_CMP_MASKED_EQ`, `value` is the mask and `valueTwo` what the masked argument has to be.
fn compare(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (value, op) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (arg.value_two().unwrap_or(0), ScmpCompareOp::MaskedEqual(arg.value()))
        }
        LinuxSeccompOperator::ScmpCmpNe => (arg.value(), ScmpCompareOp::NotEqual),
        LinuxSeccompOperator::ScmpCmpLt => (arg.value(), ScmpCompareOp::Less),
        LinuxSeccompOperator::ScmpCmpLe => (arg.value(), ScmpCompareOp::LessOrEqual),
        LinuxSeccompOperator::ScmpCmpEq => (arg.value(), ScmpCompareOp::Equal),
        LinuxSeccompOperator::ScmpCmpGe => (arg.value(), ScmpCompareOp::GreaterEqual),
        LinuxSeccompOperator::ScmpCmpGt => (arg.value(), ScmpCompareOp::Greater),
    };
    ScmpArgCompare::new(arg.index() as u32, op, value)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno.unwrap_or(libc::EPERM as u32) as i32),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        other => return Err(failed(format!("action {other:?} is not supported"))),
    })
}

fn arch_of(arch: Arch) -> Result<ScmpArch> {
    match arch {
        Arch::ScmpArchX86 => Ok(ScmpArch::X86),
        Arch::ScmpArchX32 => Ok(ScmpArch::X32),
        Arch::ScmpArchArm => Ok(ScmpArch::Arm),
        other => Err(failed(format!("architecture {other:?} is not supported"))),
    }
}

fn wrap(e: libseccomp::error::SeccompError) -> Error {
    failed(e.to_string())
}

fn failed(why: String) -> Error {
    Error::NotSupported {
        what: format!("the system call filter cannot be made: {why}"),
        hint: Some("look at `linux.seccomp` of the bundle template".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_profile_compiles_to_whole_instructions() {
        let filter = compile(&profile().unwrap()).unwrap();
        assert!(filter.len() > 1000 && filter.len().is_multiple_of(size_of::<libc::sock_filter>()));
    }
}
