//! Numbers of sparks in their project's network: one for life. Each is a claim, a file below `SPARK_RUN`; after a reboot the
//! claims are made anew from the records.
//!
//! A free number is found by trying a few that follow from the spark's id, in as many blocks as the project has filled. If
//! those are taken, there is one block more. So a claim takes a bounded number of system calls, however many sparks there are.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{Nets, hash};
use crate::domain::spark::Id;
use crate::domain::subnet::{BLOCKS, FIRST, OF_BLOCK, Subnet};
use crate::error::{Error, Result};
use crate::sys;

/// How many numbers are tried before a project gets another block. One of 80 % full is left with a chance of 3 %.
const TRIES: u64 = 16;
/// The file that says how many blocks are being filled, beside the claims.
const FILLED: &str = "blocks";

/// Which spark has claimed a number.
#[derive(Debug)]
pub struct Claim {
    /// The id of the project.
    pub project: Id,
    pub number: u16,
    pub id: Id,
    pub path: PathBuf,
}

impl Nets {
    fn claims_of(&self, project: &Id) -> PathBuf {
        self.dir.join("addresses").join(project.as_str())
    }

    /// Claims a number for a spark: the one that it has, if nobody else has that, else one that is free. `known` are those of all
    /// records of the project.
    pub fn claim_number(
        &self,
        project: &Id,
        id: &Id,
        had: Option<u16>,
        known: impl FnOnce() -> Vec<(Id, u16)>,
    ) -> Result<u16> {
        let dir = self.claims_of(project);
        if !dir.is_dir() {
            self.claim_known(&dir, known)?;
        }
        if let Some(number) = had.filter(|number| *number >= FIRST)
            && try_claim(&dir, number, id)?
        {
            return Ok(number);
        }
        for blocks in filled(&dir)..=BLOCKS {
            for number in (0..TRIES).map(|n| candidate(id, n, blocks)) {
                if try_claim(&dir, number, id)? {
                    return set_filled(&dir, blocks).map(|()| number);
                }
            }
        }
        // Nearly all are taken.
        set_filled(&dir, BLOCKS)?;
        let first = candidate(id, 0, BLOCKS);
        for number in (first..=u16::MAX).chain(FIRST..first) {
            if try_claim(&dir, number, id)? {
                return Ok(number);
            }
        }
        Err(Error::Network {
            what: format!("all {} addresses of the project are taken", u16::MAX - FIRST + 1),
            hint: Some("delete some sparks, or use another project".into()),
        })
    }

    /// The directories of claims, one for each project.
    pub fn dirs_of_claims(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.join("addresses")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// All claims.
    pub fn claims(&self) -> Vec<Claim> {
        let files =
            self.dirs_of_claims().into_iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten());
        let parsed = files.flatten().filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let path = entry.path();
            let project = path.parent()?.file_name()?.to_str()?.parse().ok()?;
            let id = String::from_utf8(std::fs::read(&path).ok()?).ok()?.parse().ok()?;
            Some(Claim { project, number, id, path })
        });
        parsed.collect()
    }

    /// Makes the directory of claims of a project, with those of all records. It appears whole.
    fn claim_known(&self, dir: &Path, known: impl FnOnce() -> Vec<(Id, u16)>) -> Result<()> {
        let _lock = self.lock()?;
        // Somebody may have made it meanwhile.
        if dir.is_dir() {
            return Ok(());
        }
        let draft = self.dir.join("addresses.new");
        let _ = std::fs::remove_dir_all(&draft);
        std::fs::create_dir(&draft).map_err(Error::io("create", &draft))?;
        let known = known();
        for (other, number) in &known {
            try_claim(&draft, *number, other)?;
        }
        let last = known.iter().map(|(_, number)| Subnet::block_of(*number)).max();
        set_filled(&draft, last.unwrap_or_default() + 1)?;
        let addresses = self.dir.join("addresses");
        std::fs::create_dir_all(&addresses).map_err(Error::io("create", &addresses))?;
        std::fs::rename(&draft, dir).map_err(Error::io("create", dir))
    }

    /// Gives a number back.
    pub fn release_number(&self, project: &Id, id: &Id, number: u16) {
        let path = self.claims_of(project).join(number.to_string());
        if std::fs::read(&path).is_ok_and(|held| held == id.as_str().as_bytes()) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// How many blocks a project fills.
fn filled(dir: &Path) -> usize {
    let text = std::fs::read_to_string(dir.join(FILLED)).unwrap_or_default();
    text.trim().parse().unwrap_or(1).clamp(1, BLOCKS)
}

/// Of two commands that say so at once, the one that says less may be the last: then the next one finds that out anew.
fn set_filled(dir: &Path, blocks: usize) -> Result<()> {
    if filled(dir) >= blocks {
        return Ok(());
    }
    let path = dir.join(FILLED);
    sys::file::replace_volatile(&path, blocks.to_string().as_bytes()).map_err(Error::io("write", path))
}

/// A number for a spark in the first so many blocks: some other one for each `n`.
fn candidate(id: &Id, n: u64, blocks: usize) -> u16 {
    let hash = hash(&[&id.bytes()[..], &n.to_be_bytes()].concat());
    let count = blocks as u64 * u64::from(OF_BLOCK) - u64::from(FIRST);
    let picked = u64::from(u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])) % count;
    FIRST + picked as u16
}

