//! The host's `git`: run as whoever a repository belongs to, and told to execute nothing and to ask nobody.
//!
//! Of the pool it sees one staged directory, which belongs to that user too. So git is the host's root only where the
//! repository is root's. What it parses may come from strangers, so it is confined to that directory and the repository:
//! see [`reach`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;

use self::reach::{Reach, Walls};
use crate::domain::place::Place;
use crate::error::{Error, Result};
use crate::pool::stage::Stage;
use crate::runtime::users;
use crate::sys;
use crate::sys::caller::Caller;
use crate::sys::confine::Confinement;
use crate::sys::run::Ids;

pub(crate) mod author;
pub(crate) mod reach;
pub(crate) mod repository;
mod settings;
pub(crate) mod unfilled;

/// What holds for every call, whatever the repository's own configuration says.
const ALWAYS: [&str; 5] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.fsync=all",
    "gc.auto=0",
    "maintenance.auto=false",
];

/// Longest message of git's that is passed on.
const MESSAGE: usize = 2000;

/// Most that is read of what git writes: a small tree can have more paths than there is memory.
const OUTPUT: u64 = 128 << 20;

/// Whose configuration counts, besides the repository's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Config {
    /// Nobody's.
    None,
    /// The owner's and the host's: which files are ignored, and how they are cleaned, is said there.
    Owner,
}

/// The hash that ids of a repository are made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Sha1,
    Sha256,
}

impl Format {
    /// The length of an id in hexadecimal.
    pub(crate) fn length(self) -> usize {
        match self {
            Format::Sha1 => 40,
            Format::Sha256 => 64,
        }
    }
}

/// Git for one repository.
#[derive(Debug, Clone)]
pub(crate) struct Git {
    program: PathBuf,
    ids: Ids,
    home: PathBuf,
    /// The directory of the host in or around which the repository was found, and its git directory.
    source: PathBuf,
    repository: PathBuf,
    walls: Walls,
    /// What calls are confined to, as far as there were any.
    made: Rc<RefCell<BTreeMap<Reach, Arc<Confinement>>>>,
    /// The staged directory, as we see it.
    dir: PathBuf,
    /// The same as git sees it.
    seen: PathBuf,
}

/// One call: `git -C AT VERB ARGS`.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub at: &'a Path,
    pub verb: &'a str,
    pub args: &'a [&'a OsStr],
    pub env: &'a [(&'a str, &'a OsStr)],
    pub config: Config,
    pub reach: Reach,
    pub input: Option<File>,
    /// Receives standard output in place of the caller, for what may be large.
    pub output: Option<File>,
}

impl<'a> Call<'a> {
    /// A call that needs nothing else.
    pub(crate) fn of(at: &'a Path, verb: &'a str, args: &'a [&'a OsStr]) -> Call<'a> {
        let (config, reach) = (Config::None, Reach::Repository);
        Call { at, verb, args, env: &[], config, reach, input: None, output: None }
    }
}

impl Git {
    /// Git as the owner of `repository`, which was found around `source`, with the directory `git` of `stage` to work in,
    /// which is made.
    ///
    /// # Errors
    /// `host` without git.
    pub(crate) fn of(source: &Path, repository: &Path, stage: &Stage, place: &Place) -> Result<Git> {
        let program = reach::program().ok_or_else(|| Error::Host {
            what: "the host has no git, which clones and pulls".into(),
            hint: "install it: `apt-get install git`".into(),
            source: None,
        })?;
        let meta = std::fs::metadata(repository).map_err(Error::io("inspect", repository))?;
        // A user of a directory service is in no /etc/passwd: the numbers do, and such a home holds nothing.
        let user = users::find(Path::new("/"), &meta.uid().to_string()).ok();
        let (gid, groups, home) = match user {
            Some(user) if user.name.is_some() => (user.gid, user.groups, user.home),
            _ => (meta.gid(), Vec::new(), "/nonexistent".into()),
        };
        let (dir, seen) = (stage.path().join("git"), place.run.join("git"));
        let make = |path: &Path, mode| sys::file::make_dirs(path, mode).map_err(Error::io("create", path));
        make(&place.run, 0o711)?;
        make(&seen, 0o711)?;
        make(&dir, 0o700)?;
        let git = Git {
            program,
            ids: Ids { uid: meta.uid(), gid, groups },
            home,
            source: source.to_owned(),
            repository: repository.to_owned(),
            walls: Walls::new()?,
            made: Rc::default(),
            dir,
            seen,
        };
        git.give(&git.dir)?;
        Ok(git)
    }

    /// Git as `caller`, whose configuration names the author of commits. The repository's owner may be another user.
    pub(crate) fn as_caller(&self, caller: &Caller) -> Git {
        Git { ids: caller.ids.clone(), home: caller.home.clone(), ..self.clone() }
    }

    /// Whether git runs as `user`.
    pub(crate) fn runs_as(&self, user: &Ids) -> bool {
        self.ids.uid == user.uid
    }

    /// The hash of a repository's ids, `sha1` or `sha256`.
    pub(crate) fn object_format(&self, repository: &Path) -> Result<Format> {
        let name = self.run(Call::of(repository, "rev-parse", args!["--show-object-format"]))?;
        Ok(if name.trim() == "sha256" { Format::Sha256 } else { Format::Sha1 })
    }

    /// Whether a repository may lack objects that it can fetch from a remote: a partial clone.
    pub(crate) fn is_partial(&self, repository: &Path) -> Result<bool> {
        let keys = r"^(extensions\.partialclone|remote\..*\.promisor)$";
        Ok(self.ask(Call::of(repository, "config", args!["--get-regexp", keys]))?.is_ok())
    }

