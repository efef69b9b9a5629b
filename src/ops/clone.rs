//! Source in: a clone of a repository of the host, put into a spark while it is made.
//!
//! Git makes the clone in a staged directory, as the repository's owner; from there it is copied beneath the root of
//! the spark, where no link of the base leads out. Nothing in it refers to the host's repository.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::cp::{At, Copier, Owner};
use super::git::{Call, Config, Git, args};
use super::project::detect::{self, Owners, Repository};
use super::{Observer, Sparks};
use crate::domain::options::{Changes, CloneOf};
use crate::domain::spark::SparkRecord;
use crate::error::{Error, Result};
use crate::runtime::users;
use crate::sys;

/// Where clones are inside.
const PLACE: &str = "/work";
/// The clone in the staged directory.
const CLONE: &str = "clone";

/// Finds the repository that is to be cloned, and makes its place inside the working directory.
pub(super) fn resolve(options: &mut Changes) -> Result<()> {
    let Some(clone) = &mut options.clone else { return Ok(()) };
    let none = || Error::Usage {
        message: format!("there is no git repository at {}", clone.source.display()),
        hint: Some("name one with `--clone REPO`; the spark's name goes before it".into()),
    };
    let source = std::fs::canonicalize(&clone.source).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => none(),
        _ => Error::io("find", &clone.source)(e),
    })?;
    // Git runs as the owner, so that nobody's repository can do what its owner could not.
    let found = detect::around(&source, &Owners::anybody())?.ok_or_else(none)?;
    clone.path = Path::new(PLACE).join(folder(&found));
    (clone.source, clone.repository) = (source, found.git_dir()?.to_owned());
    options.workdir.get_or_insert_with(|| clone.path.clone());
    Ok(())
}

/// A repository's name as a folder's, of characters that no shell minds.
fn folder(repository: &Repository) -> String {
    let name = repository.folder_name().unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = name.chars().map(plain).take(100).collect();
    match name.trim_start_matches(['.', '-']) {
        "" => "repository".into(),
        name => name.into(),
    }
}

impl Sparks {
    /// Puts the clone that a record asks for into the staged root of a spark.
    pub(super) fn put_clone(&self, record: &SparkRecord, root: &Path, observer: &dyn Observer) -> Result<()> {
        let Some(clone) = &record.options.clone else { return Ok(()) };
        let user = users::find(root, record.options.user.as_deref().unwrap_or("0"))?;
        let stage = self.pool.stage()?;
        let git = Git::of(&clone.repository, &stage, &self.pool.place)?;
        make(&git, clone)?;

        let root_fd = sys::file::open_dir(root).map_err(Error::io("open", root))?;
        let target = make_place(root_fd.as_fd(), clone).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => Error::NotSupported {
                what: format!("cannot clone to {}: the base has something there", clone.path.display()),
                hint: Some("choose another base with `--base`".into()),
            },
            _ => Error::io("make in the new spark", &clone.path)(e),
        })?;
        let made = git.take_out(CLONE)?;
        let owner = Owner::Is(user.uid, user.gid);
        let mut copier = Copier::new(owner, observer, clone.source.clone().into(), clone.path.clone().into());
        let name = clone.path.file_name().unwrap_or_default().as_encoded_bytes();
        copier.copy(At { dir: made.as_fd(), name: b"." }, At { dir: target.as_fd(), name })?;
        drop(stage);
        // As with a base: an fsync of each file would take longer.
        sys::tree::sync_filesystem(&target).map_err(Error::io("sync", root))
    }
}

