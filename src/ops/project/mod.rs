//! Projects: which one a command belongs to, making one, listing and deleting them.

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::detect::{Owners, Repository};
use super::{Sparks, near};
use crate::domain::FORMAT;
use crate::domain::name::{Name, SparkRef};
use crate::domain::project::ProjectRecord;
use crate::domain::spark::{Id, Time};
use crate::error::{Error, Result};
use crate::pool::{layout, names_in, record};
use crate::sys::flock::Mode;
use crate::{fault, sys};

pub(super) mod detect;
mod name;

/// The project of commands outside of every repository. No repository's project has this name.
const DEFAULT: &str = "default";

/// `/spark/proj`: everybody may write, only owners may remove, as in `/tmp`.
const SHARED_MODE: u32 = 0o1777;

/// A project, as `project list` and `project info` show it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ProjectInfo {
    pub name: Name,
    /// None if the record is damaged.
    pub id: Option<Id>,
    /// None if the record is damaged.
    pub created: Option<Time>,
    /// The repository's common git directory, or a `.git` file that no git directory points back to; none if the project
    /// was named by hand.
    pub git: Option<String>,
    /// Whether that is there. False where there is no repository.
    pub git_exists: bool,
    /// How many sparks it has.
    pub sparks: usize,
    /// Its directory in the pool.
    pub path: PathBuf,
    /// Whether commands go to it here, unless told otherwise.
    pub current: bool,
    /// Why its record cannot be read. Its sparks can be used all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

/// What happens where no project is named and the working directory, which was deleted or cannot be read, does not tell
/// which one is meant.
#[derive(Debug, Clone, Default)]
pub enum Lost {
    /// The operation fails: it might change another project than the one that is meant.
    #[default]
    Fails,
    /// The operation only reads, and uses `default`. The flag says afterwards whether it did.
    UsesDefault(Arc<AtomicBool>),
}

/// Whose a project's name is.
enum Holder {
    Nobody,
    Repository(PathBuf),
    /// Named by hand.
    User,
    Unknown(Error),
}

impl Sparks {
    /// The project that commands go to: the one that was named, else that of the repository around the working
    /// directory, else `default`. Makes nothing.
    ///
    /// # Errors
    /// `denied` if the repository is somebody else's, `corrupt` if it or its project's record is damaged.
    pub fn project(&self) -> Result<Name> {
        if let Some(project) = &self.context.project {
            return Ok(project.clone());
        }
        match self.repository() {
            Ok(Some(repository)) => self.project_of_repository(&repository),
            Ok(None) => Ok(DEFAULT.parse()?),
            Err(Error::Sys { source, .. } | Error::Io { source, .. }) => self.lost(source),
            Err(e) => Err(e),
        }
    }

    /// The project of a command of which nothing tells which one is meant.
    fn lost(&self, source: std::io::Error) -> Result<Name> {
        match &self.context.lost {
            Lost::UsesDefault(used) => {
                used.store(true, Ordering::Relaxed);
                Ok(DEFAULT.parse()?)
            }
            Lost::Fails => Err(Error::Host {
                what: "the working directory cannot be read, so nothing tells which project is meant".into(),
                hint: "name the project with `-P PROJECT`, or change to a directory that is there".into(),
                source: Some(source),
            }),
        }
    }

    /// The project that a new spark goes to, made if it is not there.
    ///
    /// Two repositories of one folder name that both begin now want the same name: of those, one gets it, and
    /// the other, looking again, the next.
    pub fn ensure_project_of(&self, spark: &SparkRef) -> Result<Name> {
        let mut project = self.project_of(spark)?;
        self.ensure_project(&project)?;
        if spark.project.is_none() && self.context.project.is_none() {
            loop {
                let now = self.project()?;
                if now == project {
                    break;
                }
                project = now;
                self.ensure_project(&project)?;
            }
        }
        Ok(project)
    }

    /// Locks a project shared, so that it cannot be deleted from under what is being made in it.
    ///
    /// # Errors
    /// `busy` if that has happened.
    pub(crate) fn hold_project(&self, project: &Name) -> Result<OwnedFd> {
        let held = self.pool.lock(&self.pool.paths.project(project), Mode::Shared)?;
        held.ok_or_else(|| Error::Busy {
            what: format!("project `{project}`"),
            why: "it is being deleted".into(),
        })
    }

