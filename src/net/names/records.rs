//! What commands write for the resolver, and the resolver reads at each question: three small files for each spark.
//!
//! ```text
//! names/by-address/10.128.3.4     who asks with this address
//! names/by-address/fd12::4        the same spark
//! names/by-project/KEY/NAME       which addresses a name has in the project of this key
//! ```
//!
//! All three have the same content. Each is replaced by one rename. A command that ends or renames a spark removes only the
//! files that are of that spark: somebody else may have its name or its address by then.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::name::Name;
use crate::domain::spark::Id;
use crate::error::{Error, Result};
use crate::sys;

/// Most bytes of a file. Ours have some 400.
const MAX: u64 = 4096;

/// What the resolver knows of a spark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub id: Id,
    /// What tells its project from all others of the installation, as the name of a directory. Two projects may have one name.
    pub project: String,
    /// What the project is called in `NAME.PROJECT.spark`.
    pub project_name: Name,
    pub name: Name,
    pub v4: Ipv4Addr,
    /// None if this host has no IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Whether questions that are not about sparks go on to the host's resolvers.
    pub asks_beyond: bool,
    /// The addresses that `host.spark` leads to. Empty unless the spark may reach the host.
    pub host: Vec<IpAddr>,
}

impl Record {
    /// The addresses of the spark.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(IpAddr::V4(self.v4)).chain(self.v6.map(IpAddr::V6))
    }
}

/// The directory of the files.
#[derive(Debug, Clone)]
pub(super) struct Records(PathBuf);

impl Records {
    pub(super) fn in_dir(dir: &Path) -> Records {
        Records(dir.to_owned())
    }

    fn by_address(&self, address: IpAddr) -> PathBuf {
        self.0.join("by-address").join(address.to_string())
    }

    fn by_name(&self, project: &str, name: &Name) -> PathBuf {
        self.0.join("by-project").join(project).join(name)
    }

    /// The spark that has an address.
    pub(super) fn of_address(&self, address: IpAddr) -> Option<Record> {
        read(&self.by_address(address))
    }

    /// All that is written by name, which has every spark once.
    pub(super) fn all(&self) -> Vec<Record> {
        let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let projects = entries(&self.0.join("by-project"));
        projects
            .flat_map(|project| entries(&project).collect::<Vec<_>>())
            .filter_map(|path| read(&path))
            .collect()
    }

    /// The spark of a project that has a name. What a killed command has left of another one does not count: its address is
    /// that of nobody, or of somebody with another name.
    pub(super) fn of_name(&self, project: &str, name: &Name) -> Option<Record> {
        let found: Record = read(&self.by_name(project, name))?;
        let now = self.of_address(found.v4.into())?;
        (now.id == found.id && now.name == found.name).then_some(now)
    }

    /// Writes the files of a spark, that of its first address first.
    pub(super) fn write(&self, record: &Record) -> Result<()> {
        let by_name = self.by_name(&record.project, &record.name);
        let text = serde_json::to_vec(record).map_err(|e| Error::corrupt(&by_name, e))?;
        for path in record.addresses().map(|address| self.by_address(address)).chain([by_name]) {
            let dir = path.parent().unwrap_or(&self.0);
            let put = || sys::file::replace_readable(&path, &text);
            match put() {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    sys::file::make_dirs(dir, 0o755).map_err(Error::io("create", dir))?;
                    put()
                }
                put => put,
            }
            .map_err(Error::io("write", &path))?;
        }
        Ok(())
    }

    /// Removes the files of a spark that are still its own, that of its first address last, and the directory of its project with
    /// the last spark.
    pub(super) fn remove(&self, record: &Record) -> Result<()> {
        let by_name = self.by_name(&record.project, &record.name);
        let project = by_name.parent().map(Path::to_owned);
        let addresses: Vec<_> = record.addresses().map(|address| self.by_address(address)).collect();
        for path in std::iter::once(by_name).chain(addresses.into_iter().rev()) {
            if read(&path).is_some_and(|found| found.id == record.id) {
                sys::file::remove(&path).map_err(Error::io("remove", path))?;
            }
        }
        // Not empty while the project has another spark.
        let _ = project.map(std::fs::remove_dir);
        Ok(())
    }

    /// Removes the file of a name that a spark had before it was renamed.
    pub(super) fn forget_name(&self, old: &Record) -> Result<()> {
        let path = self.by_name(&old.project, &old.name);
        if read(&path).is_some_and(|found| found.id == old.id) {
            sys::file::remove(&path).map_err(Error::io("remove", path))?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Option<Record> {
    let read = || -> io::Result<Record> {
        let text = sys::file::read_bounded(std::fs::File::open(path)?, MAX)?;
        Ok(serde_json::from_slice(&text)?)
    };
    read().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A spark with the address 10.128.0.`number`.
    pub(in crate::net::names) fn spark(project: &str, project_name: &str, name: &str, number: u8) -> Record {
        Record {
            id: Id::generate(),
            project: project.to_owned(),
            project_name: project_name.parse().unwrap(),
            name: name.parse().unwrap(),
            v4: [10, 128, 0, number].into(),
            v6: Some(format!("fd00::{number:x}").parse().unwrap()),
            asks_beyond: true,
            host: Vec::new(),
        }
    }

    #[test]
    fn a_spark_that_ends_takes_away_what_is_its_own_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::in_dir(dir.path());
        let project = "10.128.0.0".to_owned();
        let old = spark(&project, "shop", "web", 2);
        records.write(&old).unwrap();
        assert_eq!(records.of_address(old.v4.into()), Some(old.clone()));
        assert_eq!(records.of_name(&project, &old.name), Some(old.clone()));
        // Another one has its name by now, but not its address.
        let new = spark(&project, "shop", "web", 3);
        records.write(&new).unwrap();
        records.remove(&old).unwrap();
        assert_eq!(records.of_address(old.v4.into()), None);
        assert_eq!(records.of_address(old.v6.unwrap().into()), None);
        assert_eq!(records.of_name(&project, &old.name), Some(new.clone()));
        records.remove(&new).unwrap();
        let left = |sub: &str| std::fs::read_dir(dir.path().join(sub)).unwrap().count();
        assert_eq!((left("by-address"), left("by-project")), (0, 0));
    }

    #[test]
    fn a_file_that_is_no_record_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::in_dir(dir.path());
        std::fs::create_dir(dir.path().join("by-address")).unwrap();
        let at = |name: &str| dir.path().join("by-address").join(name);
        std::fs::write(at("10.0.0.1"), "{").unwrap();
        std::fs::write(at("10.0.0.2"), vec![b' '; 5000]).unwrap();
        std::fs::create_dir(at("10.0.0.3")).unwrap();
        for last in 1..=4 {
            assert_eq!(records.of_address([10, 0, 0, last].into()), None);
        }
    }
}
