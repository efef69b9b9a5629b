//! The cgroup of a container: where it is, who is in it, and when it has run out of memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::EventfdFlags;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The directories of one cgroup.
#[derive(Debug, Clone, Default)]
pub(super) struct Cgroup {
    /// By controller, where version 1 has it.
    v1: BTreeMap<String, PathBuf>,
    /// Version 2.
    unified: Option<PathBuf>,
}

impl Cgroup {
    /// The cgroup that a process is in.
    ///
    /// # Errors
    /// If the process is gone or /proc cannot be read.
    pub(super) fn of(pid: u32) -> io::Result<Cgroup> {
        let places = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        Ok(Cgroup::parse(&places, &fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(places: &str, mountinfo: &str) -> Cgroup {
        let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(Mount::parse).collect();
        let mut cgroup = Cgroup::default();
        for line in places.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            if controllers.is_empty() {
                cgroup.unified = mounts.iter().find(|m| m.kind == "cgroup2").and_then(|m| m.below(path));
            }
            for controller in controllers.split(',').filter(|c| !c.is_empty()) {
                let mount = mounts
                    .iter()
                    .find(|m| m.kind == "cgroup" && m.options.split(',').any(|o| o == controller));
                if let Some(dir) = mount.and_then(|m| m.below(path)) {
                    cgroup.v1.insert(controller.to_owned(), dir);
                }
            }
        }
        cgroup
    }

    /// The directory of a controller of version 1.
    pub(super) fn v1(&self, controller: &str) -> Option<&Path> {
        self.v1.get(controller).map(PathBuf::as_path)
    }

    /// The directory where version 2 has the controllers: not where it exists beside version 1 without any.
    pub(super) fn v2(&self) -> Option<&Path> {
        self.unified.as_deref().filter(|_| self.v1("memory").is_none() && self.v1("pids").is_none())
    }

    /// All processes in it and in what is below it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn pids(&self) -> io::Result<Vec<u32>> {
        let dir =
            self.v2().or_else(|| self.v1("pids")).or_else(|| self.v1.values().next().map(PathBuf::as_path));
        let dir = dir.or(self.unified.as_deref()).ok_or(io::ErrorKind::NotFound)?;
        let mut pids = Vec::new();
        collect_pids(dir, &mut pids)?;
        Ok(pids)
    }

    /// Has the kernel tell from now on when it kills for want of memory. `None` where memory is not counted, or if it cannot
    /// be asked, which is logged.
    pub(super) fn wants(&self) -> Option<Wants> {
        let wants = match (self.v2(), self.v1("memory")) {
            (Some(dir), _) => Wants::of_events(dir),
            (None, dir) => Wants::of_notifications(dir?),
        };
        wants.inspect_err(cannot_watch).ok()
    }
}

/// The times at which the kernel kills for want of memory.
pub(super) struct Wants {
    /// Is readable at each.
    fd: AsyncFd<OwnedFd>,
    told: Told,
}

/// How they are told from other reasons to be readable.
enum Told {
    /// Version 1: a counter for nothing else, but for the removal of this directory.
    Removal(PathBuf),
    /// Version 2: a file that says how often, and how often it was.
    Count(PathBuf, u64),
}

impl Wants {
    /// Version 1: an eventfd that the kernel counts up.
    fn of_notifications(dir: &Path) -> io::Result<Wants> {
        let control = File::open(dir.join("memory.oom_control"))?;
        let counter = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let wanted = format!("{} {}", counter.as_raw_fd(), control.as_raw_fd());
        fs::write(dir.join("cgroup.event_control"), wanted)?;
        Ok(Wants { fd: super::asynchronous(counter)?, told: Told::Removal(dir.to_owned()) })
    }

    /// Version 2: a file that says how often, and a notification when it changes.
    fn of_events(dir: &Path) -> io::Result<Wants> {
        let events = dir.join("memory.events");
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&changes, &events, inotify::WatchFlags::MODIFY)?;
        let known = oom_kills(&events).unwrap_or(0);
        Ok(Wants { fd: super::asynchronous(changes)?, told: Told::Count(events, known) })
    }

