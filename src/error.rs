//! The one error type: what was attempted, on what, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::domain::limits::size;
use crate::domain::name::InvalidName;
use crate::domain::place::Place;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. [`Error::code`] is the stable word for programs, [`Error::hint`] the advice for people.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command was used wrongly.
    #[error("{message}")]
    Usage { message: String, hint: Option<String> },

    /// A named thing is not there. `near` holds existing names that look alike.
    #[error("{kind} `{name}` does not exist{}", place(in_project))]
    NotFound { kind: &'static str, name: String, in_project: Option<String>, near: Vec<String> },

    /// A name is taken.
    #[error("{kind} `{name}` exists already{}", place(in_project))]
    Exists { kind: &'static str, name: String, in_project: Option<String> },

    /// The thing is there, but not in a state that allows it.
    #[error("cannot {action} {kind} `{name}`: it is {state}")]
    WrongState { action: &'static str, kind: &'static str, name: String, state: String, hint: String },

    /// Somebody else is using it.
    #[error("{what} is busy: {why}")]
    Busy { what: String, why: String },

    /// A name breaks the rules for names.
    #[error("{0}")]
    InvalidName(#[from] InvalidName),

    /// This host, pool or root filesystem cannot do it.
    #[error("{what}")]
    NotSupported { what: String, hint: Option<String> },

    /// The host lacks something.
    #[error("{what}")]
    Host { what: String, hint: String, source: Option<io::Error> },

    /// The caller may not do this.
    #[error("{what}")]
    Denied { what: String, hint: String },

    /// A file of ours does not hold what it should.
    #[error("{} is damaged: {why}", path.display())]
    Corrupt { path: PathBuf, why: String, hint: Option<String> },

    /// A branch of the clone in a spark was not fetched, or not brought up to date.
    #[error("branch `{branch}` was not fetched: {why}")]
    NotFetched { branch: String, why: String, hint: String },

    /// A network, port or address cannot be had.
    #[error("{what}")]
    Network { what: String, hint: Option<String> },

    /// An image or archive is refused.
    #[error("cannot import {what}: {why}")]
    Image { what: String, why: String },

    /// An image could not be had from a registry, or given to it.
    #[error("cannot {action} {what}: {why}")]
    Registry { action: &'static str, what: String, why: String, code: Code, hint: Option<String> },
    /// A secret cannot be had, or not be delivered.
    #[error("{what}")]
    Secret { what: String, hint: String, source: Option<io::Error> },

    /// A system call on a path failed.
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    /// A system call that has no path failed.
    #[error("cannot {action}")]
    Sys { action: &'static str, source: io::Error },

    /// A container of a spark could not be started or changed. `failed` is a path and an errno, if it was a system call.
    #[error("cannot {action} spark `{spark}`: {why}")]
    Spark {
        action: &'static str,
        spark: String,
        why: String,
        code: Code,
        hint: Option<String>,
        failed: Option<Box<(PathBuf, i32)>>,
    },

    /// libcontainer refused. `detail` is its own words.
    #[error("cannot {action} container {id}: {detail}")]
    Runtime { action: &'static str, id: String, detail: String },

    /// A program that we ran failed.
    #[error("{program} failed{}", detail_of(detail))]
    Program { program: String, detail: String },

    /// The command to execute could not be started inside.
    #[error("cannot run `{command}` in spark `{spark}`: {source}")]
    Exec { command: String, spark: String, source: io::Error, hint: Option<String> },

    /// The kernel killed a process inside because no memory was left.
    #[error("{}", out_of_memory(spark, limit))]
    OutOfMemory { spark: String, limit: Option<u64>, ephemeral: bool },

    /// Undoing a failed operation failed too. Both are kept.
    #[error("{first}; and undoing it failed: {undo}")]
    Undo { first: Box<Error>, undo: Box<Error> },

    /// A test asked for it.
    #[error("fault point {name}")]
    Fault { name: &'static str },
}

fn place(project: &Option<String>) -> String {
    project.as_ref().map(|p| format!(" in project `{p}`")).unwrap_or_default()
}

fn out_of_memory(spark: &str, limit: &Option<u64>) -> String {
    match limit {
        Some(limit) => {
            format!(
                "spark `{spark}` ran out of its {} of memory, and a process in it was killed",
                size(*limit)
            )
        }
        None => format!("the host ran out of memory, and a process in spark `{spark}` was killed"),
    }
}

fn detail_of(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

/// The stable words of the command line's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Usage,
    NotFound,
    Exists,
    WrongState,
    Busy,
    InvalidName,
    NoSpace,
    NotSupported,
    Host,
    Denied,
    Corrupt,
    Image,
    Network,
    OutOfMemory,
    Secret,
    Internal,
}

impl Code {
    /// The word for what the kernel says.
    pub fn of(e: &io::Error) -> Code {
        match e.raw_os_error() {
            Some(libc::ENOSPC) | Some(libc::EDQUOT) => Code::NoSpace,
            Some(libc::EACCES) | Some(libc::EPERM) => Code::Denied,
            Some(libc::EROFS) | Some(libc::EMFILE) | Some(libc::ENFILE) | Some(libc::ENOMEM) => Code::Host,
            Some(libc::EOPNOTSUPP) | Some(libc::ENOSYS) => Code::NotSupported,
            Some(libc::EUCLEAN) => Code::Corrupt,
            Some(libc::ENOENT) | Some(libc::ENOTDIR) => Code::NotFound,
            _ => Code::Internal,
        }
    }

    /// The word as it stands in `--json` output.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Usage => "usage",
            Code::NotFound => "not_found",
            Code::Exists => "exists",
            Code::WrongState => "wrong_state",
            Code::Busy => "busy",
            Code::InvalidName => "invalid_name",
            Code::NoSpace => "no_space",
            Code::NotSupported => "not_supported",
            Code::Host => "host",
            Code::Denied => "denied",
            Code::Corrupt => "corrupt",
            Code::Image => "image",
            Code::Network => "network",
            Code::OutOfMemory => "out_of_memory",
            Code::Secret => "secret",
            Code::Internal => "internal",
        }
    }
}

impl Error {
    /// An I/O error on `path`, for `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// An I/O error without a path, for `map_err`.
    pub fn sys(action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Sys { action, source }
    }

    /// A damaged file of ours.
    pub fn corrupt(path: &Path, why: impl ToString) -> Error {
        Error::Corrupt { path: path.to_owned(), why: why.to_string(), hint: None }
    }

    /// Wrong use, without advice.
    pub fn usage(message: impl Into<String>) -> Error {
        Error::Usage { message: message.into(), hint: None }
    }

    /// A secret that cannot be had.
    pub fn secret(what: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Secret { what: what.into(), hint: hint.into(), source: None }
    }

    /// Something in a spark's own root filesystem keeps it from starting. `path` is as inside, `root` is where that is on the
    /// host.
    pub fn in_root(spark: &str, path: &Path, what: &str, root: &Path) -> Error {
        let hint =
            format!("mend it in {}, or go back to one of `spark snapshot list {spark}`", root.display());
        Error::Spark {
            action: "start",
            spark: spark.to_owned(),
            why: format!("{} in its root filesystem is {what}", path.display()),
            code: Code::NotSupported,
            hint: Some(hint),
            failed: None,
        }
    }

    /// The same about the spark whose container it is about: people know it by its name.
    pub fn of_spark(self, spark: impl ToString) -> Error {
        match self {
            Error::Runtime { action, detail, .. } => {
                let (spark, hint) = (spark.to_string(), Some(SEE_DOCTOR.into()));
                Error::Spark { action, spark, why: detail, code: Code::Internal, hint, failed: None }
            }
            other => other,
        }
    }

    /// The stable word for this error.
    pub fn code(&self) -> Code {
        match self {
            Error::Usage { .. } => Code::Usage,
            Error::NotFound { .. } => Code::NotFound,
            Error::Exists { .. } => Code::Exists,
            Error::WrongState { .. } => Code::WrongState,
            Error::Busy { .. } => Code::Busy,
            Error::InvalidName(_) => Code::InvalidName,
            Error::NotSupported { .. } => Code::NotSupported,
            Error::Host { source, .. } => match source {
                Some(e) if is_full(e) => Code::NoSpace,
                _ => Code::Host,
            },
            Error::Denied { .. } => Code::Denied,
            Error::Corrupt { .. } | Error::NotFetched { .. } => Code::Corrupt,
            Error::Image { .. } => Code::Image,
            Error::Registry { code, .. } => *code,
            Error::Secret { .. } => Code::Secret,
            Error::Network { .. } => Code::Network,
            Error::Io { source, .. } | Error::Sys { source, .. } => Code::of(source),
            Error::Spark { code, .. } => *code,
            Error::Runtime { .. } | Error::Program { .. } | Error::Fault { .. } => Code::Internal,
            Error::Exec { source, .. } => Code::of(source),
            Error::OutOfMemory { .. } => Code::OutOfMemory,
            Error::Undo { first, .. } => first.code(),
        }
    }

    /// What the user can do about it in an installation, if there is something: [`hint`](Self::hint), and what a full or
    /// read-only disk means where the path that failed is.
    pub fn hint_at(&self, place: &Place) -> Option<String> {
        match self {
            Error::Io { path, source, .. } => {
                io_hint(source).or_else(|| Disk::of(path, place).hint(source, place))
            }
            Error::Spark { failed: Some(failed), .. } => {
                let (path, errno) = failed.as_ref();
                let source = io::Error::from_raw_os_error(*errno);
                self.hint().or_else(|| Disk::of(path, place).hint(&source, place))
            }
            Error::Undo { first, .. } => first.hint_at(place).or_else(|| self.hint()),
            _ => self.hint(),
        }
    }

    /// What the user can do about it, if there is something, wherever the files are that it is about.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Usage { hint, .. }
            | Error::NotSupported { hint, .. }
            | Error::Network { hint, .. }
            | Error::Corrupt { hint, .. }
            | Error::Spark { hint, .. }
            | Error::Exec { hint, .. }
            | Error::Registry { hint, .. } => hint.clone(),
            Error::NotFound { near, kind, name, .. } => match near.first() {
                Some(name) => Some(format!("did you mean `{name}`?")),
                None => list_hint(kind, name),
            },
            Error::Exists { kind: "spark", name, .. } => {
                Some(format!("choose another name, or remove it with `spark delete {name}`"))
            }
            Error::Exists { .. } => Some("choose another name, or delete it first".into()),
            Error::WrongState { hint, .. }
            | Error::Host { hint, .. }
            | Error::Secret { hint, .. }
            | Error::NotFetched { hint, .. }
            | Error::Denied { hint, .. } => Some(hint.clone()),
            Error::InvalidName(e) => Some(e.hint()),
            Error::Io { source, .. } | Error::Sys { source, .. } => io_hint(source),
            Error::Runtime { .. } => Some(SEE_DOCTOR.into()),
            Error::Undo { first, .. } => {
                first.hint().or_else(|| Some("collect what is left with `spark gc`".into()))
            }
            Error::OutOfMemory { limit: None, .. } => {
                Some("see what uses it with `spark top -a`, and limit that with `spark set`".into())
            }
            Error::OutOfMemory { ephemeral: true, .. } => Some("give it more with `--memory SIZE`".into()),
            Error::OutOfMemory { spark, .. } => {
                Some(format!("give it more with `spark set {spark} --memory SIZE`"))
            }
            Error::Busy { .. } => Some("try again when the other command has ended".into()),
            Error::Image { .. } | Error::Program { .. } | Error::Fault { .. } => None,
        }
    }
}

/// Where the reason may be the host.
const SEE_DOCTOR: &str = "see what this host lacks with `spark doctor`";

/// How to list what exists of a kind. `None` for a kind that no command lists.
fn list_hint(kind: &str, name: &str) -> Option<String> {
    let hint = match kind {
        "snapshot" => {
            let spark = name.split('@').next().unwrap_or_default();
            format!("list the snapshots with `spark snapshot list {spark}`")
        }
        "volume snapshot" => {
            let volume = name.split('@').next().unwrap_or_default();
            format!("list the snapshots with `spark data snapshots {volume}`")
        }
        "data volume" => "list the data volumes with `spark data list`".into(),
        "attached data volume" => "see what is attached with `spark data list`".into(),
        "parent snapshot" => {
            "receive the stream it was sent with first, or send the spark whole, without `--since`".into()
        }
        "image" => format!("pull it first: `spark base pull {name}`"),
        "base" => "list the bases with `spark base list`".into(),
        "project" => "list the projects with `spark project list`".into(),
        "container" => "list them with `spark-oci list`, of the same `--root`".into(),
        "pool" => "make one with `spark pool init`".into(),
        "file" => "list what differs with `spark diff`, without a path".into(),
        "group" => "name one of the spark's own /etc/group, or give a number".into(),
        "user" => "name one of the spark's own /etc/passwd, or give a number".into(),
        "secret" => "list the secrets with `spark secrets list`".into(),
        "deleted spark" => "list what can be brought back with `spark list --deleted`".into(),
        "spark" => "list this project's sparks with `spark list`".into(),
        _ => return None,
    };
    Some(hint)
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOSPC) | Some(libc::EDQUOT))
}

