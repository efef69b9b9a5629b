//! Work in a clone that no branch has, and that a pull leaves there.

use super::super::git::{Call, args, some_of};
use super::refs::Refs;
use super::{FROM, Pull};
use crate::error::Result;

impl Pull<'_> {
    /// A sentence on what is not fetched: tags and notes that the host's repository does not have, commits of a detached
    /// HEAD, stashes. None if there is nothing.
    pub(super) fn left(&self, refs: &Refs) -> Result<Option<String>> {
        let (tags, notes) = (self.list("refs/tags/")?, self.list("refs/notes/")?);
        let mut left = Vec::new();
        for (what, dir, theirs) in [("tags", "refs/tags/", tags), ("notes", "refs/notes/", notes)] {
            let new = refs.others.iter().filter_map(|(name, id)| Some((name.strip_prefix(dir)?, id)));
            let new: Vec<String> = new
                .filter(|(name, id)| theirs.get(*name) != Some(*id))
                .map(|(name, _)| name.to_owned())
                .collect();
            if !new.is_empty() {
                left.push(format!("{what} {}", some_of(&new)));
            }
        }
        let mut lone = Vec::new();
        for id in &refs.detached {
            if self.is_lone(id)? {
                lone.push(id.clone());
            }
        }
        if !lone.is_empty() {
            left.push(format!("commits of a detached HEAD {}", some_of(&lone)));
        }
        if let Some((newest, count)) = &refs.stash
            && !self.has(newest)?
        {
            left.push(format!("stashes ({count})"));
        }
        let way_out = format!("spark exec {} -- git branch NAME COMMIT", self.name);
        Ok((!left.is_empty()).then(|| {
            format!(
                "only branches are fetched, and not: {}; make a branch of it: `{way_out}`",
                left.join("; ")
            )
        }))
    }

    /// Whether a commit is in no branch inside, and not in the host's repository.
    fn is_lone(&self, id: &str) -> Result<bool> {
        if self.has(id)? {
            return Ok(false);
        }
        let only = args!["--max-count=1", id, "--not", "--branches", "--"];
        let found = self.git.ask(Call::of(&self.git.its(FROM), "rev-list", only))?;
        // One that is damaged is lost without a word otherwise.
        Ok(found.map_or(true, |found| !found.trim().is_empty()))
    }

    /// Whether the host's repository has an object.
    fn has(&self, id: &str) -> Result<bool> {
        Ok(self.kinds(self.to, [id].into_iter())?.iter().all(|kind| kind != "missing"))
    }
}
