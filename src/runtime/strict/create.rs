//! A container is made of a bundle, by libcontainer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::{LinuxDeviceCgroup, Spec};
use rustix::fs::{Access, AtFlags, CWD};
use rustix::termios::Winsize;
use serde_json::Value;

use super::enter::below_root;
use super::listener::Listener;
use super::making::Making;
use super::paths::Paths;
use super::scope::Unit;
use super::spec::{corrected, has_home};
use super::staging::Staging;
use super::state::Container;
use crate::error::{Error, Result};
use crate::runtime::cgroup::Cgroup;
use crate::runtime::confine::Confinement;
use crate::runtime::devices;
use crate::runtime::enter::{candidates, execute};
use crate::runtime::live;
use crate::runtime::place::no_mount_namespace;
use crate::runtime::users;
use crate::runtime::youki::{Handle, leave_deleted_directory};
use crate::sys;
use crate::sys::deadline::Deadline;
use crate::sys::process::ProcessId;

/// What is needed to make a container.
#[derive(Debug)]
pub struct Creation {
    pub container: Container,
    /// The bundle, absolute and without links.
    pub bundle: PathBuf,
    /// Its `config.json`.
    pub config: Value,
    pub cgroup: Group,
    /// How its first process is confined.
    pub confinement: Confinement,
    /// Where the terminal's other side is sent.
    pub console_socket: Option<PathBuf>,
    /// A directory for mounts that nobody else sees.
    pub stage: PathBuf,
    /// How many descriptors after the standard ones it inherits.
    pub preserve_fds: u32,
    pub no_pivot: bool,
    /// Whether it gets a session keyring of its own, and not the caller's.
    pub new_keyring: bool,
}

/// Where a container's processes are limited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Group {
    /// At a path in every hierarchy, made by libcontainer.
    Path(String),
    /// Where systemd makes it.
    Unit(Unit),
}

impl Creation {
    /// Makes the container: its first process waits for the start. This process is changed for good: it has left its
    /// groups, and what libcontainer changes.
    ///
    /// # Errors
    /// `exists` if the name is taken; `internal` with libcontainer's words, and then nothing is left of it.
    pub fn run(&self) -> Result<ProcessId> {
        let container = &self.container;
        sys::mount::check_root().map_err(no_mount_namespace)?;
        let making = Making::of(container)?;
        if container.dir().exists() {
            return Err(Error::Exists { kind: "container", name: container.id.clone(), in_project: None });
        }
        leave_deleted_directory()?;
        // libcontainer lets the first process keep these where the configuration names none.
        sys::exec::leave_groups().map_err(Error::sys("leave the caller's groups"))?;
        if self.new_keyring {
            sys::exec::leave_keyring().map_err(Error::sys("leave the caller's session keyring"))?;
        }
        crate::runtime::enter::give_streams(self.host_uid())
            .map_err(Error::sys("pass the standard streams on"))?;
        let group = match &self.cgroup {
            Group::Path(path) => Some(Path::new(path)),
            Group::Unit(_) => None,
        };
        if let Some(path) = group
            && live::is_used(path)
        {
            // Whoever is deleted first would take the other one with it.
            let what = format!("the cgroup {}", path.display());
            return Err(Error::Busy { what, why: "other processes are in it".into() });
        }
        let handle = group.map(|path| self.handle(path));
        if let Some(handle) = &handle {
            making.note(&handle.cgroup, &handle.before)?;
        }
        let _watcher = making.watch()?;
        self.make(&making).map_err(|first| {
            // libcontainer removes what it has begun, but for where it fails early, or is not patient enough.
            let removed = if container.dir().exists() { container.remove() } else { Ok(()) };
            let purge = |handle: Handle| handle.purge().and_then(|()| handle.put_back());
            match removed.and_then(|()| handle.map_or(Ok(()), purge)) {
                Ok(()) => first,
                Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
            }
        })
    }

    /// The container with a cgroup that nobody uses, before anything is made of it.
    fn handle(&self, cgroup: &Path) -> Handle {
        let (id, oci) = (self.container.id.clone(), self.container.root.clone());
        let mut handle = Handle { id, oci, cgroup: cgroup.into(), before: Vec::new() };
        handle.before = handle.cgroups().iter().flat_map(|top| live::with_below(top)).collect();
        handle
    }

