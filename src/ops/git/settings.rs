//! What the configuration of a repository refers to: files that git reads, and programs that it runs.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::reach::Reach;
use super::{Call, Config, Git, args};
use crate::error::Result;
use crate::sys;

/// Larger than any configuration.
const LARGEST: u64 = 1 << 20;

/// Files and programs that configuration names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    /// Files outside of the repository.
    pub(super) files: BTreeSet<PathBuf>,
    /// Whether a program filters files of the work tree.
    pub(super) has_filters: bool,
    /// Whether one of these is the owner's own, and none is the repository's. What git-lfs needs is known.
    pub(super) runs_owners_programs: bool,
}

impl Settings {
    /// What a repository's own configuration includes.
    pub(super) fn of_repository(git: &Git) -> Result<Settings> {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let path = git.repository.join("config");
        let text = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let text = text.and_then(|file| sys::file::read_bounded(file, LARGEST)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).to_lowercase();
        // Most include nothing, and git is not asked.
        if !text.contains("include") && !text.contains("worktreeconfig") {
            return Ok(Settings::default());
        }
        Settings::of(git, &git.source, Config::None)
    }

    /// What the owner's, the host's and the repository's configuration refers to.
    pub(super) fn of_owner(git: &Git, at: &Path) -> Result<Settings> {
        let mut settings = Settings::of(git, at, Config::Owner)?;
        let home = |name: &str| git.home.join(name);
        settings.files.extend([".gitconfig", ".config/git"].map(home));
        settings.files.extend(["config", "ignore", "attributes"].map(|name| home(".config/git").join(name)));
        Ok(settings)
    }

    fn of(git: &Git, at: &Path, config: Config) -> Result<Settings> {
        let list = args!["--list", "--show-origin", "-z"];
        let call = Call { config, reach: Reach::Configuration, ..Call::of(at, "config", list) };
        Ok(Settings::parse(&git.run(call)?, at, &git.repository, &git.home))
    }

    /// Takes apart what `git config --list --show-origin -z` says at `at`.
    fn parse(list: &str, at: &Path, repository: &Path, home: &Path) -> Settings {
        let mut settings = Settings::default();
        let (mut owners, mut repositorys) = (false, false);
        let mut fields = list.split('\0');
        while let (Some(origin), Some(entry)) = (fields.next(), fields.next()) {
            let Some(origin) = origin.strip_prefix("file:").map(|path| at.join(path)) else { continue };
            let (key, value) = entry.split_once('\n').unwrap_or((entry, ""));
            let is_repositorys = origin.canonicalize().is_ok_and(|path| path.starts_with(repository));
            let named = |base: &Path| match value.strip_prefix("~/") {
                Some(rest) => home.join(rest),
                None => base.join(value),
            };
            if key.starts_with("include") && key.ends_with(".path") {
                settings.files.insert(named(origin.parent().unwrap_or(at)));
            } else if matches!(key, "core.excludesfile" | "core.attributesfile") && !is_repositorys {
                settings.files.insert(named(at));
            } else if is_filter(key) && !value.is_empty() {
                settings.has_filters = true;
                repositorys |= is_repositorys;
                owners |= !is_repositorys && !is_lfs(value);
            }
            if !is_repositorys {
                settings.files.insert(origin);
            }
        }
        settings.runs_owners_programs = owners && !repositorys;
        settings
    }
}

fn is_filter(key: &str) -> bool {
    key.starts_with("filter.") && (key.ends_with(".clean") || key.ends_with(".process"))
}

fn is_lfs(command: &str) -> bool {
    let mut words = command.split_ascii_whitespace();
    match words.next() {
        Some("git-lfs") => true,
        Some("git") => words.next() == Some("lfs"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(entries: &[(&str, &str)]) -> Settings {
        let list: String = entries.iter().map(|(origin, entry)| format!("{origin}\0{entry}\0")).collect();
        Settings::parse(&list, Path::new("/src/shop"), Path::new("/src/shop/.git"), Path::new("/home/ann"))
    }

    #[test]
    fn files_are_those_that_are_read_and_no_others_that_a_repository_names() {
        let settings = parse(&[
            ("file:/home/ann/.gitconfig", "include.path\ndots/git"),
            ("file:/home/ann/.gitconfig", "includeif.gitdir:~/src/.path\n~/work.conf"),
            ("file:/home/ann/dots/git", "core.excludesfile\n~/.ignore"),
            ("command line:", "core.fsync\nall"),
        ]);
        let files: Vec<&str> = settings.files.iter().map(|path| path.to_str().unwrap()).collect();
        let home = ["/home/ann/.gitconfig", "/home/ann/.ignore", "/home/ann/dots/git", "/home/ann/work.conf"];
        assert_eq!(files, home);
        assert!(!settings.has_filters && !settings.runs_owners_programs);
    }

    #[test]
    fn a_filter_of_the_owners_runs_freely_only_where_the_repository_names_none() {
        let repository = tempfile::tempdir().unwrap();
        let top = repository.path().canonicalize().unwrap();
        std::fs::create_dir(top.join(".git")).unwrap();
        std::fs::write(top.join(".git/config"), "").unwrap();
        let parse = |entries: &[(&str, &str)]| {
            let list: String = entries.iter().map(|(origin, entry)| format!("{origin}\0{entry}\0")).collect();
            Settings::parse(&list, &top, &top.join(".git"), Path::new("/home/ann"))
        };
        let lfs = ("file:/etc/gitconfig", "filter.lfs.clean\ngit-lfs clean -- %f");
        let own = ("file:/home/ann/.gitconfig", "filter.strip.clean\nnbstripout");
        let theirs = ("file:.git/config", "filter.x.clean\nevil");
        let is = |settings: Settings| (settings.has_filters, settings.runs_owners_programs);
        assert_eq!(is(parse(&[lfs])), (true, false));
        assert_eq!(is(parse(&[lfs, own])), (true, true));
        assert_eq!(is(parse(&[own, theirs])), (true, false));
        assert_eq!(is(parse(&[])), (false, false));
    }
}