/// What an error means wherever it happened.
fn io_hint(e: &io::Error) -> Option<String> {
    match e.raw_os_error()? {
        libc::EACCES | libc::EPERM if !rustix::process::geteuid().is_root() => {
            Some("run it as root: `sudo spark …`".into())
        }
        libc::EMFILE | libc::ENFILE => Some("too many open files: raise `ulimit -n`".into()),
        _ => None,
    }
}

/// Whose disk a path is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    /// The pool, which `spark` looks after.
    Pool,
    /// The disk below it, or the memory below `SPARK_RUN`.
    Host,
    /// Somewhere else: the caller's own.
    Caller,
}

impl Disk {
    fn of(path: &Path, place: &Place) -> Disk {
        match path {
            // As `spark cp` names what is in a spark.
            path if path.starts_with(place.pool()) || is_inside(path) => Disk::Pool,
            path if path.starts_with(&place.root) || path.starts_with(&place.run) => Disk::Host,
            _ => Disk::Caller,
        }
    }

    fn hint(self, e: &io::Error, place: &Place) -> Option<String> {
        let hint = match (self, e.raw_os_error()?) {
            (Disk::Pool, libc::EDQUOT) => {
                "a spark's share of the disk is used up: remove files in it, or raise it with `spark set NAME --disk SIZE`".into()
            }
            (Disk::Pool, libc::ENOSPC) => {
                "free space with `spark gc` or `spark delete --now`, or grow it with `spark pool grow`".into()
            }
            (Disk::Pool, libc::EROFS) => {
                "the pool is read-only: look at `dmesg` for btrfs errors, or remount it writable".into()
            }
            (Disk::Host, libc::ENOSPC | libc::EDQUOT) => {
                format!("free space on the host, below {} and {}", place.root.display(), place.run.display())
            }
            _ => return None,
        };
        Some(hint)
    }
}