    fn make(&self, making: &Making) -> Result<ProcessId> {
        let (group, scope) = match &self.cgroup {
            Group::Path(path) => (path.clone(), None),
            Group::Unit(unit) => {
                let scope = unit.start(&self.container.id)?;
                (scope.cgroup.to_string_lossy().into_owned(), Some(scope))
            }
        };
        let mut config = self.for_libcontainer(&group);
        let staging = Staging::new(self, &mut config)?;
        let staged = Staged::new(self, making, &config)?;
        let (listener, confinement) = match self.confinement.notifies() {
            false => (None, self.confinement.clone()),
            true => {
                let (listener, to) = Listener::of(&self.config)?;
                (Some(listener), self.confinement.heard_by(to))
            }
        };
        let payload = Payload::of(&self.config, confinement)?;
        let joined = Cgroup::new(Path::new(&group)).join_unmanaged()?;
        let built = self.build(&staged.link(), payload);
        // Before anything is removed: this process would be ended with what is in there.
        joined.leave()?;
        let pid = built?;
        drop(staged);
        drop(staging);
        if let Some(listener) = listener {
            listener.introduce(self, pid)?;
        }
        let init = ProcessId::of(pid).map_err(Error::sys("identify the first process"))?;
        self.raise_loopback(pid)?;
        if let Some(dir) = Cgroup::new(&self.container.cgroup()?).unified() {
            devices::keep(&dir, &self.device_rules()?)?;
        }
        if scope.is_some() {
            // It counts as the container's while it is there.
            drop(scope);
            self.container.limit(self.config.pointer("/linux/resources").unwrap_or(&Value::Null))?;
        }
        crate::fault::point("oci.create.made")?;
        self.container.record(init.clone(), self)?;
        Ok(init)
    }

    fn device_rules(&self) -> Result<Vec<LinuxDeviceCgroup>> {
        let rules = self.config.pointer("/linux/resources/devices").filter(|rules| !rules.is_null());
        let rules = rules.map(|rules| serde_json::from_value(rules.clone())).transpose();
        Ok(rules
            .map_err(|e| {
                Error::usage(format!("linux.resources.devices is not as the specification has it: {e}"))
            })?
            .unwrap_or_default())
    }

    /// The configuration that libcontainer is to do.
    fn for_libcontainer(&self, group: &str) -> Value {
        let mut config = corrected(&self.config, group);
        if let (Group::Unit(_), Some(linux)) = (&self.cgroup, config["linux"].as_object_mut()) {
            // They come when the scope is the container's alone.
            linux.remove("resources");
        }
        config
    }

    /// The host's number of the program's user, to whom pipes among the standard streams have to belong: it may open
    /// them anew, as `/dev/stderr`. None where that is not known, or where they are left for a terminal.
    fn host_uid(&self) -> Option<u32> {
        let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64);
        let process = self.config.get("process")?;
        if process.get("terminal") == Some(&Value::Bool(true)) {
            return None;
        }
        let uid = process.get("user").and_then(|user| number(user, "uid")).unwrap_or(0);
        let namespaces = self.config.pointer("/linux/namespaces").and_then(Value::as_array);
        let Some(own) = namespaces.into_iter().flatten().find(|n| n["type"] == "user") else {
            return uid.try_into().ok();
        };
        if own["path"].as_str().is_some_and(|path| !path.is_empty()) {
            return None;
        }
        let maps = self.config.pointer("/linux/uidMappings").and_then(Value::as_array);
        mapped(maps?, uid)
    }

    fn build(&self, bundle: &Path, payload: Payload) -> Result<i32> {
        let failed = |e: libcontainer::error::LibcontainerError| self.container.failed("create", &e);
        let made = ContainerBuilder::new(self.container.id.clone(), SyscallType::default())
            .with_root_path(&self.container.root)
            .map_err(failed)?
            .with_executor(payload)
            .with_console_socket(self.console_socket.as_ref())
            .with_preserved_fds(self.preserve_fds as i32)
            .validate_id()
            .map_err(failed)?
            .as_init(bundle)
            .with_systemd(false)
            .with_detach(true)
            .with_no_pivot(self.no_pivot)
            .build()
            .map_err(failed)?;
        Ok(made.pid().map(|p| p.as_raw()).unwrap_or_default())
    }

    /// As runc does: a network namespace that is new begins with even that device down.
    fn raise_loopback(&self, pid: i32) -> Result<()> {
        let namespaces = self.config.pointer("/linux/namespaces").and_then(Value::as_array);
        let is_new = |n: &Value| n["type"] == "network" && n["path"].as_str().unwrap_or_default().is_empty();
        if !namespaces.into_iter().flatten().any(is_new) {
            return Ok(());
        }
        let failed = Error::sys("set up the loopback device");
        let raise = || match sys::net::raise_loopback_of(pid) {
            Ok(_) => 0,
            Err(e) => e.raw_os_error().unwrap_or(libc::EIO),
        };
        // In a child: whoever raises it is in that namespace from then on.
        let ended =
            sys::process::fork(raise).and_then(|child| sys::deadline::reap(child, Deadline::inside()));
        match ended.map(|e| e.map(|e| e.status())) {
            Ok(Some(0)) => Ok(()),
            Ok(errno) => Err(failed(io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO)))),
            Err(e) => Err(failed(e)),
        }
    }
}

