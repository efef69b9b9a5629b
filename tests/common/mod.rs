//! A machine of a test's own: a pool on a loop image and a run directory, gone again whatever happens.

// Every test program includes this file, and none uses all of it.
#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

pub mod random;
pub mod vault;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sparks::domain::place::Place;
use sparks::ops::{Context, Sparks};
use sparks::pool::Pool;
use sparks::pool::layout::InitOptions;

const POOL: u64 = 1 << 30;
/// How long anything may take that has to happen. No test shows anything by this: only one that hangs meets it, and
/// a machine may be slow or stand still for a while.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// One installation of sparks, apart from any other.
#[derive(Debug)]
pub struct Machine {
    /// Holds `root`, `home` and `work`.
    dir: tempfile::TempDir,
    run: tempfile::TempDir,
}

impl Machine {
    /// Makes one with an empty pool of 1 GiB.
    pub fn new() -> Machine {
        Machine::with_pool(POOL)
    }

    /// Makes one with an empty pool of so many bytes, all of them allocated on the host's disk.
    pub fn with_pool(size: u64) -> Machine {
        let machine = Machine::without_pool();
        let options = InitOptions { size: Some(size), ..InitOptions::default() };
        Pool::init(&machine.place(), &options)
            .unwrap_or_else(|e| panic!("cannot make a pool for the test: {e}: {:?}", e.hint()));
        machine
    }

    /// Makes one that has never been used.
    pub fn without_pool() -> Machine {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make mounts and loop devices: run them as root"
        );
        for program in ["mkfs.btrfs", "losetup", "mount"] {
            let there =
                Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            assert!(
                there.is_ok(),
                "these tests need {program}: `apt-get install btrfs-progs util-linux mount`"
            );
        }
        let dir = tempfile::Builder::new().prefix("sparks-test-").tempdir().unwrap();
        let run = tempfile::Builder::new().prefix("sparks-test-").tempdir_in("/run").unwrap();
        std::fs::set_permissions(run.path(), PermissionsExt::from_mode(0o711)).unwrap();
        for name in ["root", "home", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::set_permissions(dir.path().join("root"), PermissionsExt::from_mode(0o700)).unwrap();
        Machine { dir, run }
    }

    /// Where everything of it is.
    pub fn place(&self) -> Place {
        Place { root: self.dir.path().join("root"), run: self.run.path().to_owned() }
    }

    /// The pool's top.
    pub fn pool(&self) -> PathBuf {
        self.place().pool()
    }

    /// A directory for the test's own files, and the working directory of commands. No repository is around it.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// The home directory of who runs commands.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Writes the user's configuration file.
    pub fn configure(&self, text: &str) {
        let dir = self.home().join(".config/spark");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.toml"), text).unwrap();
    }

    /// The operations, for tests of the library. The project is `default`.
    pub fn sparks(&self) -> Sparks {
        self.sparks_in(&self.work(), None)
    }

    /// The operations as seen from a directory, and with a project named.
    pub fn sparks_in(&self, cwd: &Path, project: Option<&str>) -> Sparks {
        let context = Context {
            place: self.place(),
            project: project.map(|p| p.parse().unwrap()),
            cwd: Some(cwd.to_owned()),
            lost: Default::default(),
            base: None,
            templates: self.dir.path().join("templates"),
            secrets: Default::default(),
            program: Some(env!("CARGO_BIN_EXE_spark").into()),
            warn: |_| {},
        };
        Sparks::open(context).unwrap().expect("the machine has a pool")
    }

    /// Runs the `spark` of this build, and waits for it.
    pub fn spark(&self, args: &[&str]) -> Output {
        Output::of(&args.join(" "), &mut self.command(args))
    }

    /// The `spark` of this build, not started yet: nothing of the caller's environment that it would read.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spark"));
        for (key, _) in std::env::vars_os() {
            if key.as_bytes().starts_with(b"SPARK_") || key.as_bytes().starts_with(b"XDG_") {
                command.env_remove(key);
            }
        }
        command
            .args(args)
            .env("SPARK_ROOT", self.place().root)
            .env("SPARK_RUN", self.place().run)
            .env("HOME", self.dir.path().join("home"))
            .env("NO_COLOR", "1")
            .env_remove("SUDO_UID")
            .current_dir(self.work())
            .stdin(Stdio::null());
        default_signals(&mut command);
        command
    }

    /// Ends and unmounts everything as a reboot would: nothing of the run directory is left, the files are.
    pub fn reboot(&self) {
        let place = self.place();
        end_sparks(&place.run);
        sparks::net::Nets::of(&place.run).remove_all().unwrap();
        for entry in std::fs::read_dir(&place.run).unwrap().flatten() {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
        unmount_below(&place.root);
        let image = place.loop_image();
        assert!(!image.exists() || wait_for(|| loop_devices(&image).is_empty()));
    }

    /// Makes the base `minimal`, which needs no network.
    pub fn with_base(self) -> Machine {
        self.spark(&["base", "bootstrap", "minimal"]).ok();
        self
    }

    /// What is half-made or left over by a crash.
    pub fn staged(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.pool().join("staging")).unwrap();
        entries.map(|e| e.unwrap().path()).collect()
    }
}

