//! Who commits inside: the name and e-mail of the caller, as the caller's own git has them.
//!
//! They stand in a file that `~/.config/git/config` of the spark's user includes first. So whatever else stands there, in
//! `~/.gitconfig`, in a repository or in variables overrides them. (`/etc/gitconfig` would count less still, but where
//! that is depends on how git was built.)

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use super::reach::Reach;
use super::{Call, Config, Git, args};
use crate::error::{Error, Result};
use crate::runtime::users::User;
use crate::sys::caller::Caller;
use crate::sys::{beneath, file, tree};

/// Below the home of a user.
const DIR: &str = ".config/git";
/// The file with the author.
const AUTHOR: &[u8] = b"spark-author";
/// What the configuration begins with.
const INCLUDE: &str = "[include]\n\tpath = spark-author\n";
/// Larger than any such file.
const LARGEST: u64 = 1 << 20;

/// Name and e-mail.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Author {
    name: Option<String>,
    email: Option<String>,
}

impl Author {
    /// The author that commits of `caller` have in a repository of the host. `git` runs as its owner.
    ///
    /// What the repository itself says counts if it is the caller's own: git refuses to read another user's.
    pub(crate) fn of(caller: &Caller, git: &Git, repository: &Path) -> Result<Author> {
        let own = git.runs_as(&caller.ids);
        let theirs = git.as_caller(caller);
        // Another caller's environment is not known behind `sudo`.
        let xdg = std::env::var_os("XDG_CONFIG_HOME").filter(|_| !caller.is_another());
        let env: Vec<(&str, &OsStr)> = xdg.iter().map(|dir| ("XDG_CONFIG_HOME", dir.as_os_str())).collect();
        let ask = |key: &str| -> Result<Option<String>> {
            let all: &[&[&str]] =
                if own { &[&[]] } else { &[&["--global", "--includes"], &["--system", "--includes"]] };
            let at = if own { repository } else { Path::new("/") };
            for which in all {
                let mut list: Vec<&OsStr> = which.iter().map(AsRef::as_ref).collect();
                list.extend_from_slice(args!["--get", key]);
                let (config, reach) = (Config::Owner, Reach::Configuration);
                let call = Call { config, reach, env: &env, ..Call::of(at, "config", &list) };
                if let Ok(value) = theirs.ask(call)? {
                    return Ok(plain(&value));
                }
            }
            Ok(None)
        };
        Ok(Author { name: ask("user.name")?, email: ask("user.email")? })
    }

    /// Writes the author into the root of a spark that is being made, for one of its users. A user without a home gets none.
    pub(crate) fn write(&self, root: &Path, user: &User) -> Result<()> {
        let lines = [("name", &self.name), ("email", &self.email)];
        let lines: String = lines
            .iter()
            .filter_map(|(key, value)| Some(format!("\t{key} = {}\n", quoted(value.as_ref()?))))
            .collect();
        if lines.is_empty() {
            return Ok(());
        }
        let (owner, at) = ((user.uid, user.gid), user.home.join(DIR));
        let write = || {
            let top = file::open_dir(root)?;
            if let Err(e) = beneath::open_dir(&top, &user.home) {
                return if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
            }
            for dir in [at.parent().unwrap_or(&at), &at] {
                beneath::make_dir(&top, dir, owner)?;
            }
            let dir = beneath::open_dir(&top, &at)?;
            replace(&dir, AUTHOR, &format!("[user]\n{lines}"), owner)?;
            let text = config(&dir)?;
            if text.contains(INCLUDE) {
                return Ok(());
            }
            replace(&dir, b"config", &format!("{INCLUDE}{text}"), owner)
        };
        write().map_err(Error::io("write in the new spark", &at))
    }
}

/// Removes from a root what [`Author::write`] has written for a user: a base is for others too.
pub(crate) fn remove(root: &Path, user: &User) -> io::Result<()> {
    let top = file::open_dir(root)?;
    let Ok(dir) = beneath::open_dir(&top, &user.home.join(DIR)) else { return Ok(()) };
    if tree::find_name(&dir, |name| name == AUTHOR)? {
        tree::remove(&dir, AUTHOR)?;
        if config(&dir)? == INCLUDE {
            tree::remove(&dir, b"config")?;
        }
    }
    Ok(())
}

/// The user's configuration in a directory; nothing where there is none.
fn config(dir: impl AsFd) -> io::Result<String> {
    match tree::open_file(dir, b"config") {
        Ok(file) => String::from_utf8(file::read_bounded(file, LARGEST)?)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(e),
    }
}

fn replace(dir: impl AsFd, name: &[u8], text: &str, owner: (u32, u32)) -> io::Result<()> {
    tree::remove(&dir, name)?;
    let mut new = tree::create_file(&dir, name)?;
    new.write_all(text.as_bytes())?;
    tree::set_owner_and_mode(&new, owner, 0o644)
}

/// A value on one line, if there is anything in it.
fn plain(value: &str) -> Option<String> {
    let value: String = value.trim().chars().filter(|c| !c.is_control()).take(1000).collect();
    (!value.is_empty()).then_some(value)
}

/// As git-config(1) quotes values.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', r"\\").replace('"', "\\\""))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_author_is_included_once_before_all_else_and_goes_without_a_trace() {
        let root = tempfile::tempdir().unwrap();
        let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let user = User {
            uid: me.0,
            gid: me.1,
            groups: Vec::new(),
            home: "/home/ann".into(),
            shell: "/bin/sh".into(),
            name: None,
        };
        let author = |name: &str| Author { name: plain(name), email: None };
        let dir = root.path().join("home/ann/.config/git");
        author("Ann").write(root.path(), &user).unwrap();
        assert!(!root.path().join("home").exists(), "there is no such home");
        std::fs::create_dir_all(root.path().join("home/ann")).unwrap();
        author("Ann \"A\" \\ O\n").write(root.path(), &user).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(read("spark-author"), "[user]\n\tname = \"Ann \\\"A\\\" \\\\ O\"\n");
        assert_eq!(read("config"), INCLUDE);
        remove(root.path(), &user).unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);

        let own = "[user]\n\tname = Base\n";
        std::fs::write(dir.join("config"), own).unwrap();
        author("Ann").write(root.path(), &user).unwrap();
        author("Ben").write(root.path(), &user).unwrap();
        assert_eq!(read("config"), format!("{INCLUDE}{own}"));
        assert_eq!(read("spark-author"), "[user]\n\tname = \"Ben\"\n");
        remove(root.path(), &user).unwrap();
        assert!(!dir.join("spark-author").exists() && dir.join("config").exists());
        Author::default().write(root.path(), &user).unwrap();
        assert!(!dir.join("spark-author").exists());
    }
}
