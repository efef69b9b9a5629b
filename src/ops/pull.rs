//! `pull`: work out. The branches of the clone in a spark, fetched into the repository that it is a clone of.
//!
//! Whatever is inside is hostile. Nothing inside is run, no configuration of it is read, and git never opens the
//! repository inside: its objects and branches are copied, as plain files and through descriptors that no link leads
//! away, from a snapshot that nothing changes any more, into a repository whose every other file is ours. From that, git
//! fetches as from any stranger's server, and checks each object.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use self::refs::Refs;
use super::git::{Call, Git, args};
use super::project::detect::{self, Owners};
use super::{Observer, Sparks};
use crate::domain::name::{Name, SparkRef};
use crate::domain::options::CloneOf;
use crate::domain::place::SparkPaths;
use crate::error::{Error, Result};
use crate::pool::btrfs;
use crate::pool::stage::Stage;
use crate::sys::flock::Mode as Lock;
use crate::{fault, sys};

mod objects;
mod refs;

/// The repository of ours that is fetched from, in the staged directory.
const FROM: &str = "from";

/// A branch that is in the host's repository now.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Branch {
    /// Its name inside.
    pub branch: String,
    /// Its name in the host's repository: `refs/spark/NAME/BRANCH`.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The commit.
    pub id: String,
    pub change: Change,
    /// Commits that the host's branch of the same name does not have; none if there is no such branch.
    pub ahead: Option<u64>,
}

/// What a pull did to a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    New,
    Updated,
    Same,
}

impl Sparks {
    /// Fetches the branches of the clone in a spark as `refs/spark/NAME/*`. Those that are gone inside go there too.
    /// No other ref, and no work tree, is touched; the spark may be running.
    ///
    /// # Errors
    /// `wrong_state` for a spark without a clone; `corrupt` for a repository that git would not have made, or that lacks
    /// objects. Then no branch is changed.
    pub fn pull(&self, spark: &SparkRef, observer: &dyn Observer) -> Result<Vec<Branch>> {
        let id = self.resolve(spark)?;
        let opened = self.open_spark(&id, Lock::Shared)?;
        let clone = opened.record.options.clone.as_ref().ok_or_else(|| Error::WrongState {
            action: "pull from",
            kind: "spark",
            name: id.name.to_string(),
            state: "without a clone".into(),
            hint: "make one with a clone of the current repository: `spark create NAME --clone`".into(),
        })?;
        let to = self.pulls_into(clone)?;
        let stage = self.pool.stage()?;
        observer.step("reading the clone", None);
        let root = stage.path().join("root");
        btrfs::snapshot(&SparkPaths(&opened.dir).root(), &root)?;
        drop(opened.lock);
        fault::point("pull.after-snapshot")?;

        let git = Git::of(&to, &stage, &self.pool.place)?;
        let pull = Pull { git, stage: &stage, to: &to, name: &id.name, inside: &clone.path };
        let refs = pull.copy(&root)?;
        pull.check(&refs)?;
        fault::point("pull.before-fetch")?;
        observer.step("fetching", None);
        let branches = pull.fetch(&refs)?;
        if refs.left_out > 0 {
            observer.notice(&format!("{} refs were left out: git would not have made them", refs.left_out));
        }
        Ok(branches)
    }

    /// The repository that a clone is of; where that was moved, the one around the working directory.
    fn pulls_into(&self, clone: &CloneOf) -> Result<PathBuf> {
        if clone.repository.is_dir() {
            return Ok(clone.repository.clone());
        }
        match detect::around(&self.context.cwd, &Owners::of_caller())? {
            Some(found) => Ok(found.common),
            None => Err(Error::Usage {
                message: format!("the repository {} is gone", clone.repository.display()),
                hint: Some("if it was moved, go there, and name the spark as PROJECT/NAME".into()),
            }),
        }
    }
}

struct Pull<'a> {
    git: Git,
    stage: &'a Stage,
    /// The host's repository.
    to: &'a Path,
    name: &'a Name,
    inside: &'a Path,
}