/// A runner in the background, or under `nohup`, ignores signals, its children inherit that, and `spark` respects it.
pub fn default_signals(command: &mut Command) {
    // SAFETY: signal(2) is safe between fork and exec.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
}

/// A process that is killed, if it still runs, and waited for when this is dropped.
#[derive(Debug)]
pub struct Killed(pub std::process::Child);

impl std::ops::Deref for Killed {
    type Target = std::process::Child;

    fn deref(&self) -> &std::process::Child {
        &self.0
    }
}

impl std::ops::DerefMut for Killed {
    fn deref_mut(&mut self) -> &mut std::process::Child {
        &mut self.0
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// For what would ask at the terminal that the tests may have been called at.
pub fn without_terminal(command: &mut Command) {
    // SAFETY: setsid(2) is safe between fork and exec.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| Ok(rustix::process::setsid().map(|_| ())?));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let place = self.place();
        end_sparks(&place.run);
        if let Err(e) = sparks::net::Nets::of(&place.run).remove_all() {
            eprintln!("networks of {}: {e}", place.run.display());
        }
        // Here, where it may take its time: else whoever lets go of the mount last writes it all.
        if let Ok(pool) = std::fs::File::open(place.pool()) {
            let _ = rustix::fs::syncfs(pool);
        }
        unmount_below(&place.run);
        unmount_below(&place.root);
        let image = place.loop_image();
        let detached = !image.exists() || wait_for(|| loop_devices(&image).is_empty());
        // A panic in a panic would end the whole program, and hide the first.
        if !detached && !std::thread::panicking() {
            let devices = loop_devices(&image);
            let holders = holders(&devices);
            panic!("{devices} of {} is still attached. Who has it mounted: {holders:?}", image.display());
        }
    }
}

/// Whether `condition` comes true in time.
pub fn wait_for(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Whether a process is there and has not ended, waited for or not.
pub fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

fn loop_devices(image: &Path) -> String {
    let output = Command::new("losetup").args(["-n", "-O", "NAME", "-j"]).arg(image).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

/// The command lines of all processes that have a device mounted, wherever.
fn holders(device: &str) -> Vec<String> {
    let has = |pid: &PathBuf| {
        let table = std::fs::read_to_string(pid.join("mountinfo")).unwrap_or_default();
        table.lines().any(|line| line.split(' ').any(|word| word == device))
    };
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|e| e.path()).filter(has);
    let line = |pid: PathBuf| {
        let line = std::fs::read(pid.join("cmdline")).unwrap_or_default();
        format!("{}: {}", pid.display(), String::from_utf8_lossy(&line).replace('\0', " "))
    };
    pids.map(line).collect()
}

/// The ids of all containers that a run directory knows of, started or half-made.
pub fn containers(run: &Path) -> Vec<String> {
    let entries = ["bundles", "oci"].iter().filter_map(|dir| std::fs::read_dir(run.join(dir)).ok()).flatten();
    let mut ids: Vec<String> = entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.len() == 26)
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

/// A container's cgroups, in every hierarchy of this host.
pub fn cgroups(id: &str) -> Vec<PathBuf> {
    let fs = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(fs).into_iter().flatten().flatten().map(|e| e.path());
    let dirs = hierarchies.chain([fs.to_owned()]).map(|h| h.join("spark").join(id));
    let mut dirs: Vec<_> = dirs.filter(|d| d.is_dir()).collect();
    // Version 2 beside version 1 has no controllers, and files of the same names.
    dirs.sort_by_key(|dir| dir.starts_with(fs.join("unified")));
    dirs
}

/// The processes of a container, started or half-made.
pub fn processes(id: &str) -> Vec<i32> {
    let mut pids: Vec<i32> = cgroups(id)
        .iter()
        .filter_map(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>())
        .filter(|pid| *pid > 0)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// The claims on ranges of ids by a run directory.
pub fn claims(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/run/spark-ids").into_iter().flatten().flatten().map(|e| e.path());
    let below = format!("{}/", run.display());
    entries.filter(|file| std::fs::read(file).is_ok_and(|t| t.starts_with(below.as_bytes()))).collect()
}

/// Ends whatever a run directory started, as far as that is known to it, and nothing else.
fn end_sparks(run: &Path) {
    let ids = containers(run);
    for id in &ids {
        // What is frozen does not end.
        thaw(id);
        let text = std::fs::read(run.join("bundles").join(id).join("init.json")).unwrap_or_default();
        if let Ok(live) = serde_json::from_slice::<sparks::runtime::live::Live>(&text)
            && let Ok(pidfd) = live.pidfd()
        {
            kill(&pidfd);
        }
        wait_for(|| {
            thaw(id);
            for pid in processes(id) {
                if let Ok(pidfd) = sparks::sys::process::pidfd_open(pid) {
                    kill(&pidfd);
                }
            }
            cgroups(id).iter().all(|dir| std::fs::remove_dir(dir).is_ok())
        });
    }
    for claim in claims(run) {
        let _ = std::fs::remove_file(claim);
    }
}

fn thaw(id: &str) {
    for dir in cgroups(id) {
        let _ = std::fs::write(dir.join("freezer.state"), "THAWED");
        if dir.join("cgroup.freeze").exists() {
            let _ = std::fs::write(dir.join("cgroup.freeze"), "0");
        }
    }
}

fn kill(pidfd: &std::os::fd::OwnedFd) {
    let _ = sparks::sys::process::signal(pidfd, rustix::process::Signal::KILL);
    let _ = sparks::sys::deadline::ended(pidfd, PATIENCE);
}

fn unmount_below(dir: &Path) {
    let mounts = || -> Vec<PathBuf> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|p| p.starts_with(dir)).collect()
    };
    wait_for(|| {
        // The newest first: a mount may be upon another. Detached, since a spark that another test starts at this moment
        // may have it in its namespace still; that nothing holds it for good, the loop device tells.
        for point in mounts().iter().rev() {
            let flags = rustix::mount::UnmountFlags::NOFOLLOW | rustix::mount::UnmountFlags::DETACH;
            let _ = rustix::mount::unmount(point, flags);
        }
        mounts().is_empty()
    });
}

/// What a command wrote, and how it ended.
#[derive(Debug)]
pub struct Output {
    command: String,
    pub output: std::process::Output,
}

impl Output {
    /// Of a command that is called `name`.
    pub fn of(name: &str, command: &mut Command) -> Output {
        Output { command: name.to_owned(), output: command.output().unwrap() }
    }

