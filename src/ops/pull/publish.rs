//! The refs of the host's repository that a pull changes.

use std::collections::BTreeMap;

use super::super::git::reach::Reach;
use super::super::git::{Call, args, input};
use super::Pull;
use crate::error::{Error, Result};

impl Pull<'_> {
    /// Makes the refs below `own` those of the branches inside: sets what was `fetched`, and removes what is gone. Either
    /// all change or none.
    ///
    /// `before` is what is there, and `inside` has the branches that were refused too: their refs stay.
    pub(super) fn publish(
        &self,
        own: &str,
        before: &BTreeMap<String, String>,
        inside: &BTreeMap<String, String>,
        fetched: &BTreeMap<String, String>,
    ) -> Result<()> {
        let gone: Vec<&String> = before.keys().filter(|name| !inside.contains_key(*name)).collect();
        let new = fetched.iter().filter(|(name, id)| before.get(*name) != Some(*id));
        let set: String = new.map(|(name, id)| format!("update {own}{name} {id}\n")).collect();
        // A ref `fix` keeps git from making `fix/1`, also where one transaction removes the one and makes the other.
        let in_the_way =
            |name: &&&String| fetched.keys().any(|new| is_below(new, name) || is_below(name, new));
        let delete = |name: &&String| format!("delete {own}{name}\n");
        let first: String = gone.iter().filter(in_the_way).map(delete).collect();
        let rest: String = gone.iter().filter(|name| !in_the_way(name)).map(delete).collect();
        self.change(&first)?;
        self.change(&(set + &rest)).map_err(|e| {
            let back = gone
                .iter()
                .filter(in_the_way)
                .filter_map(|name| before.get(*name).map(|id| format!("update {own}{name} {id}\n")));
            match self.change(&back.collect::<String>()) {
                Ok(()) => e,
                Err(undo) => Error::Undo { first: Box::new(e), undo: Box::new(undo) },
            }
        })
    }

    /// Changes refs, all or none.
    fn change(&self, commands: &str) -> Result<()> {
        if commands.is_empty() {
            return Ok(());
        }
        let how = args!["--no-deref", "--stdin"];
        let call = Call::of(self.to, "update-ref", how);
        let call = Call { input: Some(input(commands)?), reach: Reach::Refs, ..call };
        self.git.run(call).map(drop)
    }
}

/// Whether the ref `name` would lie in a directory with the name of the ref `other`.
fn is_below(name: &str, other: &str) -> bool {
    name.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_directory_of_it_is_in_the_way_of_a_ref() {
        assert!(is_below("fix/1", "fix") && is_below("a/b/c", "a"));
        assert!(!is_below("fix1", "fix") && !is_below("fix", "fix") && !is_below("fix", "fix/1"));
    }
}
