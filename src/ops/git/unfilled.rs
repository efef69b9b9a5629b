//! What git has only a name of, and brings no content of: submodules, other repositories, and files of git-lfs.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

use super::{Call, Git, args, input, some_of};
use crate::error::Result;

/// The mode of an entry that names a commit of another repository.
const LINK: &str = "160000";
/// The first line of what git-lfs puts in a file's place.
const POINTER: &str = "^version https://git-lfs.github.com/spec/v";
/// Larger than any such file.
const POINTER_SIZE: u64 = 1024;
/// Most submodules that are looked at.
const SUBMODULES: usize = 1000;
/// Most objects that are looked at, and in one call.
const BLOBS: usize = 20_000;
const AT_ONCE: usize = 2000;

/// Paths without content, by what they are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unfilled {
    pub submodules: Vec<String>,
    /// Repositories of their own that are no submodules.
    pub repositories: Vec<String>,
    pub pointers: Vec<String>,
}

impl Unfilled {
    /// Of a work tree at `at`, whose index has what the tree `wanted` has.
    pub(crate) fn of_index(git: &Git, at: &Path, wanted: &str) -> Result<Unfilled> {
        let entries = git.run(Call::of(at, "ls-files", args!["--stage", "-z"]))?;
        let links = entries.split('\0').filter_map(|entry| {
            let (meta, path) = entry.split_once('\t')?;
            meta.starts_with(LINK).then(|| path.to_owned())
        });
        let known = git.submodules(at, wanted)?;
        let (submodules, repositories) = links.partition(|path| known.contains(path));
        let find = args!["--cached", "-l", "-z", "-e", POINTER, "--", ":(attr:filter=lfs)"];
        // It fails where nothing is found.
        let found = git.ask(Call::of(at, "grep", find))?.unwrap_or_default();
        Ok(Unfilled { submodules, repositories, pointers: names(&found) })
    }

    /// Of what the commit `to` has and `from`, if there is one, has not. No list of all paths is made: a small tree can
    /// have more of them than there is memory.
    pub(crate) fn between(git: &Git, repository: &Path, from: Option<&str>, to: &str) -> Result<Unfilled> {
        let paths: Vec<String> = git.submodules(repository, to)?.into_iter().take(SUBMODULES).collect();
        let old = from.map(|from| git.links(repository, from, &paths)).transpose()?.unwrap_or_default();
        let new = git.links(repository, to, &paths)?;
        let submodules = new.difference(&old).map(|link| link.1.clone()).collect();
        let range = format!("{to}\n{}", from.map(|from| format!("^{from}\n")).unwrap_or_default());
        let how = args!["--objects", "--filter=blob:limit=1k", "--stdin"];
        let list = Call { input: Some(input(&range)?), ..Call::of(repository, "rev-list", how) };
        // A partial clone may not have what it takes.
        let list = git.ask(list)?.unwrap_or_default();
        let objects = list.lines().filter_map(|line| line.split_once(' '));
        let objects: Vec<(&str, &str)> = objects.filter(|(_, path)| !path.is_empty()).take(BLOBS).collect();
        let mut pointers = Vec::new();
        for some in objects.chunks(AT_ONCE) {
            let found = git.pointers(repository, some)?;
            pointers.extend(some.iter().filter(|b| found.contains(b.0)).map(|b| b.1.to_owned()));
        }
        Ok(Unfilled { submodules, pointers, ..Unfilled::default() })
    }

    /// Adds what another has, each once.
    pub(crate) fn add(&mut self, other: Unfilled) {
        let Unfilled { submodules, repositories, pointers } = other;
        for (all, more) in [
            (&mut self.submodules, submodules),
            (&mut self.repositories, repositories),
            (&mut self.pointers, pointers),
        ] {
            all.extend(more);
            all.sort();
            all.dedup();
        }
    }

    /// Sentences on files that are not in the clone inside.
    pub(crate) fn in_clone(&self) -> Vec<String> {
        [
            (
                &self.submodules,
                "submodules are empty in the clone",
                "fill them inside: `git submodule update --init`",
            ),
            (
                &self.repositories,
                "repositories of their own are empty in the clone",
                "copy them with `spark cp`",
            ),
            (
                &self.pointers,
                "files of git-lfs are pointers in the clone",
                "fetch them inside: `git lfs pull`",
            ),
        ]
        .into_iter()
        .filter_map(|(paths, what, way_out)| say(paths, what, way_out))
        .collect()
    }