    /// Of one that has ended.
    pub fn from(name: &str, output: std::process::Output) -> Output {
        Output { command: name.to_owned(), output }
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// The exit status, 128 + the signal where there was one.
    pub fn status(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let status = self.output.status;
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
    }

    /// Its standard output; it has to have succeeded.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert!(
            self.output.status.success(),
            "`spark {}` ended with {}:\n{}",
            self.command,
            self.status(),
            self.stderr()
        );
        self.stdout()
    }

    /// The same as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.ok())
            .unwrap_or_else(|e| panic!("`spark {}`: {e}: {}", self.command, self.stdout()))
    }

    /// It has to have failed, and said this.
    #[track_caller]
    pub fn fails_with_text(&self, text: &str) {
        assert!(!self.output.status.success(), "`spark {}` succeeded:\n{}", self.command, self.stdout());
        assert!(self.stderr().contains(text), "`spark {}`:\n{}", self.command, self.stderr());
    }

    /// It has to have failed with this code, which only `--json` shows. Returns the message.
    #[track_caller]
    pub fn fails_with(&self, code: &str) -> String {
        assert!(!self.output.status.success(), "`spark {}` succeeded:\n{}", self.command, self.stdout());
        let error = self.stderr();
        let parsed = error.lines().find_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
        let parsed = parsed.or_else(|| serde_json::from_str(&error).ok());
        let parsed =
            parsed.unwrap_or_else(|| panic!("`spark {}` gave no JSON error:\n{error}", self.command));
        assert_eq!(parsed["error"]["code"], code, "`spark {}`:\n{error}", self.command);
        parsed["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// A tree as text, a line per entry, to compare two: kind, mode, owner, time, links, content and attributes.
pub fn tree(top: &Path) -> String {
    let mut lines = String::new();
    let mut first_names = std::collections::HashMap::new();
    describe(top, Path::new(""), &mut first_names, &mut lines);
    lines
}

type FirstNames = std::collections::HashMap<u64, PathBuf>;

fn describe(top: &Path, path: &Path, first: &mut FirstNames, out: &mut String) {
    let full = top.join(path);
    let meta = full.symlink_metadata().unwrap();
    let _ = write!(out, "{:?} {:o} {}:{} ", path, meta.mode(), meta.uid(), meta.gid());
    let _ = write!(out, "{}.{} ", meta.mtime(), meta.mtime_nsec());
    let kind = meta.file_type();
    if !kind.is_dir() && meta.nlink() > 1 {
        let first = first.entry(meta.ino()).or_insert_with(|| path.to_owned());
        let _ = write!(out, "same as {first:?} ");
    }
    if kind.is_symlink() {
        let _ = write!(out, "-> {:?}", std::fs::read_link(&full).unwrap());
    } else if kind.is_file() {
        let content = std::fs::read(&full).unwrap();
        let hash = content
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
        let _ = write!(out, "{} bytes {hash:x}", content.len());
    } else if kind.is_fifo() {
        out.push_str("fifo");
    }
    if kind.is_dir() || kind.is_file() {
        let fd = std::fs::File::open(&full).unwrap();
        let mut names = sparks::sys::tree::xattr_names(&fd).unwrap();
        names.sort();
        for name in names {
            let value = sparks::sys::tree::xattr(&fd, &name).unwrap().unwrap_or_default();
            let _ = write!(out, " {}={}", name.escape_ascii(), value.escape_ascii());
        }
    }
    out.push('\n');
    if kind.is_dir() {
        let mut names: Vec<_> = std::fs::read_dir(&full).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            describe(top, &path.join::<&OsStr>(name.as_ref()), first, out);
        }
    }
}
