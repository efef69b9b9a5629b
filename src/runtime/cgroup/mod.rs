//! A spark's control group, as files: what it uses, what it may use, and whom the kernel killed for it.
//!
//! Version 2, version 1, or both side by side, where version 1 has the controllers. Nothing here goes through
//! libcontainer, and nothing takes a lock: looking at five hundred sparks is reading some files of each.

use std::io;
use std::path::{Path, PathBuf};

mod limit;
mod oom;
mod unmanaged;
mod usage;

pub use limit::{Refused, can_limit_memory, complete_memory, counts_swap, set};
pub use oom::Notices;
pub use unmanaged::{Joined, leave_callers};
pub use usage::{Io, Usage, processor_time};

/// Where all hierarchies are.
const TOP: &str = "/sys/fs/cgroup";

/// Whether all hierarchies are one, of version 2.
pub fn is_unified() -> bool {
    Path::new(TOP).join("cgroup.controllers").exists()
}

/// A control group, by its path from the top of each hierarchy.
#[derive(Debug, Clone)]
pub struct Cgroup {
    top: PathBuf,
    below: PathBuf,
}

impl Cgroup {
    pub fn new(path: &Path) -> Cgroup {
        Cgroup::below(Path::new(TOP), path)
    }

    fn below(top: &Path, path: &Path) -> Cgroup {
        Cgroup { top: top.to_owned(), below: path.strip_prefix("/").unwrap_or(path).to_owned() }
    }

    /// Its directory of a controller of version 1.
    fn v1(&self, controller: &str) -> PathBuf {
        self.top.join(controller).join(&self.below)
    }

    /// Its directory of version 2.
    fn v2(&self) -> PathBuf {
        self.top.join(&self.below)
    }

    /// Its directory, if it is there, where all is of version 2.
    pub fn unified(&self) -> Option<PathBuf> {
        Some(self.v2()).filter(|dir| is_unified() && dir.is_dir())
    }

    /// Times that the kernel killed a process of it because no memory was left within its limit. None if it is gone.
    pub fn oom_kills(&self) -> Option<u64> {
        let v1 = read(&self.v1("memory").join("memory.oom_control"));
        let text = v1.or_else(|_| read(&self.v2().join("memory.events"))).ok()?;
        field(&text, "oom_kill")
    }
}

fn read(file: &Path) -> io::Result<String> {
    std::fs::read_to_string(file)
}

/// A file that holds one number.
fn number(file: &Path) -> Option<u64> {
    read(file).ok()?.trim().parse().ok()
}

/// A number of a text of `KEY NUMBER` lines.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_killed_for_memory_is_counted_in_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup::below(dir.path(), Path::new("/spark/x"));
        assert_eq!(group.oom_kills(), None);
        std::fs::create_dir_all(group.v2()).unwrap();
        std::fs::write(
            group.v2().join("memory.events"),
            "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n",
        )
        .unwrap();
        assert_eq!(group.oom_kills(), Some(2));
        std::fs::create_dir_all(group.v1("memory")).unwrap();
        std::fs::write(
            group.v1("memory").join("memory.oom_control"),
            "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
        )
        .unwrap();
        assert_eq!(group.oom_kills(), Some(5));
    }
}
