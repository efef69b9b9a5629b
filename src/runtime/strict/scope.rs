//! Control groups that systemd makes: a scope for each container, in a slice.
//!
//! systemd is asked by its own programs. A scope begins with a process in it, which is one of ours that waits; its control
//! group is then one as any other, and libcontainer's part is the same as without systemd. What it is limited to is told to
//! systemd, which would write its own numbers there whenever it reads its configuration anew (docs/adr/0016).

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::error::{Error, Result};
use crate::runtime::cgroup;

/// What systemd reckons where nobody says anything; the other properties are the container's limits.
const PROPERTIES: [&str; 7] = [
    // What is below it is none of systemd's business, and all controllers are there.
    "Delegate=yes",
    // It ends when it is told to, not with the units that a scope is for.
    "DefaultDependencies=no",
    "TasksMax=infinity",
    "CPUAccounting=yes",
    "MemoryAccounting=yes",
    "IOAccounting=yes",
    "TasksAccounting=yes",
];

/// Files of a control group that hold one number or a list, and systemd's names for them.
const MIRRORED: [(&str, &str); 10] = [
    ("memory.max", "MemoryMax"),
    ("memory.high", "MemoryHigh"),
    ("memory.low", "MemoryLow"),
    ("memory.min", "MemoryMin"),
    ("memory.swap.max", "MemorySwapMax"),
    ("pids.max", "TasksMax"),
    ("cpu.weight", "CPUWeight"),
    ("io.weight", "IOWeight"),
    ("cpuset.cpus", "AllowedCPUs"),
    ("cpuset.mems", "AllowedMemoryNodes"),
];

/// The share of processors, which has a name of its own for each half of it.
const QUOTA: &str = "cpu.max";

/// A scope by its name, and the slice that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    slice: String,
    name: String,
}

/// A scope that is there, with a process that waits in it until this is dropped.
#[derive(Debug)]
pub(super) struct Scope {
    placeholder: Child,
    /// Its control group.
    pub(super) cgroup: PathBuf,
}

/// Whether systemd is in charge of the control groups here, and those are of version 2 alone.
fn available() -> bool {
    Path::new("/run/systemd/system").is_dir() && cgroup::is_unified()
}

impl Unit {
    /// Reads a `cgroupsPath` of the form `slice:prefix:name`. Without one the scope is called after the container.
    ///
    /// # Errors
    /// `usage` for another form; `not_supported` where systemd makes no control groups.
    pub fn of(cgroups_path: Option<&str>, id: &str) -> Result<Unit> {
        if !available() {
            return Err(Error::NotSupported {
                what:
                    "--systemd-cgroup: systemd has no control groups of version 2 alone to give on this host"
                        .into(),
                hint: Some(
                    "tell containerd `SystemdCgroup = false`, podman `--cgroup-manager cgroupfs`".into(),
                ),
            });
        }
        Unit::parse(cgroups_path, id)
    }

    fn parse(cgroups_path: Option<&str>, id: &str) -> Result<Unit> {
        let own = format!(":spark-oci:{id}");
        let path = cgroups_path.unwrap_or(&own);
        let parts: Vec<&str> = path.split(':').collect();
        let wrong = |why: &str| {
            Err(Error::usage(format!(
                "with --systemd-cgroup, cgroupsPath is `slice:prefix:name`, not `{}`: {why}",
                path.escape_default()
            )))
        };
        let [slice, prefix, name] = parts[..] else { return wrong("it has not three parts") };
        if name.ends_with(".slice") {
            return wrong("a container is in a scope");
        }
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        let name = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-\\@".contains(c);
        if !slice.ends_with(".slice") {
            return wrong("the first part is no slice");
        }
        match [slice, &name].iter().all(|part| part.len() < 256 && part.chars().all(plain)) {
            true => Ok(Unit { slice: slice.into(), name }),
            false => wrong("its parts are no names of units"),
        }
    }