    /// Makes a project, if it is not there. Of two that do so at once, one makes it.
    ///
    /// It becomes that of the repository around the working directory if it has the name for it and no project
    /// was named.
    pub fn ensure_project(&self, name: &Name) -> Result<()> {
        let dir = self.pool.paths.project(name);
        if dir.is_dir() {
            return Ok(());
        }
        // A repository that cannot be looked at does not stop somebody from using another project by name.
        let git = match &self.context.project {
            Some(_) => None,
            None => self.repository().ok().flatten(),
        };
        let git = git.filter(|r| self.project_of_repository(r).is_ok_and(|n| n == *name));
        if let Some(Repository { common, claimed: Some(claimed) }) = &git {
            tracing::warn!(
                "{} names the repository {}, which does not point back to it: `{name}` is a project of its own",
                common.display(),
                claimed.display()
            );
        }
        let git = git.map(|repository| repository.common);
        let record = ProjectRecord {
            version: FORMAT,
            id: Id::generate(),
            created: chrono::Utc::now(),
            git,
            rest: Default::default(),
        };

        let stage = self.pool.stage()?;
        for sub in ["sparks", "data"] {
            let path = stage.path().join(sub);
            std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(Error::io("create", path))?;
        }
        stage.write("project.json", &record)?;
        // Last, since making a subvolume commits what was made before it.
        layout::make_shared(&stage.path().join("shared"), SHARED_MODE)?;
        fault::point("project-create.before-publish")?;
        match stage.publish(&dir) {
            Ok(_lock) => {}
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => return Ok(()),
            Err(e) => return Err(e),
        }
        fault::point("project-create.after-publish")?;
        let projects = self.pool.paths.projects();
        sys::file::sync_dir(&projects).map_err(Error::io("sync", projects))
    }

    /// All projects, by name. A damaged one is listed as such.
    pub fn project_list(&self) -> Result<Vec<ProjectInfo>> {
        let current = self.project().ok();
        let names = names_in(&self.pool.paths.projects())?;
        names.into_iter().map(|name| self.describe(name, current.as_ref())).collect()
    }

    /// One project.
    pub fn project_info(&self, name: &Name) -> Result<ProjectInfo> {
        if !self.pool.paths.project(name).is_dir() {
            return Err(self.no_such_project(name));
        }
        self.describe(name.clone(), self.project().ok().as_ref())
    }

    /// Deletes a project that has no sparks and no data volumes. What it shares (`/spark/proj`) goes with it.
    ///
    /// # Errors
    /// `wrong_state` if it is not empty, `not_found` if it is not there.
    pub fn project_delete(&self, name: &Name) -> Result<()> {
        let dir = self.pool.paths.project(name);
        // Whoever publishes a spark in it holds this lock shared, so that what is empty now stays so.
        let Some(_lock) = self.pool.lock(&dir, Mode::Exclusive)? else {
            return Err(self.no_such_project(name));
        };
        let sparks = entries(&self.pool.paths.sparks(name))?;
        let volumes = entries(&dir.join("data"))?;
        if !sparks.is_empty() || !volumes.is_empty() {
            return Err(not_empty(name, &sparks, &volumes));
        }
        let stage = self.pool.stage()?;
        fault::point("project-delete.before-rename")?;
        sys::file::rename_new(&dir, &stage.path().join("project")).map_err(Error::io("delete", &dir))?;
        fault::point("project-delete.after-rename")?;
        let projects = self.pool.paths.projects();
        sys::file::sync_dir(&projects).map_err(Error::io("sync", projects))
        // The stage frees what is in it; what it cannot, `gc` does.
    }

    /// The repository around the working directory.
    pub(super) fn repository(&self) -> Result<Option<Repository>> {
        let gone =
            || Error::sys("find the working directory")(std::io::Error::from_raw_os_error(libc::ENOENT));
        detect::around(self.context.cwd.as_deref().ok_or_else(gone)?, &Owners::of_caller())
    }

