//! What `doctor --fix` does: Debian packages through apt-get, kernel modules through modprobe. Nothing else of
//! the host is changed: boot parameters and sysctls are the administrator's.

use std::process::Stdio;

use super::{Check, Probe};
use crate::error::{Error, Result};
use crate::pool::layout::not_root;
use crate::sys;

/// One thing that can be done about a failing check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fix {
    /// Installs a Debian package.
    Package(&'static str),
    /// Loads a kernel module.
    Module(&'static str),
}

/// The commands for what fails, each with its arguments.
fn plan(checks: &[Check], probe: &Probe) -> Vec<Vec<&'static str>> {
    let mut packages = Vec::new();
    let mut commands = Vec::new();
    for fix in checks.iter().filter_map(|check| check.fix) {
        match fix {
            Fix::Package(name) if !packages.contains(&name) => packages.push(name),
            Fix::Module(name) if probe.has_module(name) => commands.push(vec!["modprobe", name]),
            _ => {}
        }
    }
    if !packages.is_empty() && probe.program("apt-get").is_some() {
        let mut install = vec!["apt-get", "install", "-y", "--no-install-recommends"];
        install.extend(packages);
        commands.insert(0, install);
    }
    commands
}

/// Does what can be done. What cannot is left for the checks to say.
pub(super) fn apply(checks: &[Check], probe: &Probe) -> Result<()> {
    let commands = plan(checks, probe);
    if !commands.is_empty() && probe.user != 0 {
        return Err(not_root());
    }
    run_all(&commands, &mut run)
}

fn run_all(commands: &[Vec<&'static str>], run: &mut dyn FnMut(&[&str]) -> Result<()>) -> Result<()> {
    for command in commands {
        match run(command) {
            // A host that never updated its package lists knows no package, so they are fetched once.
            Err(Error::Program { program, .. }) if program == "apt-get" => {
                run(&["apt-get", "update"])?;
                run(command)?;
            }
            other => other?,
        }
    }
    Ok(())
}

fn run(command: &[&str]) -> Result<()> {
    let [program, args @ ..] = command else {
        return Ok(());
    };
    tracing::info!("running {}", command.join(" "));
    let output = sys::host::command(program)
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Host {
            what: format!("cannot run {program}"),
            hint: format!("run it yourself: `{}`", command.join(" ")),
            source: Some(source),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Program { program: (*program).to_owned(), detail })
}

#[cfg(test)]
mod tests {
    use super::super::tests::Bare;
    use super::*;

    fn failing(fix: Fix) -> Check {
        Check::required("x", false, "x").or("x").fixed_by(fix)
    }

    #[test]
    fn packages_are_installed_once_and_together_and_only_modules_that_exist_are_loaded() {
        let bare = Bare::new();
        let checks = [
            failing(Fix::Package("btrfs-progs")),
            failing(Fix::Module("btrfs")),
            failing(Fix::Package("btrfs-progs")),
            failing(Fix::Package("mmdebstrap")),
            Check::required("y", true, "y").fixed_by(Fix::Package("never")),
        ];
        assert!(plan(&checks, &bare.probe).is_empty());
        bare.program("bin/apt-get");
        bare.write("modules/modules.dep", "kernel/fs/btrfs/btrfs.ko:\n");
        let commands = plan(&checks, &bare.probe);
        assert_eq!(commands.len(), 2);
        assert_eq!(commands[0][4..], ["btrfs-progs", "mmdebstrap"]);
        assert_eq!(commands[1], ["modprobe", "btrfs"]);
    }

    #[test]
    fn a_failed_installation_is_tried_once_more_with_new_lists() {
        let mut ran = Vec::new();
        let e = run_all(&[vec!["apt-get", "install", "x"]], &mut |command| {
            ran.push(command.join(" "));
            match command {
                [_, "update"] => Ok(()),
                _ => Err(Error::Program { program: "apt-get".into(), detail: "no such package".into() }),
            }
        });
        assert!(e.is_err());
        assert_eq!(ran, ["apt-get install x", "apt-get update", "apt-get install x"]);
    }

    #[test]
    fn nobody_but_root_fixes() {
        let mut bare = Bare::new();
        bare.program("bin/apt-get");
        bare.probe.user = 1000;
        let e = apply(&[failing(Fix::Package("btrfs-progs"))], &bare.probe).unwrap_err();
        assert_eq!(e.code(), crate::error::Code::Denied);
    }
}
