//! Source in: a clone of a repository of the host, put into a spark while it is made.
//!
//! Git makes the clone in a staged directory, as the repository's owner; from there it is copied beneath the root of
//! the spark, where no link of the base leads out. Nothing in it refers to the host's repository.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::cp::{At, Copier, Owner};
use super::git::author::Author;
use super::git::reach::Reach;
use super::git::unfilled::Unfilled;
use super::git::{Call, Config, Format, Git, args, input, repository};
use super::project::detect::{self, Owners, Repository};
use super::{Observer, Sparks};
use crate::domain::options::{Changes, CloneOf};
use crate::domain::spark::SparkRecord;
use crate::error::{Error, Result};
use crate::pool::stage::Stage;
use crate::runtime::users;
use crate::sys;
use crate::sys::caller::Caller;

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
        let git = Git::of(&clone.source, &clone.repository, &stage, &self.pool.place)?;
        let unfilled = Cloning { git: &git, clone, stage: &stage }.make()?;
        for sentence in unfilled.in_clone() {
            observer.notice(&sentence);
        }

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
        let caller = Caller::find().map_err(Error::sys("find the calling user"))?;
        if let Err(e) = Author::of(&caller, &git, &clone.source)?.write(root, &user) {
            // As where something odd is in its place in the base: git inside then asks who commits.
            observer.notice(&format!("commits inside have no author: {e}"));
        }
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

/// A clone that is being made.
struct Cloning<'a> {
    git: &'a Git,
    clone: &'a CloneOf,
    stage: &'a Stage,
}

