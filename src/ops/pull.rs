//! `pull`: work out. The branches of the clone in a spark, fetched into the repository that it is a clone of.
//!
//! Whatever is inside is hostile. Nothing inside is run, no configuration of it is read, and git never opens the
//! repository inside: its objects and branches are copied, as plain files and through descriptors that no link leads
//! away, from a snapshot that nothing changes any more, into a repository whose every other file is ours. What of it is
//! new to the host's repository is packed, checked object by object apart from that repository, and only then put into it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use self::offer::Offer;
use self::refs::Refs;
use super::git::unfilled::Unfilled;
use super::git::{Call, Format, Git, args, input, repository};
use super::{Observer, Sparks};
use crate::domain::name::{Name, SparkRef};
use crate::domain::options::CloneOf;
use crate::domain::place::SparkPaths;
use crate::error::{Error, Result};
use crate::pool::btrfs;
use crate::pool::stage::Stage;
use crate::sys::flock::Mode as Lock;
use crate::{fault, sys};

mod left;
mod objects;
mod offer;
mod publish;
mod refs;

/// The repository of ours that is fetched from, in the staged directory.
const FROM: &str = "from";

/// What a pull has done.
#[derive(Debug)]
pub struct Pulled {
    /// The branches that are in the host's repository now.
    pub branches: Vec<Branch>,
    /// Why others are not, or are as they were: each branch, and what is damaged.
    pub refused: Vec<Error>,
}

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
    /// No other ref, and no work tree, is touched; the spark may be running. A branch that cannot be fetched keeps none
    /// of the others back.
    ///
    /// # Errors
    /// `wrong_state` for a spark without a clone; `corrupt` for a repository that git would not have made. Then no branch
    /// is changed.
    pub fn pull(&self, spark: &SparkRef, observer: &dyn Observer) -> Result<Pulled> {
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

        let git = Git::of(&to, &to, &stage, &self.pool.place)?;
        let format = git.object_format(&to)?;
        let pull = Pull { git, format, stage: &stage, to: &to, name: &id.name, inside: &clone.path };
        let copied = pull.copy(&root)?;
        if to != clone.repository {
            pull.shares_history_with(&clone.repository)?;
        }
        pull.finish(copied, observer)
    }

    /// The repository that a clone is of; where that was moved, the one around the working directory.
    fn pulls_into(&self, clone: &CloneOf) -> Result<PathBuf> {
        if clone.repository.is_dir() {
            return Ok(clone.repository.clone());
        }
        match self.repository()? {
            Some(found) => Ok(found.git_dir()?.to_owned()),
            None => Err(Error::Usage {
                message: format!("the repository {} is gone", clone.repository.display()),
                hint: Some("if it was moved, go there, and name the spark as PROJECT/NAME".into()),
            }),
        }
    }
}

struct Pull<'a> {
    git: Git,
    format: Format,
    stage: &'a Stage,
    /// The host's repository.
    to: &'a Path,
    name: &'a Name,
    inside: &'a Path,
}

/// What was copied out of a spark.
struct Copied {
    refs: Refs,
    /// Commits at which history inside is cut off.
    shallow: Vec<String>,
    /// Packs that are left out.
    damaged: Vec<Error>,
}