    /// The name that is a repository's already, else the first that is nobody's.
    fn project_of_repository(&self, repository: &Repository) -> Result<Name> {
        let mut free = None;
        let mut damaged = None;
        for name in name::candidates(repository)? {
            match self.holder(&name) {
                Holder::Repository(git) if git == repository.common => return Ok(name),
                Holder::Nobody => free = free.or(Some(name)),
                Holder::Unknown(e) => damaged = damaged.or(Some(e)),
                Holder::Repository(_) | Holder::User => {}
            }
        }
        // A damaged record may be this repository's: to begin another project would hide its sparks.
        match (damaged, free) {
            (Some(e), _) => Err(e),
            (None, Some(name)) => Ok(name),
            (None, None) => Err(Error::Usage {
                message: format!("every name for the project of {} is taken", repository.common.display()),
                hint: Some("name a project with `-P NAME`".into()),
            }),
        }
    }

    fn holder(&self, name: &Name) -> Holder {
        match self.project_record(name) {
            Ok(Some(ProjectRecord { git: Some(git), .. })) => Holder::Repository(git),
            Ok(Some(_)) => Holder::User,
            Ok(None) => Holder::Nobody,
            Err(Error::Corrupt { path, why, .. }) => {
                let hint = Some(format!("the sparks in it are there: name it with `-P {name}`"));
                Holder::Unknown(Error::Corrupt { path, why, hint })
            }
            Err(e) => Holder::Unknown(e),
        }
    }

    /// A project's record. `None` if there is no such project.
    pub(super) fn project_record(&self, name: &Name) -> Result<Option<ProjectRecord>> {
        let dir = self.pool.paths.project(name);
        let path = dir.join("project.json");
        match record::read(&path)? {
            // It appears together with its directory, so a directory without it is a damaged one.
            None if dir.is_dir() => match record::read(&path)? {
                // Made in between.
                Some(record) => Ok(Some(record)),
                None if !dir.is_dir() => Ok(None),
                None => Err(Error::corrupt(&path, "it is gone")),
            },
            other => Ok(other),
        }
    }

    fn describe(&self, name: Name, current: Option<&Name>) -> Result<ProjectInfo> {
        let (record, broken) = match self.project_record(&name) {
            Ok(record) => (record, None),
            Err(e) => (None, Some(e.to_string())),
        };
        let git = record.as_ref().and_then(|r| r.git.clone());
        Ok(ProjectInfo {
            id: record.as_ref().map(|r| r.id.clone()),
            created: record.as_ref().map(|r| r.created),
            git_exists: git.as_ref().is_some_and(|git| git.exists()),
            git: git.map(|git| git.to_string_lossy().into_owned()),
            sparks: names_in(&self.pool.paths.sparks(&name))?.len(),
            path: self.pool.paths.project(&name),
            current: current == Some(&name),
            broken,
            name,
        })
    }

    fn no_such_project(&self, name: &Name) -> Error {
        let names = names_in(&self.pool.paths.projects()).unwrap_or_default();
        Error::NotFound {
            kind: "project",
            name: name.to_string(),
            in_project: None,
            near: near(name.as_str(), names.iter().map(Name::as_str)),
        }
    }
}

/// All that is in a directory, whatever its name: nothing of it may be lost.
fn entries(dir: &Path) -> Result<Vec<String>> {
    let list = match std::fs::read_dir(dir) {
        Ok(list) => list,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", dir)(e)),
    };
    let mut names = Vec::new();
    for entry in list {
        names.push(entry.map_err(Error::io("list", dir))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn not_empty(project: &Name, sparks: &[String], volumes: &[String]) -> Error {
    let count =
        |n: usize, what: &str| (n > 0).then(|| format!("{n} {what}{}", if n == 1 { "" } else { "s" }));
    let parts: Vec<_> =
        [count(sparks.len(), "spark"), count(volumes.len(), "data volume")].into_iter().flatten().collect();
    let hint = match sparks {
        [] => format!("delete its data volumes first: `spark data list -P {project}`"),
        few if few.len() <= 5 => format!("delete them first: `spark delete -P {project} {}`", few.join(" ")),
        _ => format!("see them with `spark list -P {project}`, and delete them first"),
    };
    let state = format!("not empty, with {}", parts.join(" and "));
    Error::WrongState { action: "delete", kind: "project", name: project.to_string(), state, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_that_is_not_empty_says_with_what_and_what_to_type() {
        let name: Name = "shop".parse().unwrap();
        let e = not_empty(&name, &["db".into(), "web".into()], &["v".into()]);
        assert_eq!(
            e.to_string(),
            "cannot delete project `shop`: it is not empty, with 2 sparks and 1 data volume"
        );
        assert_eq!(e.hint().unwrap(), "delete them first: `spark delete -P shop db web`");
    }
}