/// Makes the directory that clones are in, wherever links of the base lead inside, and opens it.
///
/// # Errors
/// `EEXIST` if there is something in the clone's own place.
fn make_place(root: impl AsFd, clone: &CloneOf) -> std::io::Result<File> {
    let name = clone.path.file_name().unwrap_or_default().as_encoded_bytes();
    sys::beneath::make_mount_point(&root, Path::new(PLACE), true)?;
    let place = sys::beneath::open_dir(&root, Path::new(PLACE))?;
    match sys::tree::stat(&place, name) {
        Ok(_) => Err(std::io::ErrorKind::AlreadyExists.into()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(place),
        Err(e) => Err(e),
    }
}

/// Makes the clone in the staged directory: all branches and tags, the current branch checked out.
fn make(git: &Git, clone: &CloneOf) -> Result<()> {
    let from = git.run(Call::of(&clone.source, "rev-parse", args!["--absolute-git-dir"]))?;
    let from = Path::new(from.strip_suffix('\n').unwrap_or(&from));
    let tree = git.its(CLONE);
    let git_dir = tree.join(".git");
    // Bare, so that branches become branches; and through the protocol, so that only what they reach comes along.
    let whole = args!["--quiet", "--bare", "--no-local", "--template=", "--", from, git_dir];
    git.run(Call::of(Path::new("/"), "clone", whole))?;
    git.run(Call::of(&tree, "config", args!["core.bare", "false"]))?;
    git.run(Call::of(&tree, "config", args!["--remove-section", "remote.origin"]))?;
    // None is no error: the repository may have been begun here.
    let origin = git.ask(Call::of(&clone.source, "config", args!["--get", "remote.origin.url"]))?;
    if let Some(url) = origin.ok().as_deref().and_then(|url| elsewhere(url.trim())) {
        git.run(Call::of(&tree, "remote", args!["add", "--", "origin", url]))?;
    }
    check_out(git, clone)
}

/// Checks out the current branch, or the work tree of the host as it is. Filters are not run: none is configured.
fn check_out(git: &Git, clone: &CloneOf) -> Result<()> {
    let tree = git.its(CLONE);
    let head = git.ask(Call::of(&tree, "rev-parse", args!["--quiet", "--verify", "HEAD^{tree}"]))?.ok();
    let wanted = if clone.dirty { Some(uncommitted(git, clone, head.as_deref())?) } else { head };
    // A branch without a commit has nothing to check out.
    let Some(wanted) = wanted else { return Ok(()) };
    git.run(Call::of(&tree, "read-tree", args!["--reset", "-u", wanted.trim()]))?;
    if clone.dirty {
        git.run(Call::of(&tree, "reset", args!["--quiet"]))?;
    }
    Ok(())
}

/// The tree of the host's work tree as it is, made of objects in the clone: those of the host's repository and its index
/// are not touched. What is ignored, and how files are cleaned, its owner's configuration says.
fn uncommitted(git: &Git, clone: &CloneOf, head: Option<&str>) -> Result<String> {
    let top = git.ask(Call::of(&clone.source, "rev-parse", args!["--show-toplevel"]))?;
    let top = top.map_err(|_| Error::Usage {
        message: format!("`--dirty` needs a work tree, and {} has none", clone.source.display()),
        hint: Some("leave it out to clone what is committed".into()),
    })?;
    let (index, objects) = (git.its("index"), git.its(CLONE).join(".git/objects"));
    let at = PathBuf::from(top.strip_suffix('\n').unwrap_or(&top));
    let run = |verb: &str, args: &[&OsStr]| {
        let env = &[("GIT_INDEX_FILE", index.as_os_str()), ("GIT_OBJECT_DIRECTORY", objects.as_os_str())];
        git.run(Call { env, config: Config::Owner, ..Call::of(&at, verb, args) })
    };
    // An index of its own, and a new one, so that every file is read: what is staged may be in no branch. `--reset` heeds
    // a sparse checkout, of which the rest is not deleted.
    match head {
        Some(_) => run("read-tree", args!["--reset", "HEAD"])?,
        None => run("read-tree", args!["--empty"])?,
    };
    run("add", args!["--all"])?;
    run("write-tree", &[])
}

/// A remote's address without the secrets in it, if it means anything inside: a path of the host does not.
fn elsewhere(url: &str) -> Option<String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        // HOST:PATH as ssh has it, where no slash is before the colon; ext:: and its like run programs.
        let (host, path) = url.split_once(':')?;
        return (!host.contains('/') && !path.starts_with(':')).then(|| url.to_owned());
    };
    if !matches!(scheme, "https" | "http" | "ssh" | "git") {
        return None;
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    // Over ssh a user is part of the address; elsewhere it may well be a token.
    let user = login.split(':').next().filter(|user| scheme == "ssh" && !user.is_empty());
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    Some(format!("{scheme}://{user}{host}/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_loses_its_secrets_and_a_path_of_the_host_is_none() {
        for (url, inside) in [
            ("https://ann:token@example.org/a/b.git", Some("https://example.org/a/b.git")),
            ("https://token@example.org/a", Some("https://example.org/a")),
            ("https://a:p@ss@example.org/a@b", Some("https://example.org/a@b")),
            ("ssh://git:secret@example.org:22/a", Some("ssh://git@example.org:22/a")),
            ("git@example.org:a/b.git", Some("git@example.org:a/b.git")),
            ("/srv/a.git", None),
            ("../a:b.git", None),
            ("file:///srv/a.git", None),
            ("ext::sh -c x", None),
            ("", None),
        ] {
            assert_eq!(elsewhere(url).as_deref(), inside, "{url}");
        }
    }

    #[test]
    fn a_repository_of_any_name_gets_a_plain_folder() {
        let named = |common: &str| folder(&Repository { common: common.into(), claimed: None });
        assert_eq!(named("/src/shop/.git"), "shop");
        assert_eq!(named("/src/shop.git"), "shop");
        assert_eq!(named("/src/-my shop;/.git"), "my-shop-");
        assert_eq!(named("/src/…/.git"), "repository");
    }
}
