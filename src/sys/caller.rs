//! Who typed the command: the user behind `sudo`, else the user that this runs as.

use std::io;
use std::path::PathBuf;

use super::process;
use super::run::Ids;

/// A user of the host who called us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub ids: Ids,
    /// The user's name; the number as text if the host knows no name.
    pub name: String,
    /// From `/etc/passwd` behind `sudo`, which sets `HOME` to root's or leaves it, as configured.
    pub home: PathBuf,
}

impl Caller {
    /// The caller's user. Root without `sudo` is root, with `HOME` obeyed.
    ///
    /// # Errors
    /// Those of reading `/etc/passwd`.
    pub fn find() -> io::Result<Caller> {
        let behind = process::is_root().then(process::sudo_user).flatten().filter(|uid| *uid != 0);
        let uid = behind.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        let entry = entry(uid)?;
        let (name, gid, home) = entry.unwrap_or_else(|| {
            let gid = match behind {
                Some(_) => process::sudo_group().unwrap_or(uid),
                None => rustix::process::getegid().as_raw(),
            };
            (uid.to_string(), gid, PathBuf::from("/nonexistent"))
        });
        let home = match std::env::var_os("HOME") {
            Some(set) if behind.is_none() && !set.is_empty() => PathBuf::from(set),
            _ => home,
        };
        let groups = groups(&name, gid);
        Ok(Caller { ids: Ids { uid, gid, groups }, name, home })
    }

    /// Whether the caller is somebody else than who this runs as.
    pub fn is_another(&self) -> bool {
        self.ids.uid != rustix::process::geteuid().as_raw()
    }

    /// Does something to files with the caller's rights and umask, and not with root's.
    ///
    /// # Errors
    /// `EPERM` where this process may not become that user; those of the work.
    pub fn act<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        super::inherited::with_callers_umask(|| match self.is_another() {
            true => process::as_ids(self.ids.uid, self.ids.gid, work)?,
            false => work(),
        })
    }
}

/// Name, group and home of a user, from `/etc/passwd`. A static program can load no directory service's library
/// (docs/adr/0006), so its users have no name here.
fn entry(uid: u32) -> io::Result<Option<(String, u32, PathBuf)>> {
    let text = std::fs::read_to_string("/etc/passwd")?;
    Ok(text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let found = fields.nth(1)?.parse() == Ok(uid);
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        found.then(|| (name.to_owned(), gid, PathBuf::from(home)))
    }))
}

/// The groups that list the user, and the user's own.
fn groups(name: &str, gid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let listed = text.lines().filter_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let has = fields.get(3)?.split(',').any(|member| member == name);
        has.then(|| fields[2].parse().ok()).flatten()
    });
    let mut all: Vec<u32> = std::iter::once(gid).chain(listed).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn roots_entry_is_found_and_nobody_elses() {
        assert_eq!(entry(0).unwrap(), Some(("root".into(), 0, "/root".into())));
        assert_eq!(entry(u32::MAX).unwrap(), None);
    }
}