impl Pull<'_> {
    /// Makes the repository that is fetched from, of what is in the snapshot at `root`.
    fn copy(&self, root: &Path) -> Result<Refs> {
        let format = self.git.run(Call::of(self.to, "rev-parse", args!["--show-object-format"]))?;
        let format = format.trim();
        let length = if format == "sha256" { 64 } else { 40 };
        let git_dir = self.open(root)?;
        if sys::tree::stat(&git_dir, b"reftable").is_ok() {
            return Err(Error::NotSupported {
                what: format!("cannot pull from {}: its branches are in a reftable", self.inside.display()),
                hint: Some("change that inside: `git refs migrate --ref-format=files`".into()),
            });
        }
        let refs = refs::read(&git_dir, length).map_err(|(path, e)| self.damaged(&path, e))?;
        let shallow = refs::shallow(&git_dir, length).map_err(|e| self.damaged("shallow", e))?;

        let config = format!(
            "[core]\nrepositoryformatversion = 1\nbare = true\n[extensions]\nobjectformat = {format}\n"
        );
        let packed: String =
            refs.branches.iter().map(|(name, id)| format!("{id} refs/heads/{name}\n")).collect();
        // Not where git works: its owner may write there.
        let from = self.stage.path().join(FROM);
        for dir in ["", "objects", "refs"] {
            let dir = from.join(dir);
            std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        }
        for (name, text) in [
            ("HEAD", "ref: refs/heads/none\n"),
            ("config", &config),
            ("packed-refs", &packed),
            ("shallow", &shallow),
        ] {
            let path = from.join(name);
            if !text.is_empty() {
                std::fs::write(&path, text).map_err(Error::io("write", &path))?;
            }
        }
        let packs = objects::copy(&git_dir, &from.join("objects"))
            .map_err(|(path, e)| self.damaged(&format!("objects/{path}"), e))?;
        self.git.take_in(&from, FROM)?;
        for pack in packs {
            let path = self.git.its(FROM).join("objects/pack").join(&pack);
            let indexed = self.git.ask(Call::of(&self.git.its(FROM), "index-pack", args![path]))?;
            indexed
                .map_err(|why| self.damaged(&format!("objects/pack/{pack}"), std::io::Error::other(why)))?;
        }
        Ok(refs)
    }

    /// Opens the git directory inside. The way to the clone may have links, as those of the base: they end inside.
    fn open(&self, root: &Path) -> Result<OwnedFd> {
        let root = sys::file::open_dir(root).map_err(Error::io("open", root))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let tree = sys::beneath::open_with(&root, self.inside, flags, Mode::empty());
        tree.and_then(|tree| sys::tree::open_child(&tree, b".git")).map_err(|e| self.damaged("", e))
    }

    fn damaged(&self, path: &str, why: std::io::Error) -> Error {
        Error::Corrupt {
            path: self.inside.join(".git").join(path),
            why: why.to_string(),
            hint: Some(format!("look at it inside: `spark exec {} -- git fsck`", self.name)),
        }
    }

    /// Makes sure that every branch is a commit that is there: git would pass over others, and they would seem to be
    /// gone.
    fn check(&self, refs: &Refs) -> Result<()> {
        let list = self.stage.path().join("ids");
        let ids: String = refs.branches.values().map(|id| format!("{id}\n")).collect();
        std::fs::write(&list, ids).map_err(Error::io("write", &list))?;
        let input = File::open(&list).map_err(Error::io("open", &list))?;
        let from = self.git.its(FROM);
        let kinds = self.git.run(Call {
            input: Some(input),
            ..Call::of(&from, "cat-file", args!["--batch-check=%(objecttype)"])
        })?;
        for (branch, kind) in refs.branches.keys().zip(kinds.lines()) {
            if kind != "commit" {
                let why = std::io::Error::other("it is no commit that the clone has itself");
                return Err(self.damaged(&format!("refs/heads/{branch}"), why));
            }
        }
        Ok(())
    }

    /// Fetches. Either all branches change or none.
    fn fetch(&self, refs: &Refs) -> Result<Vec<Branch>> {
        let own = format!("refs/spark/{}/", self.name);
        let before = self.list(&own)?;
        let url = format!("file://{}", self.git.its(FROM).display());
        let refspec = format!("+refs/heads/*:{own}*");
        let all = args![
            "--quiet",
            "--atomic",
            "--prune",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-recurse-submodules",
            "--no-auto-maintenance",
            "--no-write-commit-graph",
            "--refmap=",
            "--",
            url,
            refspec,
        ];
        let env: [(&str, &OsStr); 3] = [
            ("GIT_CONFIG_COUNT", "1".as_ref()),
            ("GIT_CONFIG_KEY_0", "fetch.fsckObjects".as_ref()),
            ("GIT_CONFIG_VALUE_0", "true".as_ref()),
        ];
        self.git.run(Call { env: &env, ..Call::of(self.to, "fetch", all) })?;
        let now = self.list(&own)?;
        if now != refs.branches {
            let why = std::io::Error::other("another pull came between, or git left a branch out");
            return Err(self.damaged("refs/heads", why));
        }
        let theirs = self.list("refs/heads/")?;
        let branch = |(branch, id): (&String, &String)| {
            Ok(Branch {
                branch: branch.clone(),
                reference: format!("{own}{branch}"),
                id: id.clone(),
                change: match before.get(branch) {
                    None => Change::New,
                    Some(old) if old == id => Change::Same,
                    Some(_) => Change::Updated,
                },
                ahead: theirs.get(branch).map(|theirs| self.ahead(id, theirs)).transpose()?,
            })
        };
        now.iter().map(branch).collect()
    }

    /// The refs of the host's repository below a name, with their commits.
    fn list(&self, below: &str) -> Result<BTreeMap<String, String>> {
        let text = self.git.run(Call::of(
            self.to,
            "for-each-ref",
            args!["--format=%(objectname) %(refname)", below],
        ))?;
        let line = |line: &str| {
            let (id, name) = line.split_once(' ')?;
            Some((name.strip_prefix(below)?.to_owned(), id.to_owned()))
        };
        Ok(text.lines().filter_map(line).collect())
    }

    fn ahead(&self, id: &str, theirs: &str) -> Result<u64> {
        if id == theirs {
            return Ok(0);
        }
        let range = format!("{theirs}..{id}");
        let count = self.git.run(Call::of(self.to, "rev-list", args!["--count", range, "--"]))?;
        count.trim().parse().map_err(|_| Error::Program {
            program: "git rev-list".into(),
            detail: format!("it counted {count:?}"),
        })
    }
}
