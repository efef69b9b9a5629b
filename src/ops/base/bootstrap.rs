//! `spark base bootstrap`: a base made on this host, of Debian packages or of busybox.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::super::{Observer, Sparks};
use super::{BaseInfo, MINIMAL, make, sources};
use crate::domain::name::Name;
use crate::error::{Error, Result};
use crate::image::{Limits, Summary, debian, minimal, unpack};
use crate::sys;

const PROGRAM: &str = "mmdebstrap";
/// What a developer misses at once in the smallest Debian: certificates for https, `ps`, and a pager.
const PACKAGES: &str = "ca-certificates,less,login,netbase,passwd,procps";
/// Kept, so that `apt-get install` works at once; compressed, they take 20 MB instead of 50.
const APT: [&str; 2] = ["Acquire::GzipIndexes \"true\"", "Acquire::Languages \"none\""];
/// Lines of the program's output that are kept for an error.
const TAIL: usize = 12;

impl Sparks {
    /// Makes a base: `minimal`, of the host's busybox, or a Debian suite by its name, from the host's own mirror
    /// where that has the suite. Its name is the suite's unless another is given. If another command makes the same base at
    /// this moment, that one is waited for and returned.
    ///
    /// # Errors
    /// `exists`; `host` where the program for it is not installed; `internal` where that fails, with the end of
    /// what it wrote.
    pub fn base_bootstrap(
        &self,
        suite: &str,
        name: Option<Name>,
        observer: &dyn Observer,
    ) -> Result<BaseInfo> {
        // A suite is a name as ours are, which also keeps options and paths out of a command line.
        let suite: Name = suite.parse()?;
        let name = name.unwrap_or_else(|| suite.clone());
        let origin = format!("bootstrap {suite}");
        let making = self.begin_base(&name, observer)?;
        // Another command may have made it since this one began.
        if let Ok(base) = self.base_info(&name)
            && base.broken.is_none()
            && base.origin.as_ref() == Some(&origin)
        {
            return Ok(base);
        }
        self.refuse_taken(&name)?;
        self.make_base(&name, origin, (&making, observer), |root| {
            if suite.as_str() == MINIMAL {
                return minimal::make(root);
            }
            let summary = bootstrap(&suite, root, (self.import_limits()?, self.reader()?), observer)?;
            debian::generalize(root)?;
            // The nodes that it makes in /dev are left out of every one.
            make::report(&Summary { left_out: 0, ..summary }, observer);
            Ok(())
        })
    }
}

/// The host's own Debian suite.
pub(super) fn host_suite() -> Option<String> {
    suite_of(&std::fs::read_to_string("/etc/os-release").ok()?)
}

fn suite_of(os_release: &str) -> Option<String> {
    let field = |key: &str| {
        let value = os_release.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='))?;
        Some(value.trim().trim_matches('"').to_owned())
    };
    (field("ID")? == "debian")
        .then(|| field("VERSION_CODENAME"))
        .flatten()
        .filter(|s| s.parse::<Name>().is_ok())
}

/// Whether a Debian can be bootstrapped here.
pub(super) fn is_possible() -> bool {
    sys::host::directories().iter().any(|dir| dir.join(PROGRAM).is_file())
}

/// Runs mmdebstrap, which mounts in a namespace of its own and cleans up after itself, and unpacks what it writes.
fn bootstrap(
    suite: &Name,
    root: &Path,
    (limits, program): (Limits, &Path),
    observer: &dyn Observer,
) -> Result<Summary> {
    let scratch = Scratch::new()?;
    let mut child = start(suite, &scratch)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
        return Err(Error::Sys {
            action: "read what mmdebstrap writes",
            source: std::io::ErrorKind::BrokenPipe.into(),
        });
    };
    let mut progress = Progress::new(observer);
    let unpacked = std::thread::scope(|scope| {
        let unpacking = scope.spawn(|| {
            let what = "what mmdebstrap wrote";
            let options = unpack::Options { what, limits, program, progress: &|_| {}, stop: None };
            unpack::unpack(stdout, root, &options)
        });
        for line in BufReader::new(stderr).split(b'\n').map_while(std::io::Result::ok) {
            progress.line(&String::from_utf8_lossy(&line));
        }
        unpacking.join()
    });
    let status = child.wait().map_err(Error::sys("wait for mmdebstrap"))?;
    let unpacked = unpacked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    match unpacked {
        // A failure of the program looks like a damaged archive; a full disk looks like a failure of the program.
        Ok(_) | Err(Error::Image { .. }) if !status.success() => {
            Err(Error::Program { program: PROGRAM.into(), detail: progress.failure() })
        }
        other => other,
    }
}