/// A claim appears whole: as another name of a file that is written already.
fn try_claim(dir: &Path, number: u16, id: &Id) -> Result<bool> {
    let path = dir.join(number.to_string());
    let is_own = |held: Vec<u8>| held == id.as_str().as_bytes();
    match std::fs::read(&path) {
        Ok(held) => return Ok(is_own(held)),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("read", path)(e)),
    }
    match sys::file::create_volatile(&path, id.as_str().as_bytes()) {
        Ok(true) => Ok(true),
        Ok(false) => Ok(std::fs::read(&path).is_ok_and(is_own)),
        Err(e) => Err(Error::io("claim", path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn nets() -> (tempfile::TempDir, Nets) {
        let dir = tempfile::tempdir().unwrap();
        let nets = Nets::of(dir.path());
        (dir, nets)
    }

    fn claim(nets: &Nets, project: &Id) -> u16 {
        nets.claim_number(project, &Id::generate(), None, Vec::new).unwrap()
    }

    #[test]
    fn every_spark_of_a_project_gets_a_number_of_its_own_and_blocks_are_filled_before_there_are_more() {
        let (_dir, nets) = nets();
        let project = Id::generate();
        let numbers: HashSet<u16> = (0..2500).map(|_| claim(&nets, &project)).collect();
        assert_eq!(numbers.len(), 2500);
        assert!(numbers.iter().all(|number| *number >= FIRST));
        let blocks = Subnet::block_of(*numbers.iter().max().unwrap()) + 1;
        assert!((3..=6).contains(&blocks), "{blocks} blocks for 2,500 sparks");
    }

    #[test]
    fn all_numbers_of_a_project_but_the_first_two_can_be_claimed_and_then_none() {
        let (_dir, nets) = nets();
        let project = Id::generate();
        claim(&nets, &project);
        let dir = nets.claims_of(&project);
        let free = [FIRST, 31_000, u16::MAX];
        // A file may not have more than 65,000 names everywhere.
        let others = ["even", "odd"].map(|name| dir.join(name));
        others.iter().for_each(|other| std::fs::write(other, "another").unwrap());
        for number in FIRST..=u16::MAX {
            let path = dir.join(number.to_string());
            match free.contains(&number) {
                true => drop(std::fs::remove_file(path)),
                false => std::fs::hard_link(&others[usize::from(number % 2)], path).unwrap_or_default(),
            }
        }
        let mut got = free.map(|_| claim(&nets, &project));
        got.sort_unstable();
        assert_eq!(got, free);
        let refused = nets.claim_number(&project, &Id::generate(), None, Vec::new).unwrap_err();
        assert!(refused.to_string().contains("all 65534 addresses"), "{refused}");
        let id: Id = std::fs::read_to_string(dir.join("31000")).unwrap().parse().unwrap();
        nets.release_number(&project, &id, 31_000);
        assert_eq!(claim(&nets, &project), 31_000);
    }

    #[test]
    fn claims_are_made_anew_from_the_records() {
        let (_dir, nets) = nets();
        let (project, id) = (Id::generate(), Id::generate());
        let known = || vec![(id.clone(), 4094)];
        assert_eq!(nets.claim_number(&project, &id, Some(4094), known).unwrap(), 4094);
        assert_eq!(filled(&nets.claims_of(&project)), 4);
        // Another one that says that this was its own gets another one.
        assert_ne!(nets.claim_number(&project, &Id::generate(), Some(4094), Vec::new).unwrap(), 4094);
    }
}