impl Cloning<'_> {
    /// Makes the clone in the staged directory: all branches and tags, the current branch checked out. Returns what of it
    /// has no content.
    fn make(&self) -> Result<Unfilled> {
        let partial = self.git.is_partial(&self.clone.source)?;
        let head = self.repository()?;
        self.objects(head.as_deref(), partial)?;
        let (tree, remote) = (self.git.its(CLONE), |key| self.config(&["--get", key]));
        // None is no error: the repository may have been begun here.
        if let Some(url) = remote("remote.origin.url")?.as_deref().and_then(elsewhere) {
            self.git.run(Call::of(&tree, "remote", args!["add", "--", "origin", url]))?;
        }
        if partial {
            self.promise()?;
        }
        self.check_out(head.as_deref(), partial)
    }

    /// A value of the configuration of the host's repository.
    fn config(&self, how: &[&str]) -> Result<Option<String>> {
        let args: Vec<&OsStr> = how.iter().map(AsRef::as_ref).collect();
        let value = self.git.ask(Call::of(&self.clone.source, "config", &args))?.ok();
        Ok(value.map(|value| value.trim_end_matches('\n').to_owned()))
    }

    /// Makes the repository without an object. Returns the commit that is checked out on the host, if there is one.
    fn repository(&self) -> Result<Option<String>> {
        let ask = |verb: &str, args: &[&OsStr]| self.git.ask(Call::of(&self.clone.source, verb, args));
        let list = args!["--format=%(objectname) %(refname)", "refs/heads", "refs/tags"];
        let list = self.git.run(Call::of(&self.clone.source, "for-each-ref", list))?;
        let refs = list.lines().filter_map(|line| line.split_once(' '));
        let refs = refs.map(|(id, name)| (name.to_owned(), id.to_owned())).collect();
        let commit = ask("rev-parse", args!["--quiet", "--verify", "HEAD^{commit}"])?.ok();
        let branch = ask("symbolic-ref", args!["--quiet", "HEAD"])?.ok();
        let head = match (branch.filter(|name| name.starts_with("refs/heads/")), &commit) {
            (Some(branch), _) => format!("ref: {branch}"),
            (None, Some(commit)) => commit.clone(),
            (None, None) => "ref: refs/heads/main\n".into(),
        };
        let format = self.git.object_format(&self.clone.source)?;
        let shallow = self.shallow(format, commit.is_some())?;
        let dir = self.stage.path().join(CLONE);
        let new = repository::New { format, bare: false, head: &head, refs: &refs, shallow: &shallow };
        new.make(&dir.join(".git"))?;
        self.git.take_in(&dir, CLONE)?;
        Ok(commit.map(|id| id.trim().to_owned()))
    }

    /// Where history ends that is cut off, of what is cloned.
    fn shallow(&self, format: Format, head: bool) -> Result<String> {
        let common = &self.clone.repository;
        let at = sys::file::open_dir(common).and_then(|dir| repository::shallow(&dir, format));
        let cut = at.map_err(Error::io("read `shallow` in", common))?;
        if cut.is_empty() {
            return Ok(String::new());
        }
        let head = if head { "HEAD" } else { "--" };
        let of = args!["--max-parents=0", "--branches", "--tags", head];
        let ends = self.git.run(Call::of(&self.clone.source, "rev-list", of))?;
        Ok(ends.lines().filter(|id| cut.iter().any(|cut| cut == id)).map(|id| format!("{id}\n")).collect())
    }

    /// Puts all objects that branches, tags and HEAD reach into a pack of the clone; of a partial clone, those that are
    /// there.
    fn objects(&self, head: Option<&str>, partial: bool) -> Result<()> {
        let objects = self.git.its(CLONE).join(".git/objects");
        let pack = objects.join("pack/pack");
        // Files that git writes meanwhile are in the clone too.
        let theirs = quoted(&self.clone.repository.join("objects"));
        let env = [
            ("GIT_OBJECT_DIRECTORY", objects.as_os_str()),
            ("GIT_ALTERNATE_OBJECT_DIRECTORIES", theirs.as_os_str()),
        ];
        let roots = ["--branches", "--tags"].into_iter().chain(head);
        let (listed, how) = match partial {
            false => {
                let refs =
                    self.git.run(Call::of(&self.clone.source, "rev-parse", args!["--branches", "--tags"]))?;
                let all: String = refs.lines().chain(head).map(|id| format!("{id}\n")).collect();
                (input(&all)?, ["--revs"].as_slice())
            }
            true => {
                let path = self.stage.path().join("objects");
                let file = File::create_new(&path).map_err(Error::io("create", &path))?;
                let mut all = args!["--objects", "--missing=allow-any"].to_vec();
                all.extend(roots.map(OsStr::new));
                let call = Call::of(&self.clone.source, "rev-list", &all);
                self.git.run(Call { output: Some(file), ..call })?;
                (File::open(&path).map_err(Error::io("open", &path))?, [].as_slice())
            }
        };
        let mut all: Vec<&OsStr> = args!["--quiet", "--non-empty", "--delta-base-offset"].to_vec();
        all.extend(how.iter().map(|how| OsStr::new(*how)));
        all.push(pack.as_os_str());
        let call = Call::of(&self.clone.source, "pack-objects", &all);
        let made = self.git.run(Call { input: Some(listed), env: &env, ..call })?;
        if partial {
            self.mark(&made)?;
        }
        Ok(())
    }

    /// Says of packs that what they lack can be fetched.
    fn mark(&self, packs: &str) -> Result<()> {
        let path = format!("{CLONE}/.git/objects/pack");
        let dir = self.git.take_out(&path)?;
        for hash in packs.lines() {
            let made = sys::tree::create_file(&dir, format!("pack-{hash}.promisor").as_bytes());
            made.map_err(Error::io("make a mark in", &path))?;
        }
        Ok(())
    }

    /// Tells the clone of the remotes that have what it lacks, and what of the files is wanted at all.
    fn promise(&self) -> Result<()> {
        let tree = self.git.its(CLONE);
        let set =
            |key: String, value: &str| self.git.run(Call::of(&tree, "config", args![key, value])).map(drop);
        let found = self.config(&["--name-only", "--get-regexp", r"^remote\..*\.promisor$"])?;
        for key in found.as_deref().unwrap_or_default().lines() {
            let Some(remote) = key.strip_suffix(".promisor") else { continue };
            let url = self.config(&["--get", &format!("{remote}.url")])?;
            if let Some(url) = url.as_deref().and_then(elsewhere) {
                set(format!("{remote}.url"), &url)?;
            }
            set(format!("{remote}.promisor"), "true")?;
            if let Some(filter) = self.config(&["--get", &format!("{remote}.partialclonefilter")])? {
                set(format!("{remote}.partialclonefilter"), &filter)?;
            }
        }
        self.sparse()
    }

    /// Leaves out of the clone's work tree what a sparse checkout leaves out on the host: it may not be there.
    fn sparse(&self) -> Result<()> {
        let is =
            |key| Ok::<_, Error>(self.config(&["--type=bool", "--get", key])?.as_deref() == Some("true"));
        if !is("core.sparseCheckout")? {
            return Ok(());
        }
        let how = if is("core.sparseCheckoutCone")? { "--cone" } else { "--no-cone" };
        let wanted = self.git.run(Call::of(&self.clone.source, "sparse-checkout", args!["list"]))?;
        let tree = self.git.its(CLONE);
        let set = args!["set", how, "--stdin"];
        let call = Call { input: Some(input(&wanted)?), ..Call::of(&tree, "sparse-checkout", set) };
        self.git.run(call).map(drop)
    }

    /// Checks out the current branch, or the work tree of the host as it is. Filters are not run: none is configured.
    /// Returns what of it has no content.
    fn check_out(&self, head: Option<&str>, partial: bool) -> Result<Unfilled> {
        let tree = self.git.its(CLONE);
        let wanted =
            if self.clone.dirty { Some(self.uncommitted(head, partial)?) } else { head.map(str::to_owned) };
        // A branch without a commit has nothing to check out.
        let Some(wanted) = wanted else { return Ok(Unfilled::default()) };
        let wanted = wanted.trim();
        let checked_out = self.git.run(Call::of(&tree, "read-tree", args!["--reset", "-u", wanted]));
        checked_out.map_err(|e| if partial { self.lacks_files(&e) } else { e })?;
        let unfilled = Unfilled::of_index(self.git, &tree, wanted)?;
        if self.clone.dirty {
            self.git.run(Call::of(&tree, "reset", args!["--quiet"]))?;
        }
        Ok(unfilled)
    }

    fn lacks_files(&self, e: &Error) -> Error {
        let source = self.clone.source.display();
        Error::NotSupported {
            what: format!("cannot clone {source}: it is a partial clone, and lacks files of its branch: {e}"),
            hint: Some(format!("fetch them: `git -C {source} checkout HEAD`")),
        }
    }

    /// The tree of the host's work tree as it is, made of objects in the clone: those of the host's repository and its
    /// index are not touched. What is ignored, and how files are cleaned, its owner's configuration says.
    fn uncommitted(&self, head: Option<&str>, partial: bool) -> Result<String> {
        let (git, source) = (self.git, &self.clone.source);
        let top = git.ask(Call::of(source, "rev-parse", args!["--show-toplevel"]))?;
        let top = top.map_err(|_| Error::Usage {
            message: format!("`--dirty` needs a work tree, and {} has none", source.display()),
            hint: Some("leave it out to clone what is committed".into()),
        })?;
        let (index, objects) = (git.its("index"), git.its(CLONE).join(".git/objects"));
        let at = PathBuf::from(top.strip_suffix('\n').unwrap_or(&top));
        // The repository's own configuration says where it is, and an archive may hold one that says anything.
        if !source.starts_with(&at) {
            return Err(Error::Denied {
                what: format!("the work tree of {} is elsewhere: {}", source.display(), at.display()),
                hint: "if you mean that directory, name it: `--clone DIRECTORY`".into(),
            });
        }
        let run = |verb: &str, args: &[&OsStr]| {
            let env = &[("GIT_INDEX_FILE", index.as_os_str()), ("GIT_OBJECT_DIRECTORY", objects.as_os_str())];
            let (config, reach) = (Config::Owner, Reach::WorkTree);
            git.run(Call { env, config, reach, ..Call::of(&at, verb, args) })
        };
        // An index of its own, and a new one, so that every file is read: what is staged may be in no branch. `--reset`
        // heeds a sparse checkout, of which the rest is not deleted.
        match head {
            Some(_) => run("read-tree", args!["--reset", "HEAD"])?,
            None => run("read-tree", args!["--empty"])?,
        };
        run("add", args!["--all"])?;
        // What a sparse checkout leaves out, a partial clone may not have.
        if partial { run("write-tree", args!["--missing-ok"]) } else { run("write-tree", &[]) }
    }
}

/// A path in a list of them, for git: a colon in it ends none.
fn quoted(path: &Path) -> OsString {
    let mut text = b"\"".to_vec();
    for byte in path.as_os_str().as_encoded_bytes() {
        if b"\"\\".contains(byte) {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text.push(b'"');
    OsString::from_vec(text)
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