/// The host's number of a user or group, by mappings of the configuration.
pub(super) fn mapped(maps: &[Value], id: u64) -> Option<u32> {
    let number = |map: &Value, key: &str| map.get(key).and_then(Value::as_u64);
    maps.iter().find_map(|map| {
        let first = number(map, "containerID").unwrap_or(0);
        let offset = id.checked_sub(first).filter(|offset| Some(*offset) < number(map, "size"))?;
        number(map, "hostID").unwrap_or(0).checked_add(offset)?.try_into().ok()
    })
}

/// How libcontainer gets another `config.json` than the bundle's, and yet has the bundle's name.
///
/// It reads `LINK/config.json`, and after that asks what `LINK` is the name of. So the link leads to a directory with a
/// fifo first. Whoever writes into that changes the link in between: a reader learns that it has read all only when the
/// writer closes (docs/adr/0014).
struct Staged {
    dir: tempfile::TempDir,
    writer: i32,
}

impl Staged {
    fn new(creation: &Creation, making: &Making, config: &Value) -> Result<Staged> {
        let dir = tempfile::tempdir_in(making.dir()).map_err(Error::io("write to", making.dir()))?;
        let config = serde_json::to_vec(config)
            .map_err(|e| Error::Sys { action: "write config.json", source: e.into() })?;
        let top = dir.path().to_owned();
        let prepare = || -> io::Result<i32> {
            let load = top.join("load");
            fs::create_dir(&load)?;
            let fifo = load.join("config.json");
            rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)?;
            std::os::unix::fs::symlink(&load, top.join("bundle"))?;
            std::os::unix::fs::symlink(&creation.bundle, top.join("real"))?;
            sys::process::fork(|| {
                let write = || -> io::Result<()> {
                    let mut writer = fs::File::options().write(true).open(&fifo)?;
                    fs::rename(top.join("real"), top.join("bundle"))?;
                    io::Write::write_all(&mut writer, &config)
                };
                i32::from(write().is_err())
            })
        };
        let writer = prepare().map_err(Error::io("write to", dir.path()))?;
        Ok(Staged { dir, writer })
    }

    fn link(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // It waits for good if nobody read.
        let _ = sys::deadline::end_child(self.writer);
    }
}

/// What becomes of the first process: the program of the configuration, with exactly that environment.
#[derive(Debug, Clone)]
struct Payload {
    /// `KEY=VALUE`, in the order of the configuration.
    env: Vec<String>,
    args: Vec<String>,
    uid: u32,
    cwd: PathBuf,
    confinement: Confinement,
    paths: Paths,
    size: Option<(u16, u16)>,
    /// What socket activation adds.
    added: RefCell<Vec<String>>,
}