impl Pull<'_> {
    /// Fetches from what was copied, and tells what was not fetched.
    fn finish(&self, copied: Copied, observer: &dyn Observer) -> Result<Pulled> {
        let Copied { refs, shallow, damaged } = copied;
        observer.step("fetching", None);
        let own = format!("refs/spark/{}/", self.name);
        let before = self.list(&own)?;
        let theirs = self.list("refs/heads/")?;
        let mut offer = Offer::new(self, &shallow)?;
        let mut refused = damaged;
        let fetched = offer.fetch(&refs.branches, &mut refused)?;
        fault::point("pull.before-fetch")?;
        self.publish(&own, &before, &refs.branches, &fetched)?;
        let branches = self.rows(&own, &fetched, &before, &theirs)?;
        if refs.left_out > 0 {
            observer.notice(&format!("{} refs were left out: git would not have made them", refs.left_out));
        }
        if let Some(sentence) = self.left(&refs)? {
            observer.notice(&sentence);
        }
        for sentence in self.unfilled(&branches, &before, &theirs)?.in_branches() {
            observer.notice(&sentence);
        }
        Ok(Pulled { branches, refused })
    }

    /// Makes the repository that is fetched from, of what is in the snapshot at `root`.
    fn copy(&self, root: &Path) -> Result<Copied> {
        let git_dir = self.open(root)?;
        if sys::tree::stat(&git_dir, b"reftable").is_ok() {
            return Err(Error::NotSupported {
                what: format!("cannot pull from {}: its branches are in a reftable", self.inside.display()),
                hint: Some("change that inside: `git refs migrate --ref-format=files`".into()),
            });
        }
        let refs = refs::read(&git_dir, self.format).map_err(|(path, e)| self.damaged(&path, e))?;
        let shallow = repository::shallow(&git_dir, self.format).map_err(|e| self.damaged("shallow", e))?;
        // Where the host's own history is cut off, so it is here: what is older is new to the host.
        let hosts = sys::file::open_dir(self.to).and_then(|dir| repository::shallow(&dir, self.format));
        let hosts = hosts.map_err(Error::io("read `shallow` in", self.to))?;
        let cut: String = shallow.iter().chain(&hosts).map(|id| format!("{id}\n")).collect();
        let named =
            refs.branches.iter().map(|(name, id)| (format!("refs/heads/{name}"), id.clone())).collect();
        let head = "ref: refs/heads/none\n";
        // Not where git works: its owner may write there.
        let from = self.stage.path().join(FROM);
        repository::New { format: self.format, bare: true, head, refs: &named, shallow: &cut }.make(&from)?;
        let packs = objects::copy(&git_dir, &from.join("objects"))
            .map_err(|(path, e)| self.damaged(&format!("objects/{path}"), e))?;
        self.git.take_in(&from, FROM)?;
        let mut damaged = Vec::new();
        for pack in packs {
            let path = self.git.its(FROM).join("objects/pack").join(&pack.name);
            let indexed = self.git.ask(Call::of(&self.git.its(FROM), "index-pack", args![path]))?;
            if let Err(why) = indexed {
                let inside = format!("objects/{}", pack.inside);
                damaged.push(self.damaged(&inside, std::io::Error::other(why)));
            }
        }
        Ok(Copied { refs, shallow, damaged })
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

    /// Fails where the repository around the working directory is not the one that was cloned, in another place: the
    /// clone would have its first commits.
    fn shares_history_with(&self, gone: &Path) -> Result<()> {
        let first = self.git.run(Call::of(self.to, "rev-list", args!["--max-parents=0", "--all"]))?;
        let kinds = self.kinds(&self.git.its(FROM), first.lines())?;
        if kinds.is_empty() || kinds.iter().any(|kind| kind == "commit") {
            return Ok(());
        }
        Err(Error::Usage {
            message: format!(
                "the repository {} is gone, and {} is another one: they have no commit in common",
                gone.display(),
                self.to.display()
            ),
            hint: Some("go to where it was moved to, and name the spark as PROJECT/NAME".into()),
        })
    }

    /// What some ids are in a repository: `commit`, `tree`, `blob`, `tag`, or `missing`.
    fn kinds<'b>(&self, repository: &Path, ids: impl Iterator<Item = &'b str>) -> Result<Vec<String>> {
        let ids: String = ids.map(|id| format!("{id}\n")).collect();
        let kinds = self.git.run(Call {
            input: Some(input(&ids)?),
            ..Call::of(repository, "cat-file", args!["--batch-check=%(objecttype)"])
        })?;
        Ok(kinds.lines().map(|line| line.rsplit(' ').next().unwrap_or_default().to_owned()).collect())
    }

    /// What the user sees of the branches that were fetched.
    fn rows(
        &self,
        own: &str,
        fetched: &BTreeMap<String, String>,
        before: &BTreeMap<String, String>,
        theirs: &BTreeMap<String, String>,
    ) -> Result<Vec<Branch>> {
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
        fetched.iter().map(branch).collect()
    }

    /// What the branches that were fetched have no content of, and what they were compared with has not either.
    fn unfilled(
        &self,
        branches: &[Branch],
        before: &BTreeMap<String, String>,
        theirs: &BTreeMap<String, String>,
    ) -> Result<Unfilled> {
        let mut all = Unfilled::default();
        for branch in branches {
            let old = before.get(&branch.branch).or_else(|| theirs.get(&branch.branch));
            if old != Some(&branch.id) && theirs.get(&branch.branch) != Some(&branch.id) {
                let old = old.map(String::as_str);
                all.add(Unfilled::between(&self.git, self.to, old, &branch.id)?);
            }
        }
        Ok(all)
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