/// A directory for its temporary files. It removes those itself, except for the homes that it gave gpg.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::Builder::new()
            .prefix("spark-bootstrap-")
            .tempdir()
            .map_err(Error::sys("make a temporary directory"))?;
        let path = dir.keep();
        // apt fetches as a user of its own, who has to get through.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))
            .map_err(Error::io("set mode of", &path))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Never recursively, apart from those homes: a root that is left half-made may have mounts in it.
        for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b"mmdebstrap.gpghome.") {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        if let Err(e) = std::fs::remove_dir(&self.0) {
            tracing::warn!(path = %self.0.display(), "mmdebstrap left something behind: {e}");
        }
    }
}

fn start(suite: &Name, scratch: &Scratch) -> Result<Child> {
    let mut command = sys::host::command(PROGRAM);
    command.args(["--variant=minbase", "--format=tar", "--verbose", "--skip=cleanup/apt/lists"]);
    command.arg(format!("--include={PACKAGES}"));
    command.args(APT.iter().map(|o| format!("--aptopt={o}")));
    command.args([suite.as_str(), "-"]);
    command.args(sources::usable(&host_sources(), suite.as_str()));
    command.env("TMPDIR", &scratch.0).env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(|source| Error::Host {
        what: format!("cannot run {PROGRAM}, which makes a base of Debian's packages"),
        hint:
            "install it: `apt-get install mmdebstrap`, or take the small one: `spark base bootstrap minimal`"
                .into(),
        source: Some(source),
    })
}

/// The host's apt sources, each with whether it is in deb822 form.
fn host_sources() -> Vec<(String, bool)> {
    let mut paths = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        more.sort();
        paths.extend(more);
    }
    let form = |path: &PathBuf| match path.extension()?.to_str()? {
        "list" => Some(false),
        "sources" => Some(true),
        _ => None,
    };
    paths.iter().filter_map(|p| Some((std::fs::read_to_string(p).ok()?, form(p)?))).collect()
}

/// Makes steps of what mmdebstrap and apt write.
struct Progress<'a> {
    observer: &'a dyn Observer,
    tail: VecDeque<String>,
    /// Packages of the step to come, and those that are set up.
    packages: Option<u64>,
    done: u64,
}

impl<'a> Progress<'a> {
    fn new(observer: &'a dyn Observer) -> Self {
        Progress { observer, tail: VecDeque::new(), packages: None, done: 0 }
    }

    fn line(&mut self, line: &str) {
        // Carriage returns are apt's way to overwrite its line on a terminal.
        let line: String = line.rsplit('\r').find(|l| !l.is_empty()).unwrap_or_default().trim_end().into();
        if let Some(step) = line.strip_prefix("I: ") {
            let step = step.trim_end_matches('.');
            let (installs, plain) =
                (step.starts_with("installing"), !step.contains('/') && !step.starts_with("success"));
            if plain {
                self.observer.step(step, if installs { self.packages.take() } else { None });
            }
            self.done = 0;
        } else if let Some((_, rest)) = line.split_once(" upgraded, ") {
            self.packages = rest.split(' ').next().and_then(|n| n.parse().ok());
            if let Some(total) = self.packages.filter(|n| *n > 0) {
                self.observer.step("fetching and installing packages", Some(total));
            }
        } else if line.starts_with("Setting up ") {
            self.done += 1;
            self.observer.advance(self.done);
        }
        tracing::debug!(target: "mmdebstrap", "{}", line.escape_debug());
        if !line.is_empty() {
            if self.tail.len() == TAIL {
                self.tail.pop_front();
            }
            self.tail.push_back(line.chars().flat_map(char::escape_debug).collect());
        }
    }

    /// Errors if there are some, else the last lines.
    fn failure(&self) -> String {
        let errors: Vec<&str> =
            self.tail.iter().map(String::as_str).filter(|l| l.starts_with("E: ")).collect();
        let lines = if errors.is_empty() { self.tail.iter().map(String::as_str).collect() } else { errors };
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Silent;

    #[test]
    fn only_a_debian_has_a_suite() {
        assert_eq!(suite_of("ID=debian\nVERSION_CODENAME=trixie\n").as_deref(), Some("trixie"));
        assert_eq!(suite_of("ID=\"debian\"\n"), None);
        assert_eq!(suite_of("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(suite_of("ID=debian\nVERSION_CODENAME=--hook\n"), None);
    }

    #[test]
    fn a_failure_is_told_by_its_errors_without_control_characters() {
        let mut progress = Progress::new(&Silent);
        for line in
            ["I: running apt-get update...", "Err:1 http://m", "E: no \x1b[31mnetwork", "I: cleaning up"]
        {
            progress.line(line);
        }
        assert_eq!(progress.failure(), "E: no \\u{1b}[31mnetwork");
    }
}