impl Payload {
    fn of(config: &Value, confinement: Confinement) -> Result<Payload> {
        let strings = |at: &str| -> Vec<String> {
            let list = config.pointer(at).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let number = |at: &str| config.pointer(at).and_then(Value::as_u64);
        let side = |at: &str| number(at).and_then(|n| u16::try_from(n).ok());
        let terminal = config.pointer("/process/terminal") == Some(&Value::Bool(true));
        Ok(Payload {
            env: strings("/process/env"),
            args: strings("/process/args"),
            uid: number("/process/user/uid").and_then(|n| n.try_into().ok()).unwrap_or(0),
            cwd: config.pointer("/process/cwd").and_then(Value::as_str).unwrap_or("/").into(),
            confinement,
            paths: Paths::of(config)?,
            size: side("/process/consoleSize/height")
                .zip(side("/process/consoleSize/width"))
                .filter(|_| terminal),
            added: RefCell::default(),
        })
    }

    /// In the container, as its user with every capability: what libcontainer would do in its own way.
    fn confine(&self) -> Result<(), String> {
        self.paths.apply()?;
        // libcontainer has entered it, but something may be masked there now.
        let entered = rustix::process::chdir(&self.cwd);
        let limit = || {
            self.confinement.before_drop()?;
            self.confinement.drop_capabilities(self.uid)
        };
        limit().map_err(|e| format!("cannot confine the first process: {e}"))?;
        let entered = match entered {
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => rustix::process::chdir(&self.cwd),
            entered => entered,
        };
        entered
            .map_err(io::Error::from)
            .and_then(|()| below_root())
            .map_err(|e| format!("cannot change to the directory `{}`: {e}", self.cwd.display()))?;
        self.confinement.after_drop().map_err(|e| format!("cannot install the system call filter: {e}"))
    }

    /// The places where its program is looked for.
    fn programs(&self) -> io::Result<Vec<CString>> {
        let name = self.args.first().filter(|a| !a.is_empty()).ok_or(io::ErrorKind::NotFound)?;
        let path = self.env.iter().filter(|e| e.starts_with("PATH="));
        let path = path.map(|e| CString::new(e.as_str())).collect::<Result<Vec<_>, _>>()?;
        Ok(candidates(&CString::new(name.as_str())?, &path))
    }

    fn become_it(&self) -> io::Error {
        let prepared = || -> io::Result<_> {
            let strings = |items: &[String]| {
                items.iter().map(|s| CString::new(s.as_str())).collect::<Result<Vec<_>, _>>()
            };
            let mut env = self.env.clone();
            if !has_home(env.iter().map(String::as_str)) {
                env.retain(|e| !e.starts_with("HOME="));
                env.push(format!("HOME={}", home_of(self.uid)));
            }
            env.extend(self.added.borrow().iter().cloned());
            if let Some((rows, columns)) = self.size {
                let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                rustix::termios::tcsetwinsize(io::stdin(), size)?;
            }
            sys::exec::reset_signals()?;
            Ok((self.programs()?, strings(&self.args)?, strings(&env)?))
        };
        match prepared() {
            Ok((programs, argv, envp)) => execute(&programs, &argv, &envp),
            Err(e) => e,
        }
    }
}

/// Where a user is at home, in the container that this process is in by now.
pub(super) fn home_of(uid: u32) -> String {
    users::home_here(uid).unwrap_or_else(|| "/".into())
}

impl Executor for Payload {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        Err(ExecutorError::Other(self.become_it().to_string()))
    }

    /// Called in the container's process, as its user: so that `create` fails where the program is not there.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        self.confine().map_err(ExecutorValidationError::ArgValidationError)?;
        let Some(name) = self.args.first() else { return Ok(()) };
        let mut last = None;
        for program in self.programs().unwrap_or_default() {
            let found = rustix::fs::accessat(CWD, &program, Access::EXEC_OK, AtFlags::EACCESS);
            let found = found.and_then(|()| rustix::fs::stat(&program));
            match found {
                Ok(stat) if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => return Ok(()),
                Ok(_) | Err(rustix::io::Errno::ACCESS) => last = Some(rustix::io::Errno::ACCESS),
                Err(_) => {}
            }
        }
        let name = name.escape_default();
        // podman and containerd look for these words.
        Err(ExecutorValidationError::ArgValidationError(match last {
            Some(_) => format!("exec: \"{name}\": permission denied"),
            None if name.to_string().contains('/') => format!("exec: \"{name}\": no such file or directory"),
            None => format!("exec: \"{name}\": executable file not found in $PATH"),
        }))
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        let named = |(key, _): &(String, String)| key == "LISTEN_FDS" || key == "LISTEN_PID";
        let mut added: Vec<String> =
            envs.into_iter().filter(named).map(|(key, value)| format!("{key}={value}")).collect();
        added.retain(|e| !self.env.contains(e));
        *self.added.borrow_mut() = added;
        Ok(())
    }
}