    /// Calls `tell` at each, until the cgroup is gone or cannot be watched any more, which is logged.
    pub(super) async fn each(self, tell: impl Fn()) {
        let _ = self.watch(tell).await.inspect_err(cannot_watch);
    }

    async fn watch(mut self, tell: impl Fn()) -> io::Result<()> {
        loop {
            read_some(&self.fd).await?;
            match &mut self.told {
                Told::Removal(dir) if !dir.exists() => return Ok(()),
                Told::Removal(_) => tell(),
                Told::Count(events, known) => {
                    let Some(now) = oom_kills(events) else { return Ok(()) };
                    if now > *known {
                        tell();
                    }
                    *known = now;
                }
            }
        }
    }
}

fn cannot_watch(e: &io::Error) {
    tracing::warn!("cannot watch for want of memory: {e}");
}

/// A line of mountinfo.
struct Mount<'a> {
    root: &'a str,
    target: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl Mount<'_> {
    fn parse(line: &str) -> Option<Mount<'_>> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let mut after = after.split(' ');
        let (root, target) = (before.next()?, before.next()?);
        let kind = after.next()?;
        Some(Mount { root, target, kind, options: after.nth(1)? })
    }

    /// Where a cgroup stands under this mount, which may show a part of the hierarchy only.
    fn below(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(self.root).ok()?;
        Some(Path::new(self.target).join(below))
    }
}

fn collect_pids(dir: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    let text = match fs::read_to_string(dir.join("cgroup.procs")) {
        // A threaded one has its processes at the top of it.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        read => read?,
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match collect_pids(&entry.path(), pids) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
    }
    Ok(())
}

async fn read_some(fd: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    fd.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)).await?;
    Ok(())
}

fn oom_kills(events: &Path) -> Option<u64> {
    let text = fs::read_to_string(events).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        25 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        26 24 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        27 24 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn beside_version_1_the_unified_hierarchy_has_no_controllers() {
        let cgroup = Cgroup::parse("3:memory:/k8s.io/a\n2:cpu,cpuacct:/k8s.io/a\n0::/k8s.io/a\n", HYBRID);
        assert_eq!(cgroup.v1("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/k8s.io/a")));
        assert_eq!(cgroup.v1("memory"), Some(Path::new("/sys/fs/cgroup/memory/k8s.io/a")));
        assert_eq!(cgroup.v2(), None);
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_taken_into_account() {
        let mounts = "30 1 0:25 /outer /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw\n";
        let cgroup = Cgroup::parse("0::/outer/pod/a\n", mounts);
        assert_eq!(cgroup.v2(), Some(Path::new("/sys/fs/cgroup/pod/a")));
        assert_eq!(Cgroup::parse("0::/elsewhere\n", mounts).v2(), None);
    }

    /// The kernel's file stands for itself: what is written to it is what counts.
    #[tokio::test]
    async fn want_of_memory_is_seen_in_version_2_when_the_count_rises() {
        let dir = tempfile::tempdir().unwrap();
        let events = dir.path().join("memory.events");
        let write = |text: &str| {
            fs::OpenOptions::new()
                .write(true)
                .open(&events)
                .and_then(|mut f| io::Write::write_all(&mut f, text.as_bytes()))
        };
        fs::write(&events, "low 0\noom_kill 0\n").unwrap();
        let (tell, mut hear) = tokio::sync::mpsc::unbounded_channel();
        let wants = Wants::of_events(dir.path()).unwrap();
        // From here on, whenever somebody begins to listen.
        write("low 1\noom_kill 0\n").unwrap();
        write("low 1\noom_kill 1\n").unwrap();
        let watching = tokio::spawn(wants.each(move || _ = tell.send(())));
        hear.recv().await.unwrap();
        assert!(hear.try_recv().is_err());
        watching.abort();
    }
}
