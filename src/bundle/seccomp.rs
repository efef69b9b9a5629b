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

use self::numbers::Numbered;
use crate::error::{Error, Result};

mod numbers;
mod unknown;

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

/// Compiles a profile into the bytes of a `struct sock_filter` array, with the meaning that runc gives it.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    let architectures = architectures(profile)?;
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(wrap)?;
    filter.set_ctl_nnp(false).map_err(wrap)?;
    // A binary tree instead of a list: shorter ways for every call that is made inside.
    filter.set_ctl_optimize(2).map_err(wrap)?;
    for (_, arch) in &architectures {
        filter.add_arch(*arch).map_err(wrap)?;
    }
    let mut numbered = Numbered::default();
    for rule in profile.syscalls().iter().flatten() {
        let act = action(rule.action(), rule.errno_ret())?;
        if act == default {
            continue;
        }
        for name in rule.names() {
            match ScmpSyscall::from_name(name) {
                Ok(call) => add_rule(&mut filter, act, call, rule.args().as_deref().unwrap_or_default())?,
                // Where the default forbids it, it gets that, or `ENOSYS` as an unknown number does.
                Err(_) => numbered.add(profile, rule, name)?,
            }
        }
    }
    let mut out = tempfile::tempfile().map_err(Error::sys("hold the filter"))?;
    filter.export_bpf(out.as_fd()).map_err(wrap)?;
    let mut bytes = unknown::answer(profile, &architectures);
    bytes.extend(numbered.code(&architectures));
    out.rewind().and_then(|()| out.read_to_end(&mut bytes)).map_err(Error::sys("read the filter"))?;
    Ok(bytes)
}

/// The version of libseccomp, which decides which names of system calls are known.
pub fn version() -> Option<String> {
    libseccomp::ScmpVersion::current().ok().map(|v| format!("{}.{}.{}", v.major, v.minor, v.micro))
}

/// The architectures of a filter, in the words of both libraries: this machine's, and those that the profile lists.
fn architectures(profile: &LinuxSeccomp) -> Result<Vec<(Arch, ScmpArch)>> {
    let own = native()?;
    let mut all = vec![own];
    for arch in profile.architectures().iter().flatten() {
        let arch = if *arch == Arch::ScmpArchNative { own } else { *arch };
        if !all.contains(&arch) {
            all.push(arch);
        }
    }
    all.into_iter().map(|arch| Ok((arch, arch_of(arch)?))).collect()
}

/// The flags of seccomp(2) that a profile asks for.
pub fn flags(profile: &LinuxSeccomp) -> u64 {
    use LinuxSeccompFilterFlag as Flag;
    let flag = |flag: &Flag| match flag {
        Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Flag::SeccompFilterFlagWaitKillableRecv => libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
        // Whoever loads a filter has one thread.
        Flag::SeccompFilterFlagTsync => 0,
    };
    let asked = profile.flags().iter().flatten().map(flag).fold(0, |all, one| all | one);
    if notifies(profile) { asked | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { asked }
}

/// Whether a profile has another process decide on system calls.
pub fn notifies(profile: &LinuxSeccomp) -> bool {
    let notify = LinuxSeccompAction::ScmpActNotify;
    profile.default_action() == notify
        || profile.syscalls().iter().flatten().any(|rule| rule.action() == notify)
}

/// Adds a rule for calls whose arguments meet all conditions.
///
/// libseccomp takes one condition for each argument. A profile with two for the same one means what it has meant in runc
/// since that has had conditions: each condition is a rule of its own, so that any of them is enough.
fn add_rule(
    filter: &mut ScmpFilterContext,
    act: ScmpAction,
    call: ScmpSyscall,
    args: &[LinuxSeccompArg],
) -> Result<()> {
    let conditions: Vec<ScmpArgCompare> = args.iter().map(compare).collect();
    let repeated = args.iter().enumerate().any(|(i, arg)| args[..i].iter().any(|a| a.index() == arg.index()));
    if conditions.is_empty() {
        return filter.add_rule(act, call).map(drop).map_err(wrap);
    }
    let rules: Vec<&[ScmpArgCompare]> =
        if repeated { conditions.chunks(1).collect() } else { vec![&conditions] };
    rules
        .into_iter()
        .try_for_each(|rule| filter.add_rule_conditional(act, call, rule).map(drop).map_err(wrap))
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
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        other => return Err(failed(format!("action {other:?} is not supported"))),
    })
}

fn arch_of(arch: Arch) -> Result<ScmpArch> {
    Ok(match arch {
        Arch::ScmpArchNative => ScmpArch::native(),
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        other => return Err(failed(format!("architecture {other:?} is not supported"))),
    })
}

fn wrap(e: libseccomp::error::SeccompError) -> Error {
    failed(e.to_string())
}

fn failed(why: String) -> Error {
    Error::NotSupported {
        what: format!("the system call filter cannot be made: {why}"),
        hint: Some("look at `linux.seccomp` of the bundle".into()),
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

    #[test]
    fn two_conditions_on_one_argument_are_two_rules() {
        let profile = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
            "names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]}]});
        assert!(compile(&serde_json::from_value(profile).unwrap()).unwrap().len() > 64);
    }
}
