//! What is new in the branches of a clone: packed, checked apart from the host's repository, and then put into it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{Read, Seek};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use super::super::git::reach::Reach;
use super::super::git::{Call, args, input};
use super::{FROM, Pull};
use crate::error::{Error, Result};
use crate::sys;

/// Most branches that are looked for among those that cannot be fetched.
const REFUSED: usize = 20;
/// From so many objects on git keeps a pack that it has fetched.
const PACK_FROM: u32 = 100;

/// Names and ids of branches.
type Branches = [(String, String)];

/// A pack that was checked, as a path in the staged directory; none if nothing is new.
type Checked = Option<(String, String)>;

/// What is fetched, and how.
pub(super) struct Offer<'a> {
    pull: &'a Pull<'a>,
    /// Commits inside at which history is cut off.
    shallow: &'a [String],
    /// What the host's repository has, as git takes it on its standard input.
    haves: String,
    /// How objects are checked.
    check: String,
    partial: bool,
    tries: usize,
}

impl<'a> Offer<'a> {
    pub(super) fn new(pull: &'a Pull<'a>, shallow: &'a [String]) -> Result<Offer<'a>> {
        let tips: BTreeSet<String> = pull.list("refs/")?.into_values().collect();
        let kinds = pull.kinds(&pull.git.its(FROM), tips.iter().map(String::as_str))?;
        let known = tips.iter().zip(&kinds).filter(|(_, kind)| *kind == "commit" || *kind == "tag");
        let haves = known.map(|(id, _)| format!("^{id}\n")).collect();
        let partial = pull.git.is_partial(pull.to)?;
        let check = if partial { "--fsck-objects".to_owned() } else { strict(pull)? };
        Ok(Offer { pull, shallow, haves, check, partial, tries: 0 })
    }

    /// Brings all that the branches reach into the host's repository, and returns those. Why others cannot be fetched is
    /// added to `refused`.
    pub(super) fn fetch(
        &mut self,
        branches: &BTreeMap<String, String>,
        refused: &mut Vec<Error>,
    ) -> Result<BTreeMap<String, String>> {
        let kinds = self.pull.kinds(&self.pull.git.its(FROM), branches.values().map(String::as_str))?;
        let mut good = Vec::new();
        for ((name, id), kind) in branches.iter().zip(kinds) {
            match kind.as_str() {
                "commit" => good.push((name.clone(), id.clone())),
                "missing" => {
                    refused.push(self.refuse(name, format!("commit {id} is not in the clone itself"), None));
                }
                kind => refused.push(self.refuse(name, format!("{id} is a {kind} and not a commit"), None)),
            }
        }
        for _ in 0..REFUSED {
            match self.check(&good)? {
                Ok(pack) => {
                    self.take(pack)?;
                    return Ok(good.into_iter().collect());
                }
                Err(_) => self.leave_out(&mut good, refused)?,
            }
        }
        Err(self.pull.damaged("", std::io::Error::other(format!("more than {REFUSED} commits are refused"))))
    }

    /// Finds a branch that cannot be fetched, and takes it out of `good`, with all that have the same bad commit.
    fn leave_out(&mut self, good: &mut Vec<(String, String)>, refused: &mut Vec<Error>) -> Result<()> {
        let mut some = good.as_slice();
        while some.len() > 1 {
            let (first, second) = some.split_at(some.len() / 2);
            some = if self.check(first)?.is_err() { first } else { second };
        }
        let Some((name, tip)) = some.first().cloned() else { return Ok(()) };
        // Together they failed, so one of them does.
        let Err(why) = self.check(some)? else {
            let detail = "branches that can be fetched alone cannot be fetched together".into();
            return Err(Error::Program { program: "git".into(), detail });
        };
        let (commit, why, way_out) = self.explain(&tip, &why)?;
        let list = args!["--format=%(refname:lstrip=2)", "--contains", commit, "refs/heads"];
        let with_it = self.pull.git.ask(Call::of(&self.pull.git.its(FROM), "for-each-ref", list))?;
        let mut with_it: BTreeSet<String> = with_it.unwrap_or_default().lines().map(str::to_owned).collect();
        with_it.insert(name);
        let (bad, others) = std::mem::take(good).into_iter().partition(|(name, _)| with_it.contains(name));
        *good = others;
        refused.extend(
            bad.iter().map(|(name, _): &(String, String)| self.refuse(name, why.clone(), way_out.clone())),
        );
        Ok(())
    }

    fn refuse(&self, branch: &str, why: String, way_out: Option<String>) -> Error {
        let look = || format!("look at it inside: `spark exec {} -- git fsck`", self.pull.name);
        Error::NotFetched { branch: branch.to_owned(), why, hint: way_out.unwrap_or_else(look) }
    }

    /// Packs what is new in some branches, and checks it beside the host's repository: each object, and that all which it
    /// refers to is there. What is wrong is an answer too.
    fn check(&mut self, branches: &Branches) -> Result<std::result::Result<Checked, String>> {
        let (git, from, to) = (&self.pull.git, self.pull.git.its(FROM), self.pull.to);
        self.tries += 1;
        let name = format!("try{}", self.tries);
        let objects = self.place(&name)?;
        let tips: String = branches.iter().map(|(_, id)| format!("{id}\n")).collect();
        let wanted = input(&(tips.clone() + &self.haves))?;
        let base = objects.join("pack/pack");
        let pack = args!["--revs", "--quiet", "--non-empty", "--delta-base-offset", base];
        let hash = match git.ask(Call { input: Some(wanted), ..Call::of(&from, "pack-objects", pack) })? {
            Ok(hash) if hash.trim().is_empty() => None,
            Ok(hash) => Some(format!("pack-{}.pack", hash.trim())),
            Err(why) => return self.wrong(&name, why),
        };
        let env = [("GIT_OBJECT_DIRECTORY", objects.as_os_str())];
        if let Some(pack) = &hash {
            let path = objects.join("pack").join(pack);
            let all = args![self.check, path];
            if let Err(why) = git.ask(Call { env: &env, ..Call::of(to, "index-pack", all) })? {
                return self.wrong(&name, why);
            }
        }
        let mut all: Vec<&OsStr> = args!["--objects", "--quiet", "--stdin"].to_vec();
        if self.partial {
            all.push(OsStr::new("--exclude-promisor-objects"));
        }
        all.extend(args!["--not", "--all"]);
        let call = Call { env: &env, input: Some(input(&tips)?), ..Call::of(to, "rev-list", &all) };
        match git.ask(call)? {
            Ok(_) => Ok(Ok(hash.map(|pack| (name, pack)))),
            Err(why) => self.wrong(&name, why),
        }
    }

    /// A directory of objects of its own, which has those of the host's repository besides.
    fn place(&self, name: &str) -> Result<PathBuf> {
        let dir = self.pull.stage.path().join(name);
        for below in ["", "info", "pack"] {
            let path = dir.join(below);
            DirBuilder::new().mode(0o700).create(&path).map_err(Error::io("create", &path))?;
        }
        let (path, objects) = (dir.join("info/alternates"), self.pull.to.join("objects"));
        let text = [objects.as_os_str().as_encoded_bytes(), b"\n"].concat();
        std::fs::write(&path, text).map_err(Error::io("write", &path))?;
        self.pull.git.take_in(&dir, name)?;
        Ok(self.pull.git.its(name))
    }

    /// What is wrong with branches, without what was packed of them.
    ///
    /// # Errors
    /// Where git failed for another reason than what is in them.
    fn wrong(&self, name: &str, why: String) -> Result<std::result::Result<Checked, String>> {
        let full = [("No space left on device", libc::ENOSPC), ("Disk quota exceeded", libc::EDQUOT)];
        if let Some((_, errno)) = full.iter().find(|(text, _)| why.contains(text)) {
            return Err(Error::sys("fetch the branches")(std::io::Error::from_raw_os_error(*errno)));
        }
        if why.is_empty() {
            return Err(Error::Program { program: "git".into(), detail: "it was killed".into() });
        }
        let dir = self.pull.git.take_out(name)?;
        sys::tree::clear(&dir).map_err(Error::io("clear", name))?;
        Ok(Err(why))
    }

    /// Puts a pack that was checked into the host's repository: as objects of their own if they are few, as git does.
    fn take(&self, pack: Checked) -> Result<()> {
        let Some((name, pack)) = pack else { return Ok(()) };
        let dir = self.pull.git.take_out(&format!("{name}/pack"))?;
        let open = || {
            let mut file = sys::tree::open_file(&dir, pack.as_bytes())?;
            let mut head = [0; 12];
            file.read_exact(&mut head)?;
            file.rewind()?;
            Ok((file, u32::from_be_bytes([head[8], head[9], head[10], head[11]])))
        };
        let (file, count): (File, u32) = open().map_err(Error::io("read", &pack))?;
        let (verb, all) = match count {
            ..PACK_FROM => ("unpack-objects", args!["-q"]),
            _ => ("index-pack", args!["--stdin"]),
        };
        let call = Call::of(self.pull.to, verb, all);
        self.pull.git.run(Call { input: Some(file), reach: Reach::Objects, ..call }).map(drop)
    }

    /// Of what git says on a branch that leads to `tip`: the commit, what is wrong with it, and what to do.
    fn explain(&self, tip: &str, said: &str) -> Result<(String, String, Option<String>)> {
        let length = self.pull.format.length();
        let words = said.split(|c: char| !c.is_ascii_alphanumeric());
        let mut ids = words.filter(|w| w.len() == length && w.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(object) = ids.next() else {
            return Ok((tip.to_owned(), format!("commit {tip}: {said}"), None));
        };
        // error: object ID: RULE: what is wrong
        let mut rules = said.lines().filter_map(|line| line.split_once(&format!("object {object}: ")));
        let rule = rules.next().and_then(|found| found.1.split_once(": "));
        if let (None, Some(cut)) = (rule, self.cut_off(tip)?) {
            let why = format!(
                "its history is cut off at commit {cut}, and what is before is not in this repository"
            );
            let fetch = format!("spark exec {} -- git fetch --unshallow", self.pull.name);
            return Ok((cut, why, Some(format!("fetch the rest inside: `{fetch}`"))));
        }
        let commit = self.commit_with(object, tip)?;
        let what = if commit == *object { String::new() } else { format!(", in object {object}") };
        let Some((rule, wrong)) = rule else {
            let said = said.lines().next().unwrap_or_default();
            return Ok((commit.clone(), format!("commit {commit}{what}: {said}"), None));
        };
        let accept = format!("`git -C {} config fetch.fsck.{rule} ignore`", self.pull.to.display());
        let hint = match self.partial {
            true => "write the commit anew inside".to_owned(),
            false => format!("write the commit anew inside, or accept it: {accept}"),
        };
        Ok((commit.clone(), format!("git refuses commit {commit}{what}: {rule}: {wrong}"), Some(hint)))
    }

    /// A commit at which what is new in a branch is cut off inside.
    fn cut_off(&self, tip: &str) -> Result<Option<String>> {
        if self.shallow.is_empty() {
            return Ok(None);
        }
        let from = self.pull.git.its(FROM);
        let input = Some(input(&format!("{tip}\n{}", self.haves))?);
        let first = args!["--max-parents=0", "--stdin"];
        let ends = self.pull.git.ask(Call { input, ..Call::of(&from, "rev-list", first) })?;
        let ends = ends.unwrap_or_default();
        Ok(ends.lines().find(|end| self.shallow.iter().any(|cut| cut == end)).map(str::to_owned))
    }

    /// The commit that brings an object to a branch; the branch's own if none is found.
    fn commit_with(&self, object: &str, tip: &str) -> Result<String> {
        let (git, from) = (&self.pull.git, self.pull.git.its(FROM));
        if self.pull.kinds(&from, [object].into_iter())? == ["commit"] {
            return Ok(object.to_owned());
        }
        let log = |how: &[&str]| {
            let mut all: Vec<&OsStr> = how.iter().map(OsStr::new).collect();
            all.push(OsStr::new("--stdin"));
            let input = Some(input(&format!("{tip}\n{}", self.haves))?);
            Ok::<_, Error>(git.ask(Call { input, ..Call::of(&from, "log", &all) })?.unwrap_or_default())
        };
        let find = format!("--find-object={object}");
        let found = log(&["--format=%H", "-t", "-m", "--no-patch", &find])?;
        let oldest = found.lines().last().map(str::to_owned);
        let with_it = |line: &str| Some(line.strip_prefix(object)?.trim_start().to_owned());
        let found = match oldest {
            None => log(&["--format=%T %H"])?.lines().filter_map(with_it).next_back(),
            found => found,
        };
        Ok(found.unwrap_or_else(|| tip.to_owned()))
    }
}

/// How objects are checked for a repository that has all of its own: with what the owner has said on the rules for what
/// is fetched.
fn strict(pull: &Pull<'_>) -> Result<String> {
    let said = args!["--get-regexp", r"^fetch\.fsck\."];
    let said = pull.git.ask(Call::of(pull.to, "config", said))?.unwrap_or_default();
    let rule = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some(format!("{}={value}", key.strip_prefix("fetch.fsck.")?))
    };
    let rules: Vec<String> = said.lines().filter_map(rule).collect();
    Ok(if rules.is_empty() { "--strict".to_owned() } else { format!("--strict={}", rules.join(",")) })
}
