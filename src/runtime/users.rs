//! Users inside a spark: `/etc/passwd` and `/etc/group` of its root, which nobody trusts.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys;

/// Larger than any real one.
const MAX: u64 = 4 << 20;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub home: PathBuf,
    pub shell: PathBuf,
    pub name: Option<String>,
}

/// Finds a user: `name`, `uid`, `name:group`, `uid:gid`. As docker and podman have it, a part that is empty beside the
/// colon is as if it were not there: `name:` has the groups of the user, and `:group` is root with that group.
pub fn find(root: &Path, wanted: &str) -> Result<User> {
    let dir = sys::file::open_dir(root).map_err(Error::io("open", root))?;
    let dir = File::from(dir);
    let passwd = read(&dir, "etc/passwd")?;
    let group = read(&dir, "etc/group")?;
    lookup(&passwd, &group, wanted)
}

fn read(root: &File, path: &str) -> Result<String> {
    match sys::beneath::read(root, Path::new(path), MAX) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
            Ok(String::new())
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(String::new()),
        Err(e) => Err(Error::io("read", Path::new("/").join(path))(e)),
    }
}

fn lookup(passwd: &str, group: &str, wanted: &str) -> Result<User> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => {
            (if user.is_empty() { "0" } else { user }, Some(group).filter(|g| !g.is_empty()))
        }
        None => (wanted, None),
    };
    let line = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| {
        f.len() >= 7 && (f[0] == user || (user.parse::<u32>().is_ok() && f[2].parse::<u32>() == user.parse()))
    });
    let mut found = match &line {
        Some(fields) => User {
            uid: id(fields[2])?,
            gid: id(fields[3])?,
            groups: Vec::new(),
            home: absolute(fields[5], "/"),
            shell: absolute(fields[6], "/bin/sh"),
            name: Some(fields[0].to_owned()),
        },
        None => {
            let Ok(uid) = user.parse::<u32>() else {
                return Err(Error::NotFound {
                    kind: "user",
                    name: user.escape_default().to_string(),
                    in_project: None,
                    near: Vec::new(),
                });
            };
            let root = uid == 0;
            User {
                uid: checked(uid)?,
                gid: 0,
                groups: Vec::new(),
                home: if root { "/root" } else { "/" }.into(),
                shell: "/bin/sh".into(),
                name: root.then(|| "root".to_owned()),
            }
        }
    };
    let groups = || group.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 4);
    match wanted_group {
        Some(wanted) => {
            found.gid = match groups().find(|f| f[0] == wanted) {
                Some(fields) => id(fields[2])?,
                None => {
                    wanted.parse::<u32>().ok().map(checked).transpose()?.ok_or_else(|| Error::NotFound {
                        kind: "group",
                        name: wanted.escape_default().to_string(),
                        in_project: None,
                        near: Vec::new(),
                    })?
                }
            };
        }
        None => {
            if let Some(name) = &found.name {
                let member = |f: &Vec<&str>| f[3].split(',').any(|m| m == name);
                found.groups = groups().filter(member).filter_map(|f| id(f[2]).ok()).take(1024).collect();
            }
        }
    }
    Ok(found)
}

/// Where the user of a number is at home in the root filesystem of this process, if that says so.
pub fn home_here(uid: u32) -> Option<String> {
    let root = File::from(sys::file::open_dir(Path::new("/")).ok()?);
    home_of(&read(&root, "etc/passwd").ok()?, uid)
}

/// Where the user of a number is at home, if that user is known.
fn home_of(passwd: &str, uid: u32) -> Option<String> {
    let mut lines = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>());
    let line = lines.find(|f| f.len() >= 7 && f[2].parse() == Ok(uid))?;
    Some(line[5].to_owned()).filter(|home| home.starts_with('/'))
}

fn id(text: &str) -> Result<u32> {
    checked(text.parse().unwrap_or(u32::MAX))
}

fn checked(id: u32) -> Result<u32> {
    if id < crate::domain::ids::IDS {
        Ok(id)
    } else {
        Err(Error::usage(format!("a spark has the ids 0 to 65535, and {id} is not one of them")))
    }
}

fn absolute(path: &str, otherwise: &str) -> PathBuf {
    if path.starts_with('/') { path.into() } else { otherwise.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\nbad:x\nbig:x:70000:1::/:/\n";
    const GROUP: &str = "root:x:0:\nann:x:1000:\nsudo:x:27:ann,bob\nwheel:x:28:bob\n";

    #[test]
    fn users_are_found_by_name_and_number_with_their_groups() {
        let ann = lookup(PASSWD, GROUP, "ann").unwrap();
        assert_eq!((ann.uid, ann.gid, ann.groups.as_slice()), (1000, 1000, &[27][..]));
        assert_eq!(lookup(PASSWD, GROUP, "1000").unwrap(), ann);
        assert_eq!(lookup(PASSWD, GROUP, "ann:wheel").unwrap().gid, 28);
        assert_eq!(lookup(PASSWD, GROUP, "1234:5").unwrap().gid, 5);
        assert_eq!(lookup("", "", "0").unwrap().home, Path::new("/root"));
        // A part beside the colon may be empty.
        assert_eq!(lookup(PASSWD, GROUP, "1000:").unwrap(), ann);
        assert_eq!(lookup(PASSWD, GROUP, "ann:").unwrap(), ann);
        assert_eq!(lookup(PASSWD, GROUP, ":").unwrap(), lookup(PASSWD, GROUP, "root").unwrap());
        let of_group = lookup(PASSWD, GROUP, ":sudo").unwrap();
        assert_eq!((of_group.uid, of_group.gid, of_group.home.as_path()), (0, 27, Path::new("/root")));
        assert_eq!(lookup("", "", ":5").unwrap().gid, 5);
    }

    #[test]
    fn unknown_users_and_ids_outside_the_range_are_refused() {
        assert!(lookup(PASSWD, GROUP, "eve").is_err());
        assert!(lookup(PASSWD, GROUP, "big").is_err());
        assert!(lookup(PASSWD, GROUP, "70000").is_err());
        assert!(lookup(PASSWD, GROUP, "ann:nope").is_err());
        assert!(lookup(PASSWD, GROUP, "").is_err());
    }
}