    /// Has systemd make the scope.
    ///
    /// # Errors
    /// `exists` if there is one of that name.
    pub(super) fn start(&self, id: &str) -> Result<Scope> {
        let mut command = Command::new("systemd-run");
        command.args(["--scope", "--quiet", "--collect", "--no-ask-password"]);
        command.arg(format!("--unit={}", self.name)).arg(format!("--slice={}", self.slice));
        command.arg(format!("--description=container {id}"));
        for property in PROPERTIES {
            command.args(["-p", property]);
        }
        // It becomes this program when it is in the scope, and ends when this process does.
        command.args(["--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut placeholder = command.spawn().map_err(Error::io("run", "systemd-run"))?;
        let cgroup = enter(&mut placeholder);
        let scope = Scope { placeholder, cgroup: cgroup.unwrap_or_default() };
        if scope.cgroup.as_os_str().is_empty() {
            return Err(self.failed(scope));
        }
        enable_controllers(&scope.cgroup);
        Ok(scope)
    }

    fn failed(&self, mut scope: Scope) -> Error {
        drop(scope.placeholder.stdin.take());
        let mut detail = String::new();
        let said = scope.placeholder.stderr.take().map(|said| said.take(1 << 16).read_to_string(&mut detail));
        tracing::debug!("systemd-run said something: {said:?}");
        if detail.contains("already") {
            return Error::Exists { kind: "systemd unit", name: self.name.clone(), in_project: None };
        }
        Error::Program { program: "systemd-run".into(), detail: detail.trim().to_owned() }
    }
}

/// Waits until the placeholder answers. Returns the control group that it is in.
fn enter(placeholder: &mut Child) -> io::Result<PathBuf> {
    let (Some(to), Some(from)) = (&mut placeholder.stdin, &mut placeholder.stdout) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    to.write_all(b"\n")?;
    from.read_exact(&mut [0])?;
    let places = std::fs::read_to_string(format!("/proc/{}/cgroup", placeholder.id()))?;
    let place = places.lines().find_map(|line| line.strip_prefix("0::"));
    place.map(PathBuf::from).ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl Drop for Scope {
    fn drop(&mut self) {
        let _ = self.placeholder.kill();
        let _ = self.placeholder.wait();
    }
}

/// The scope whose control group this is, by its name.
pub(super) fn of(cgroup: &Path) -> Option<String> {
    let name = cgroup.file_name()?.to_str().filter(|name| name.ends_with(".scope"))?;
    if !available() {
        return None;
    }
    let shown = systemctl(&["show", "--property=ControlGroup", "--value", "--", name]).ok()?;
    (Path::new(shown.trim()) == cgroup).then(|| name.to_owned())
}

/// Ends a scope, and waits for that.
pub(super) fn stop(name: &str) {
    // It ends with its last process too, and is not there any more then.
    if let Err(e) = systemctl(&["stop", "--no-ask-password", "--", name]) {
        tracing::debug!("cannot stop {name}: {e}");
    }
}

/// Tells systemd what a scope is limited to, as the files of its control group say.
pub(super) fn tell(name: &str, dir: &Path) -> Result<()> {
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).ok();
    let exact = read(QUOTA);
    let mut line = ["set-property", "--runtime", "--no-ask-password", "--", name].map(str::to_owned).to_vec();
    line.extend(properties(read));
    systemctl(&line)?;
    // It writes what it was told, and this is rounded.
    match exact.filter(|text| read(QUOTA).as_ref() != Some(text)) {
        Some(text) => std::fs::write(dir.join(QUOTA), text).map_err(Error::io("write", dir.join(QUOTA))),
        None => Ok(()),
    }
}

/// Has all controllers that the kernel has, as in a control group that libcontainer makes. systemd does not know all.
fn enable_controllers(group: &Path) {
    let top = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_to_string(top.join("cgroup.controllers")).unwrap_or_default();
    let below = group.strip_prefix("/").unwrap_or(group);
    let mut above: Vec<&Path> = below.ancestors().skip(1).collect();
    above.reverse();
    for dir in above {
        for controller in controllers.split_whitespace() {
            // One that cannot be had is missed when it is to limit something.
            let _ = std::fs::write(top.join(dir).join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

/// Properties of a scope, by what the files of its control group hold.
fn properties(read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for (file, property) in MIRRORED {
        let Some(text) = read(file) else { continue };
        let value = text.trim().trim_start_matches("default ");
        // An empty list of processors is what is not limited. A list in a property is with spaces.
        let value = if value == "max" { "infinity".to_owned() } else { value.replace(',', " ") };
        found.push(format!("{property}={}", value.lines().next().unwrap_or_default()));
    }
    let quota = read(QUOTA).and_then(|text| {
        let (quota, period) = text.trim().split_once(' ')?;
        Some((quota.parse::<u64>().ok(), period.parse::<u64>().ok().filter(|period| *period > 0)?))
    });
    match quota {
        Some((Some(quota), period)) => {
            // In hundredths of a percent, rounded up so that it is never none.
            let share = quota.saturating_mul(10_000).div_ceil(period);
            found.push(format!("CPUQuota={}.{:02}%", share / 100, share % 100));
            found.push(format!("CPUQuotaPeriodSec={period}us"));
        }
        Some((None, _)) => found.push("CPUQuota=".into()),
        None => {}
    }
    found
}

fn systemctl(args: &[impl AsRef<std::ffi::OsStr>]) -> Result<String> {
    let out = Command::new("systemctl").args(args).stdin(Stdio::null()).output();
    let out = out.map_err(Error::io("run", "systemctl"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let detail = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    Err(Error::Program { program: "systemctl".into(), detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_three_parts_of_which_two_may_be_left_out() {
        let of = |path| Unit::parse(path, "web").map(|unit| (unit.slice, unit.name));
        let unit = |slice: &str, name: &str| (slice.to_owned(), name.to_owned());
        let podman = of(Some("machine.slice:libpod:0a1b"));
        assert_eq!(podman.unwrap(), unit("machine.slice", "libpod-0a1b.scope"));
        assert_eq!(of(Some("a-b.slice::c")).unwrap(), unit("a-b.slice", "c.scope"));
        assert_eq!(of(None).unwrap(), unit("system.slice", "spark-oci-web.scope"));
        for wrong in
            ["/a/b", "a:b", "a.slice:b:c:d", "a:b:c", "a.slice:b:c.slice", "a.slice:b:c/d", "a.slice: :c"]
        {
            assert!(of(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_are_told_in_systemds_words() {
        let files = |file: &str| match file {
            "memory.max" => Some("max\n".to_owned()),
            "memory.low" => Some("4096\n".into()),
            "cpu.max" => Some("33333 100000\n".into()),
            "cpuset.cpus" => Some("0-1,3\n".into()),
            "cpuset.mems" => Some("\n".into()),
            "io.weight" => Some("default 50\n8:0 70\n".into()),
            _ => None,
        };
        assert_eq!(
            properties(files),
            [
                "MemoryMax=infinity",
                "MemoryLow=4096",
                "IOWeight=50",
                "AllowedCPUs=0-1 3",
                "AllowedMemoryNodes=",
                "CPUQuota=33.34%",
                "CPUQuotaPeriodSec=100000us"
            ]
        );
        assert_eq!(properties(|file| (file == "cpu.max").then(|| "max 100000".into())), ["CPUQuota="]);
    }
}