    /// Gives the directory `from`, which only we can enter, to the owner, as `name` in the staged one.
    pub(crate) fn take_in(&self, from: &Path, name: &str) -> Result<()> {
        self.give(from)?;
        sys::file::rename_new(from, &self.dir.join(name)).map_err(Error::io("move", from))
    }

    /// Opens the directory `path` in the staged one. The owner, who may write there, can lead nobody away with a link.
    pub(crate) fn take_out(&self, path: &str) -> Result<OwnedFd> {
        let dir = sys::file::open_dir(&self.dir).map_err(Error::io("open", &self.dir))?;
        sys::tree::open_dir(dir, path.as_bytes()).map_err(Error::io("open", self.dir.join(path)))
    }

    /// Gives a directory with what is in it to the owner. Links are not followed.
    fn give(&self, top: &Path) -> Result<()> {
        let mut todo = vec![top.to_owned()];
        while let Some(path) = todo.pop() {
            let (uid, gid) = (Some(self.ids.uid), Some(self.ids.gid));
            std::os::unix::fs::lchown(&path, uid, gid).map_err(Error::io("give away", &path))?;
            if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
                for entry in std::fs::read_dir(&path).map_err(Error::io("list", &path))? {
                    todo.push(entry.map_err(Error::io("list", &path))?.path());
                }
            }
        }
        Ok(())
    }

    /// A path in the staged directory, for git.
    pub(crate) fn its(&self, path: &str) -> PathBuf {
        self.seen.join(path)
    }

    /// Runs git and returns what it wrote.
    ///
    /// # Errors
    /// What git says if it fails.
    pub(crate) fn run(&self, call: Call<'_>) -> Result<String> {
        let program = format!("git {}", call.verb);
        self.ask(call)?.map_err(|detail| Error::Program { program, detail })
    }

    /// The same, where a failure is an answer too: what git said.
    pub(crate) fn ask(&self, call: Call<'_>) -> Result<std::result::Result<String, String>> {
        let verb = call.verb;
        let mut command = self.command(&call)?;
        let errors = input("")?;
        let ours = errors.try_clone().map_err(Error::sys("run git"))?;
        command.stdin(call.input.map_or_else(Stdio::null, Stdio::from)).stderr(errors);
        command.stdout(call.output.map_or_else(Stdio::piped, Stdio::from));
        let mut child = command.spawn().map_err(Error::sys("run git"))?;
        let mut output = Vec::new();
        let read = match child.stdout.take() {
            Some(pipe) => pipe.take(OUTPUT + 1).read_to_end(&mut output).map(drop),
            None => Ok(()),
        };
        // The pipe is closed: git does not write on.
        let status = child.wait().and_then(|status| read.map(|()| status)).map_err(Error::sys("run git"))?;
        tracing::debug!(verb, ?status, "git");
        if output.len() as u64 > OUTPUT {
            return Ok(Err(format!("it wrote more than {} MiB", OUTPUT >> 20)));
        }
        if status.success() {
            return Ok(Ok(String::from_utf8_lossy(&output).into_owned()));
        }
        said(ours).map(Err)
    }

    fn command(&self, call: &Call<'_>) -> Result<Command> {
        let confinement = self.confinement(call.reach, call.at)?;
        let mut command = Command::new(&self.program);
        for setting in ALWAYS {
            command.args(["-c", setting]);
        }
        command.arg("-C").arg(call.at).arg(call.verb).args(call.args);
        command.env_clear();
        command.env("PATH", sys::host::path());
        command.envs([
            ("LC_ALL", "C.UTF-8"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_ALLOW_PROTOCOL", "file"),
        ]);
        command
            .env("TMPDIR", &self.seen)
            .env("HOME", &self.home)
            .envs(call.env.iter().copied())
            .current_dir("/");
        if call.config == Config::None {
            command.envs([
                ("GIT_CONFIG_NOSYSTEM", "1"),
                ("GIT_CONFIG_GLOBAL", "/dev/null"),
                ("GIT_ATTR_NOSYSTEM", "1"),
                ("XDG_CONFIG_HOME", "/nonexistent"),
            ]);
        }
        sys::run::as_user(&mut command, &self.ids, (&self.dir, &self.seen), confinement)
            .map_err(Error::io("show to git", &self.dir))?;
        Ok(command)
    }
}

/// A file without a name that holds `text`, for git to read.
pub(crate) fn input(text: &str) -> Result<File> {
    let make = || {
        let memory = rustix::fs::memfd_create("input", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut file = File::from(memory);
        file.write_all(text.as_bytes())?;
        file.rewind()?;
        Ok(file)
    };
    make().map_err(Error::sys("write the input of git"))
}

/// Up to five names, and how many more there are.
pub(crate) fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 5;
    match names.get(..SHOWN) {
        Some(shown) if names.len() > SHOWN => {
            format!("{} and {} more", shown.join(", "), names.len() - SHOWN)
        }
        _ => names.join(", "),
    }
}

/// What git wrote to its standard error.
fn said(mut errors: File) -> Result<String> {
    let mut text = Vec::new();
    let read = errors.rewind().and_then(|()| errors.take(4 * MESSAGE as u64).read_to_end(&mut text));
    read.map_err(Error::sys("read what git says"))?;
    let text = String::from_utf8_lossy(&text);
    let said = text.trim().strip_prefix("fatal: ").unwrap_or(text.trim());
    Ok(match said.char_indices().nth(MESSAGE) {
        Some((end, _)) => format!("{}…", &said[..end]),
        None => said.to_owned(),
    })
}

/// Arguments of mixed kinds.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$(AsRef::<std::ffi::OsStr>::as_ref(&$arg)),*] };
}
pub(crate) use args;
