//! What a bundle names for the security modules of the host: an AppArmor profile, SELinux labels. What is named is applied or
//! refused, never left out in silence (docs/adr/0027).

use std::io;
use std::path::Path;

use libcontainer::apparmor::{AppArmorError, apply_profile};
use oci_spec::runtime::{Process, Spec};

use crate::error::{Error, Result};

/// The security modules of a host.
#[derive(Debug, Clone, Copy)]
struct Modules {
    apparmor: bool,
    selinux: bool,
}

impl Modules {
    fn of_this_host() -> Modules {
        let parameter = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        Modules {
            apparmor: parameter.is_ok_and(|enabled| enabled.starts_with('Y')),
            selinux: Path::new("/sys/fs/selinux").exists(),
        }
    }
}

/// The AppArmor profile of a process, if the host can apply all that the process names.
///
/// # Errors
/// `not_supported` if it cannot.
pub(super) fn profile_of(process: &Process) -> Result<Option<String>> {
    let named = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (profile, label) = (named(process.apparmor_profile()), named(process.selinux_label()));
    if profile.is_some() || label.is_some() {
        check_process(profile.as_deref(), label.as_deref(), Modules::of_this_host())?;
    }
    Ok(profile)
}

fn check_process(profile: Option<&str>, label: Option<&str>, host: Modules) -> Result<()> {
    if let Some(profile) = profile
        && !host.apparmor
    {
        return Err(refused("process.apparmorProfile", profile, "this host has no AppArmor"));
    }
    match label {
        None => Ok(()),
        Some(label) if host.selinux => {
            Err(refused("process.selinuxLabel", label, "Sparks gives no SELinux label to a process"))
        }
        Some(label) => Err(refused("process.selinuxLabel", label, "this host has no SELinux")),
    }
}

/// Checks that mounts can have the label that the bundle of a spark names for them.
///
/// # Errors
/// `not_supported` if they cannot.
pub fn check_mounts(spec: &Spec) -> Result<()> {
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref());
    label.filter(|label| !label.is_empty()).map_or(Ok(()), check_mount_label)
}

/// Checks that mounts can have a label.
///
/// # Errors
/// `not_supported` if they cannot.
pub(super) fn check_mount_label(label: &str) -> Result<()> {
    if Modules::of_this_host().selinux {
        Ok(())
    } else {
        Err(refused("linux.mountLabel", label, "this host has no SELinux"))
    }
}

fn refused(field: &str, value: &str, why: &str) -> Error {
    Error::NotSupported {
        what: format!("{field} is `{}`, and {why}", value.escape_default()),
        hint: Some(format!(
            "remove {field} from the bundle; podman leaves labels out with `--security-opt label=disable` and `apparmor=unconfined`"
        )),
    }
}

/// Has this process get an AppArmor profile with the next program that it executes. Call it while `/proc` is the host's.
pub(super) fn enter_profile(profile: &str) -> io::Result<()> {
    apply_profile(profile).map_err(|e| match e {
        AppArmorError::ActivateProfile { source, .. } => source,
        other => io::Error::other(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_cannot_apply_is_refused_by_the_name_of_the_field() {
        let host = |apparmor, selinux| Modules { apparmor, selinux };
        let why = |profile, label, host| check_process(profile, label, host).unwrap_err().to_string();
        assert_eq!(
            why(Some("p"), None, host(false, true)),
            "process.apparmorProfile is `p`, and this host has no AppArmor"
        );
        assert_eq!(
            why(None, Some("l"), host(true, false)),
            "process.selinuxLabel is `l`, and this host has no SELinux"
        );
        assert!(why(Some("p"), Some("l"), host(true, true)).ends_with("no SELinux label to a process"));
        assert!(check_process(Some("p"), None, host(true, false)).is_ok());
        assert!(check_process(None, None, host(false, false)).is_ok());
    }
}
