//! Numbers of sparks in their project's network: one for life. Each is a claim, a file below `SPARK_RUN`; after a reboot the
//! claims are made anew from the records.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::Nets;
use crate::domain::name::Name;
use crate::domain::spark::Id;
use crate::domain::subnet::{FIRST, LAST};
use crate::error::{Error, Result};
use crate::sys;

/// Which spark has claimed a number.
#[derive(Debug)]
pub struct Claim {
    pub project: Name,
    pub number: u16,
    pub id: Id,
    pub path: PathBuf,
}

impl Nets {
    /// Claims a number for a spark: the one that it has, if nobody else has that, else the first that is free. `known` are
    /// those of all records of the project.
    pub fn claim_number(
        &self,
        project: &Name,
        id: &Id,
        had: Option<u16>,
        known: impl FnOnce() -> Vec<(Id, u16)>,
    ) -> Result<u16> {
        let dir = self.dir.join("addresses").join(project);
        if !dir.is_dir() {
            let _lock = self.lock()?;
            // Somebody may have made them meanwhile. They appear whole.
            if !dir.is_dir() {
                let draft = self.dir.join("addresses.new");
                let _ = std::fs::remove_dir_all(&draft);
                std::fs::create_dir(&draft).map_err(Error::io("create", &draft))?;
                for (other, number) in known() {
                    try_claim(&draft, number, &other)?;
                }
                let addresses = self.dir.join("addresses");
                std::fs::create_dir_all(&addresses).map_err(Error::io("create", &addresses))?;
                std::fs::rename(&draft, &dir).map_err(Error::io("create", &dir))?;
            }
        }
        for number in had.into_iter().filter(|n| (FIRST..=LAST).contains(n)).chain(FIRST..=LAST) {
            if try_claim(&dir, number, id)? {
                return Ok(number);
            }
        }
        Err(Error::Network {
            what: format!("all {} addresses of project `{project}` are taken", LAST - FIRST + 1),
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

    /// Gives a number back.
    pub fn release_number(&self, project: &Name, id: &Id, number: u16) {
        let path = self.dir.join("addresses").join(project).join(number.to_string());
        if std::fs::read(&path).is_ok_and(|held| held == id.as_str().as_bytes()) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A claim appears whole.
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
