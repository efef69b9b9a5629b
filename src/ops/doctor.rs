//! `doctor`: can this host run sparks, and what to type where it cannot.
//!
//! Every check reads a [`Probe`], which says where the host's files are, so that tests can show each failing.
//! Nothing is changed unless `fix` is asked for; then Debian packages are installed and kernel modules loaded.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Context;
use crate::domain::place::Place;
use crate::error::Result;
use crate::sys;

mod cgroup;
mod filter;
mod fix;
mod kernel;
mod networks;
mod programs;
mod space;
mod storage;

/// How bad it is when a check fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Sparks do not work.
    Required,
    /// Some things do not work, or not as well.
    Recommended,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    pub severity: Severity,
    /// What is there.
    pub found: String,
    /// What to type where it is not what is needed.
    pub remedy: Option<String>,
    /// What `--fix` does about it.
    #[serde(skip)]
    fix: Option<fix::Fix>,
}

impl Check {
    fn new(name: &'static str, severity: Severity, ok: bool, found: impl Into<String>) -> Check {
        Check { name, ok, severity, found: found.into(), remedy: None, fix: None }
    }

    fn required(name: &'static str, ok: bool, found: impl Into<String>) -> Check {
        Check::new(name, Severity::Required, ok, found)
    }

    fn recommended(name: &'static str, ok: bool, found: impl Into<String>) -> Check {
        Check::new(name, Severity::Recommended, ok, found)
    }

    /// What to type, if the check fails.
    fn or(mut self, remedy: impl Into<String>) -> Check {
        self.remedy = (!self.ok).then(|| remedy.into());
        self
    }

    /// What `--fix` does, if the check fails.
    fn fixed_by(mut self, fix: fix::Fix) -> Check {
        self.fix = (!self.ok).then_some(fix);
        self
    }
}

/// Where the host's files are.
#[derive(Debug, Clone)]
struct Probe {
    proc: PathBuf,
    sys: PathBuf,
    dev: PathBuf,
    /// `/lib/modules/RELEASE`
    modules: PathBuf,
    release: String,
    user: u32,
    /// The directories in which programs are looked for.
    path: Vec<PathBuf>,
    nofile: Option<u64>,
    /// The version of Landlock.
    landlock: Option<u32>,
    place: Place,
}

impl Probe {
    fn host(place: &Place) -> Probe {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        Probe {
            proc: "/proc".into(),
            sys: "/sys".into(),
            dev: "/dev".into(),
            modules: Path::new("/lib/modules").join(&release),
            release,
            user: rustix::process::geteuid().as_raw(),
            path: sys::host::directories(),
            nofile: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            landlock: sys::confine::landlock_version(),
            place: place.clone(),
        }
    }

    /// A file of the kernel's, or nothing.
    fn text(&self, path: PathBuf) -> Option<String> {
        std::fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A program of the host.
    fn program(&self, name: &str) -> Option<PathBuf> {
        executable_in(&self.path, name)
    }

    /// Whether the kernel has a module, built in or to load. Only reads the lists that `depmod` wrote.
    fn has_module(&self, name: &str) -> bool {
        let file = format!("/{name}.ko");
        ["modules.builtin", "modules.dep"].iter().filter_map(|list| self.text(self.modules.join(list))).any(
            |text| {
                text.lines().any(|line| line.split(':').next().is_some_and(|module| module.contains(&file)))
            },
        )
    }
}

fn executable_in(dirs: &[PathBuf], name: &str) -> Option<PathBuf> {
    let executable =
        |path: &PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    dirs.iter().map(|dir| dir.join(name)).find(executable)
}

/// Looks at the host. With `fix`, installs and loads what is missing first, as far as that can be done.
///
/// # Errors
/// Only of `fix`: a host that cannot run sparks is not an error but what the checks say.
pub fn doctor(context: &Context, fix: bool) -> Result<Vec<Check>> {
    let probe = Probe::host(&context.place);
    let checks = look(&probe);
    if !fix {
        return Ok(checks);
    }
    fix::apply(&checks, &probe)?;
    Ok(look(&probe))
}

fn look(probe: &Probe) -> Vec<Check> {
    let mut checks = kernel::checks(probe);
    checks.extend(cgroup::checks(probe));
    checks.extend(programs::checks(probe));
    checks.extend(filter::checks(probe));
    checks.extend(networks::checks(probe));
    checks.extend(storage::checks(probe));
    checks.extend(space::checks(probe));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which nothing is as it should be, in a directory.
    pub(super) struct Bare {
        pub(super) dir: tempfile::TempDir,
        pub(super) probe: Probe,
    }

    impl Bare {
        pub(super) fn new() -> Bare {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            let probe = Probe {
                proc: at("proc"),
                sys: at("sys"),
                dev: at("dev"),
                modules: at("modules"),
                release: "6.1.0-9-amd64".into(),
                user: 0,
                path: vec![at("bin"), at("sbin")],
                nofile: Some(20_000),
                landlock: Some(2),
                place: Place { root: at("root"), run: at("run") },
            };
            Bare { dir, probe }
        }

        pub(super) fn write(&self, path: &str, content: &str) {
            let path = self.dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }

        pub(super) fn program(&self, path: &str) {
            self.write(path, "x");
            std::fs::set_permissions(self.dir.path().join(path), PermissionsExt::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn every_check_that_fails_says_what_to_do_and_none_that_passes_does() {
        let bare = Bare::new();
        let checks = look(&bare.probe);
        assert!(checks.iter().filter(|c| !c.ok && c.severity == Severity::Required).count() > 5);
        for check in checks.iter().chain(&look(&Probe::host(&Place::default()))) {
            assert_eq!(check.ok, check.remedy.is_none(), "{check:?}");
            assert!(!check.found.is_empty(), "{check:?}");
        }
    }

    #[test]
    fn checks_have_names_of_their_own() {
        let mut names: Vec<_> = look(&Bare::new().probe).iter().map(|c| c.name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn modules_are_found_built_in_or_to_load_by_their_whole_name() {
        let bare = Bare::new();
        assert!(!bare.probe.has_module("btrfs"));
        bare.write(
            "modules/modules.dep",
            "kernel/fs/xbtrfs.ko.xz:\nkernel/lib/a.ko: kernel/fs/btrfs.ko.xz\n",
        );
        assert!(!bare.probe.has_module("btrfs"));
        bare.write("modules/modules.dep", "kernel/fs/btrfs/btrfs.ko.xz: kernel/lib/xor.ko.xz\n");
        assert!(bare.probe.has_module("btrfs"));
        bare.write("modules/modules.builtin", "kernel/drivers/block/loop.ko\n");
        assert!(bare.probe.has_module("loop"));
    }
}
