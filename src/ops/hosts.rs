//! `/etc/hosts` of a spark: a file of its root. Sparks writes a section of it when the spark starts and when it is renamed.
//!
//! What runs in the spark may do with the file whatever it likes. If it is no file any more, or a huge one, it stays as it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::Sparks;
use super::spark::SparkId;
use crate::bundle::hosts::{self, Section};
use crate::bundle::spec;
use crate::domain::host_entry::HostEntry;
use crate::domain::name::Name;
use crate::domain::options::{Network, SparkOptions};
use crate::error::{Error, Result};
use crate::net::Member;
use crate::sys::{beneath, file};

/// Where the file is in a root.
const PATH: &str = "etc/hosts";
/// Most bytes of a file that Sparks writes into. Lists of names to block have some 100,000 lines.
const MAX: u64 = 8 << 20;

/// What a spark's section says. `member` is its place in the network of its project, if it has one.
pub(super) fn section(spark: &SparkId, options: &SparkOptions, member: Option<&Member>) -> Section {
    let hostname = spec::hostname(options, &spark.name);
    let mut others: Vec<_> =
        options.add_host.iter().map(|entry| (entry.name.clone(), entry.address)).collect();
    let Some(member) = member else {
        // Nobody reaches it by an address.
        let own = if options.network == Network::Project { Vec::new() } else { vec![[127, 0, 1, 1].into()] };
        return Section { own, names: vec![hostname], others };
    };
    let full = format!("{}.{}.spark", spark.name, spark.project);
    let mut names = vec![hostname, spark.name.to_string(), full];
    names.dedup();
    others.extend(member.names.iter().cloned());
    Section { own: vec![member.v4.into(), member.v6.into()], names, others }
}

/// Writes the section of a spark's file. If that fails, the spark does without: its neighbours do not need it.
pub(super) fn write(spark: &SparkId, root: &Path, section: &Section) {
    if let Err(e) = rewrite(root, section) {
        tracing::warn!(%spark, "its /etc/hosts stays as it is: {e}");
    }
}

fn rewrite(root: &Path, section: &Section) -> io::Result<()> {
    let top = file::open_dir(root)?;
    let hosts = open(&top)?;
    let old = file::read_bounded(hosts.try_clone()?, MAX)?;
    let mut new = section.in_place_of(&old);
    if new == old {
        return Ok(());
    }
    let length = new.len();
    // In one write: what is longer than the new text is blank lines until it is cut off.
    new.resize(length.max(old.len()), b'\n');
    hosts.write_all_at(&new, 0)?;
    if new.len() > length { hosts.set_len(length as u64) } else { Ok(()) }
}

/// Opens the file, which is made if there is none.
fn open(top: &std::os::fd::OwnedFd) -> io::Result<File> {
    let path = Path::new(PATH);
    // Nothing is opened for writing before it is known to be a file.
    match beneath::open_with(top, path, OFlags::PATH, Mode::empty()) {
        Ok(found) if found.metadata()?.is_file() => {
            beneath::open_with(top, path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty())
        }
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            beneath::make_dir(top, Path::new("etc"), (0, 0))?;
            let made = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            beneath::open_with(top, path, made, Mode::from_raw_mode(0o644))
        }
        Err(e) => Err(e),
    }
}

/// Removes the section from a root that is to be copied to many.
pub(super) fn clean(top: &std::os::fd::OwnedFd) -> io::Result<()> {
    let Ok(old) = beneath::read(top, Path::new(PATH), MAX) else { return Ok(()) };
    let new = hosts::without(&old);
    if new == old {
        return Ok(());
    }
    let file = open(top)?;
    file.set_len(0)?;
    file.write_all_at(&new, 0)
}

/// Whether the files of two roots differ in nothing but what Sparks writes. One that is missing is as one that is empty.
pub(super) fn are_alike(before: &Path, after: &Path) -> bool {
    let own_lines = |root: &Path| -> io::Result<Vec<u8>> {
        match beneath::read(file::open_dir(root)?, Path::new(PATH), MAX) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map(|text| hosts::without(&text)),
        }
    };
    matches!((own_lines(before), own_lines(after)), (Ok(before), Ok(after)) if before == after)
}

impl Sparks {
    /// Refuses entries for names that a spark of the project has, or that Sparks gives.
    ///
    /// # Errors
    /// `usage`, naming the entry.
    pub(super) fn refuse_host_entries(&self, spark: &SparkId, entries: &[HostEntry]) -> Result<()> {
        for entry in entries {
            let is_spark = entry.name.parse::<Name>().is_ok_and(|name| {
                let other = SparkId { project: spark.project.clone(), name };
                other.name == spark.name || self.dir(&other).exists()
            });
            let why = if is_spark {
                "a spark of the project has this name"
            } else if entry.name == "spark" || entry.name.ends_with(".spark") {
                "Sparks gives the names that end with `spark`"
            } else {
                continue;
            };
            return Err(Error::Usage {
                message: format!("`--add-host {entry}`: {why}"),
                hint: Some(
                    "choose another name: the spark's lines would hide the address of its neighbour".into(),
                ),
            });
        }
        Ok(())
    }
}