/// Whether a path is `SPARK:PATH`.
fn is_inside(path: &Path) -> bool {
    path.to_str().and_then(|path| path.split_once(":/")).is_some_and(|(spark, _)| !spark.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_command_lists_has_no_hint_that_lists_sparks() {
        let missing = |kind| {
            Error::NotFound { kind, name: "x".into(), in_project: None, near: Vec::new() }
                .hint()
                .unwrap_or_default()
        };
        assert!(missing("spark").contains("spark list"));
        assert!(missing("group").contains("/etc/group"));
        for kind in ["cgroup", "process", "bundle template"] {
            assert_eq!(missing(kind), "", "{kind}");
        }
    }

    #[test]
    fn a_full_disk_is_no_space_and_says_how_to_free_some() {
        let place = Place { root: "/root".into(), run: "/run/spark".into() };
        let full = |path: &str| Error::io("write", path)(io::Error::from_raw_os_error(libc::ENOSPC));
        for path in ["/root/pool/x", "web:/x", "p/web@s:/x"] {
            assert_eq!(full(path).code(), Code::NoSpace);
            assert!(full(path).hint_at(&place).unwrap().contains("spark gc"), "{path}");
        }
        for path in ["/root/state/x", "/root/pool.btrfs", "/run/spark/bundles"] {
            assert!(full(path).hint_at(&place).unwrap().contains("on the host"), "{path}");
        }
    }

    #[test]
    fn a_disk_of_the_callers_is_no_concern_of_the_pools() {
        let place = Place::default();
        for errno in [libc::ENOSPC, libc::EDQUOT, libc::EROFS] {
            let e = || io::Error::from_raw_os_error(errno);
            for path in ["/dev/full", "/mnt/x", "x", "/mnt/web:/x", "/var/lib/spark-pool"] {
                assert_eq!(Error::io("write", path)(e()).hint_at(&place), None, "{path}: {errno}");
            }
            assert_eq!(Error::sys("write to standard output")(e()).hint_at(&place), None);
        }
    }

    #[test]
    fn a_missing_spark_suggests_a_near_name() {
        let e = Error::NotFound {
            kind: "spark",
            name: "wbe".into(),
            in_project: Some("shop".into()),
            near: vec!["web".into()],
        };
        assert_eq!(e.to_string(), "spark `wbe` does not exist in project `shop`");
        assert_eq!(e.hint().unwrap(), "did you mean `web`?");
    }
}