    /// Sentences on what the branches name that were fetched from a clone.
    pub(crate) fn in_branches(&self) -> Vec<String> {
        [
            (
                &self.submodules,
                "commits in submodules were not fetched",
                "push them from inside, or copy the files with `spark cp`",
            ),
            (
                &self.pointers,
                "files of git-lfs were not fetched, only their pointers",
                "push them from inside: `git lfs push`",
            ),
        ]
        .into_iter()
        .filter_map(|(paths, what, way_out)| say(paths, what, way_out))
        .collect()
    }
}

fn say(paths: &[String], what: &str, way_out: &str) -> Option<String> {
    (!paths.is_empty()).then(|| format!("{what}: {}; {way_out}", some_of(paths)))
}

fn names(list: &str) -> Vec<String> {
    list.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

impl Git {
    /// The paths that the `.gitmodules` of a tree names.
    fn submodules(&self, at: &Path, tree: &str) -> Result<BTreeSet<String>> {
        let blob = format!("{tree}:.gitmodules");
        let all = args!["-z", "--blob", blob, "--get-regexp", r"^submodule\..*\.path$"];
        let text = self.ask(Call::of(at, "config", all))?.unwrap_or_default();
        Ok(text.split('\0').filter_map(|entry| Some(entry.split_once('\n')?.1.to_owned())).collect())
    }

    /// Which of some paths are commits of other repositories in a commit: ids and paths.
    fn links(&self, repository: &Path, commit: &str, paths: &[String]) -> Result<BTreeSet<(String, String)>> {
        if paths.is_empty() {
            return Ok(BTreeSet::new());
        }
        let mut all = args!["-z", "--full-tree", commit, "--"].to_vec();
        all.extend(paths.iter().map(OsStr::new));
        let text = self.ask(Call::of(repository, "ls-tree", &all))?.unwrap_or_default();
        let link = |entry: &str| {
            // MODE KIND ID, and after a tab the path.
            let (meta, path) = entry.split_once('\t')?;
            let id = meta.strip_prefix(LINK)?.rsplit(' ').next()?;
            Some((id.to_owned(), path.to_owned()))
        };
        Ok(text.split('\0').filter_map(link).collect())
    }

    /// Which of some objects, with their paths, are pointers of git-lfs to files that a repository does not have.
    fn pointers(&self, repository: &Path, blobs: &[(&str, &str)]) -> Result<BTreeSet<String>> {
        let ids: String = blobs.iter().map(|(id, _)| format!("{id}\n")).collect();
        let sizes = self.run(Call {
            input: Some(input(&ids)?),
            ..Call::of(repository, "cat-file", args!["--batch-check=%(objecttype) %(objectsize)"])
        })?;
        let small = |(blob, size): (&(&str, &str), &str)| {
            let size = size.strip_prefix("blob ")?.parse();
            size.is_ok_and(|size: u64| size < POINTER_SIZE).then(|| blob.0.to_owned())
        };
        let small: Vec<String> = blobs.iter().zip(sizes.lines()).filter_map(small).collect();
        let pointers = names(&self.grep(repository, &["-l", "-z", "-e", POINTER], &small)?);
        let lines = self.grep(repository, &["-e", "^oid sha256:"], &pointers)?;
        let there = |line: &str| {
            let (id, hash) = line.split_once(":oid sha256:")?;
            let place = Path::new("lfs/objects").join(hash.get(..2)?).join(hash.get(2..4)?).join(hash);
            let whole = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
            (whole && repository.join(place).is_file()).then(|| id.to_owned())
        };
        let there: BTreeSet<String> = lines.lines().filter_map(there).collect();
        Ok(pointers.into_iter().filter(|id| !there.contains(id)).collect())
    }

    /// What is found in some blobs. Nothing, where there are none: git would look elsewhere.
    fn grep(&self, repository: &Path, how: &[&str], blobs: &[String]) -> Result<String> {
        if blobs.is_empty() {
            return Ok(String::new());
        }
        let all: Vec<&OsStr> =
            how.iter().copied().chain(blobs.iter().map(String::as_str)).map(OsStr::new).collect();
        // It fails where nothing is found.
        Ok(self.ask(Call::of(repository, "grep", &all))?.unwrap_or_default())
    }
}
