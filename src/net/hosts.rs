//! `/etc/hosts` of running sparks: what is theirs at the top, and below it the sparks of their project.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Member;
use crate::error::{Error, Result};
use crate::sys;

const MARK: &str = "# The sparks of project";
/// Larger than any of ours: 1,023 sparks with two lines each.
const MAX: u64 = 1 << 20;

/// The lines of a project's sparks, in their order. They are the same for all, but for one's own.
pub(super) struct Names(Vec<String>);

impl Names {
    pub(super) fn of(members: &[Member]) -> Names {
        Names(members.iter().map(|member| lines(member, None)).collect())
    }

    /// What the member with this place among them knows of the names of its project, and of names that it may reach.
    pub(super) fn for_member(&self, place: usize, own: &Member) -> String {
        let mut text = format!("{MARK} {}\n", own.project);
        // Its own host name is the first of its names, and leads to what others reach it by.
        let called = own.hostname.as_deref().filter(|host| *host != own.name.as_str());
        for (n, shared) in self.0.iter().enumerate() {
            match called.filter(|_| n == place) {
                Some(host) => text.push_str(&lines(own, Some(host))),
                None => text.push_str(shared),
            }
        }
        for (name, ip) in &own.names {
            let _ = writeln!(text, "{ip}\t{name}");
        }
        text
    }
}

fn lines(member: &Member, called: Option<&str>) -> String {
    let first = called.map(|host| format!("{host} ")).unwrap_or_default();
    let names = format!("{first}{0} {0}.{1}.spark", member.name, member.project);
    format!("{}\t{names}\n{}\t{names}\n", member.v4(), member.v6())
}

/// Replaces the section of a hosts file that is mounted in a spark, so in place, and in one write: what is longer than the
/// new one is blank lines until it is cut off.
pub(super) fn rewrite(path: &Path, section: &str) -> Result<()> {
    let failed = || Error::io("write", path);
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        // It ends at this moment, or has not begun.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed()(e)),
    };
    let old = sys::file::read_bounded(file.try_clone().map_err(failed())?, MAX).map_err(failed())?;
    let old = String::from_utf8_lossy(&old);
    let mut new = old.split(MARK).next().unwrap_or_default().trim_end_matches('\n').to_owned();
    new.push('\n');
    new.push_str(section);
    let length = new.len();
    while new.len() < old.len() {
        new.push('\n');
    }
    file.write_all_at(new.as_bytes(), 0).map_err(failed())?;
    file.set_len(length as u64).map_err(failed())
}
