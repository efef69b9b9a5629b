//! `exec`: a process that joins a running spark, exactly as confined as its PID 1.
//!
//! libcontainer's tenant joins every namespace but the user namespace, and without a filter: as it comes out of the
//! library it is the host's root. Our executor does the rest, in an order in which nobody inside can get hold of
//! the process before it is confined (docs/security.md).

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;

use super::confine::{self, Confinement};
use super::console::ConsoleSocket;
use super::live::Live;
use super::users::User;
use super::youki::Handle;
use crate::error::{Error, Result};
use crate::sys;

/// A command to run inside.
#[derive(Debug)]
pub struct Entry {
    pub container: Handle,
    pub live: Live,
    pub confinement: Confinement,
    pub user: User,
    pub argv: Vec<OsString>,
    /// `argv[0]` as the program sees it, if not the program's name: `-sh` for a login shell.
    pub shown_as: Option<OsString>,
    /// `KEY=VALUE`, complete.
    pub env: Vec<OsString>,
    pub workdir: PathBuf,
    /// Whether a missing `workdir` is no reason to fail: it was not asked for.
    pub workdir_optional: bool,
    pub terminal: bool,
    /// Standard input, output and error, if not this process's own.
    pub streams: Option<[OwnedFd; 3]>,
    /// The descriptor of the lock that this process holds, which the command's own must not.
    pub lock: RawFd,
}

/// What was started: a child of this process.
#[derive(Debug)]
pub struct Entered {
    pub pid: i32,
    pub master: Option<OwnedFd>,
}

/// What may go wrong after the fork, as the child reports it.
const STEP_CONFINE: u8 = 1;
const STEP_WORKDIR: u8 = 2;
const STEP_EXEC: u8 = 3;

/// Why a command did not start.
#[derive(Debug)]
pub enum Failure {
    /// The program could not be executed.
    Exec(io::Error),
    /// Everything else.
    Other(Error),
}

impl Entry {
    /// Starts the command.
    pub fn start(mut self) -> Result<Entered, Failure> {
        let other = Failure::Other;
        let pidfd = self.live.pidfd().map_err(|e| other(Error::sys("find PID 1")(e)))?;
        let user_ns = File::open(format!("/proc/{}/ns/user", self.live.init.pid))
            .map_err(|e| other(Error::sys("open the user namespace")(e)))?;
        // Opened by number: it is the one meant only if PID 1 is still that process.
        if sys::process::wait_end(&pidfd, Some(std::time::Duration::ZERO)).unwrap_or(true) {
            return Err(other(Error::sys("find PID 1")(io::Error::from_raw_os_error(libc::ESRCH))));
        }
        let (from, to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| other(Error::sys("make a pipe")(e.into())))?;
        let plan = Plan::new(&self, user_ns.into(), to).map_err(other)?;
        let console = if self.terminal {
            Some(
                ConsoleSocket::new(&self.container.oci)
                    .map_err(|e| other(Error::sys("make a console socket")(e)))?,
            )
        } else {
            None
        };
        let streams = self.streams.take();
        let built = build(&self.container, Enter(Rc::new(plan)), console.as_ref(), streams);
        let pid = match built {
            Ok(pid) => pid,
            Err(e) => return Err(report(from, &self.workdir).unwrap_or(other(e))),
        };
        if let Some(failure) = report(from, &self.workdir) {
            let _ = sys::process::reap(pid, true);
            return Err(failure);
        }
        let master = match console.map(ConsoleSocket::receive).transpose() {
            Ok(master) => master,
            Err(e) => {
                let _ = sys::process::signal_group(pid, libc::SIGKILL);
                let _ = sys::process::reap(pid, true);
                return Err(other(Error::sys("receive the terminal")(e)));
            }
        };
        Ok(Entered { pid, master })
    }
}

/// Runs libcontainer's tenant with our executor. The pipe's write end is closed here once that returns.
fn build(
    container: &Handle,
    executor: Enter,
    console: Option<&ConsoleSocket>,
    streams: Option<[OwnedFd; 3]>,
) -> Result<i32> {
    let failed = |e| container.failed("exec in", e);
    // The tenant's own process is only a shell for our executor. It is root of the host until that has run, so
    // users other than root go to the executor, never to the builder: it could not enter the user namespace then.
    // Until there it keeps one capability, to give pipes away; that it owns the user namespace is what lets it in.
    let only = ["CAP_CHOWN"];
    let process = serde_json::json!({
        "terminal": console.is_some(),
        "user": {"uid": 0, "gid": 0},
        "args": ["exec"],
        "env": [confine::HOME],
        "cwd": "/",
        "capabilities": {"bounding": only, "effective": only, "permitted": only, "inheritable": [], "ambient": []},
    });
    let memfd = rustix::fs::memfd_create("process", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| Error::sys("describe the process")(e.into()))?;
    rustix::io::write(&memfd, process.to_string().as_bytes())
        .map_err(|e| Error::sys("describe the process")(e.into()))?;
    let mut builder = ContainerBuilder::new(container.id.clone(), SyscallType::default());
    if let Some([input, output, error]) = streams {
        builder = builder.with_stdin(input).with_stdout(output).with_stderr(error);
    }
    let pid = builder
        .with_root_path(&container.oci)
        .map_err(failed)?
        .with_console_socket(console.map(ConsoleSocket::path))
        .with_executor(executor)
        .as_tenant()
        .with_process(Some(format!("/proc/self/fd/{}", memfd.as_raw_fd())))
        .with_detach(true)
        .build()
        .map_err(failed)?;
    Ok(pid.as_raw())
}

/// Reads what the child reported. Nothing at all means that it was executed: the pipe is close-on-exec.
fn report(from: OwnedFd, workdir: &Path) -> Option<Failure> {
    let mut bytes = Vec::new();
    let _ = File::from(from).take(64).read_to_end(&mut bytes);
    let (step, errno) = match bytes.as_slice() {
        [step, a, b, c, d, ..] => (*step, i32::from_ne_bytes([*a, *b, *c, *d])),
        _ => return None,
    };
    let source = io::Error::from_raw_os_error(errno);
    Some(match step {
        STEP_EXEC => Failure::Exec(source),
        STEP_WORKDIR => Failure::Other(Error::io("change to the working directory", workdir)(source)),
        _ => Failure::Other(Error::Sys { action: "confine the command", source }),
    })
}

/// Everything that the child needs, made before the fork.
struct Plan {
    user_ns: OwnedFd,
    report: OwnedFd,
    confinement: Confinement,
    user: User,
    first_id: u32,
    program: Vec<CString>,
    argv: Vec<CString>,
    envp: Vec<CString>,
    workdir: CString,
    workdir_optional: bool,
    terminal: bool,
    lock: RawFd,
    /// A pidfd of this process.
    caller: OwnedFd,
}

impl Plan {
    fn new(entry: &Entry, user_ns: OwnedFd, report: OwnedFd) -> Result<Plan> {
        let nul = |_| Error::usage("the command, its environment or its directory holds a NUL");
        let strings = |items: &[OsString]| -> Result<Vec<CString>> {
            items.iter().map(|s| CString::new(s.clone().into_vec()).map_err(nul)).collect()
        };
        let mut argv = strings(&entry.argv)?;
        let envp = strings(&entry.env)?;
        let name = argv.first().cloned().ok_or_else(|| Error::usage("there is no command"))?;
        let program = candidates(&name, &envp);
        if let Some(shown) = &entry.shown_as {
            argv[0] = CString::new(shown.clone().into_vec()).map_err(nul)?;
        }
        Ok(Plan {
            user_ns,
            report,
            confinement: entry.confinement.clone(),
            user: entry.user.clone(),
            first_id: entry.live.first_id,
            program,
            argv,
            envp,
            workdir: CString::new(entry.workdir.clone().into_os_string().into_vec()).map_err(nul)?,
            workdir_optional: entry.workdir_optional,
            terminal: entry.terminal,
            lock: entry.lock,
            caller: sys::process::pidfd_open(std::process::id() as i32)
                .map_err(Error::sys("watch this process"))?,
        })
    }

    /// The order matters: see docs/security.md before changing it.
    fn confine(&self) -> io::Result<()> {
        sys::exec::set_undumpable()?;
        self.give_streams()?;
        sys::exec::enter_user_namespace(self.user_ns.as_fd())?;
        self.confinement.before_drop()?;
        sys::exec::keep_capabilities(true)?;
        sys::exec::become_user(self.user.uid, self.user.gid, &self.user.groups)?;
        sys::exec::set_undumpable()?;
        self.confinement.drop_capabilities(self.user.uid)?;
        sys::exec::keep_capabilities(false)?;
        // For good, and not only when it is executed: what the spark chose as directory, program or interpreter may
        // lead through /proc/self/fd.
        sys::exec::close_others(self.report.as_raw_fd())?;
        self.confinement.after_drop()
    }

    /// `/dev/stdin` and its like open the stream's inode anew, so that has to belong to the user inside. Files are
    /// the caller's and stay so, fifos with a name among them; so does the caller's own terminal.
    ///
    /// # Errors
    /// `EISDIR` for a directory: all of the host's files would be in reach from there.
    fn give_streams(&self) -> io::Result<()> {
        for fd in 0..3 {
            let stream = sys::exec::standard_stream(fd);
            let Ok(stat) = rustix::fs::fstat(stream) else { continue };
            let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            if kind.is_dir() {
                return Err(io::Error::from_raw_os_error(libc::EISDIR));
            }
            let own_terminal = self.terminal && kind.is_char_device();
            let pipe = kind.is_fifo() && sys::file::is_pipe(stream).unwrap_or(false);
            if pipe || own_terminal {
                // Group 5 is `tty`, as the terminal's own mount has it.
                let gid = own_terminal.then_some(self.first_id + 5);
                let _ = sys::exec::give_to(stream, self.first_id + self.user.uid, gid);
            }
        }
        Ok(())
    }

    fn run(&self) -> (u8, io::Error) {
        if let Err(e) = self.confine() {
            return (STEP_CONFINE, e);
        }
        if let Err(e) = rustix::process::chdir(&self.workdir) {
            // Libcontainer has changed to the root of the spark already.
            if !self.workdir_optional {
                return (STEP_WORKDIR, e.into());
            }
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        if let Err(e) = sys::exec::reset_signals() {
            return (STEP_CONFINE, e);
        }
        // As execvp(3) does: what cannot be entered or is no program is remembered, and the search goes on.
        let mut last = io::Error::from_raw_os_error(libc::ENOENT);
        for program in &self.program {
            let e = sys::exec::execve(program, &self.argv, &self.envp);
            match e.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => last = e,
                _ => return (STEP_EXEC, e),
            }
        }
        (STEP_EXEC, last)
    }
}

/// The paths at which a program is looked for.
fn candidates(name: &CString, envp: &[CString]) -> Vec<CString> {
    if name.as_bytes().contains(&b'/') || name.is_empty() {
        return vec![name.clone()];
    }
    let path = envp.iter().find_map(|e| e.as_bytes().strip_prefix(b"PATH=")).unwrap_or(b"/usr/bin:/bin");
    path.split(|b| *b == b':')
        .filter_map(|dir| {
            let dir = if dir.is_empty() { b"." } else { dir };
            CString::new([dir, b"/", name.as_bytes()].concat()).ok()
        })
        .collect()
}

#[derive(Clone)]
struct Enter(Rc<Plan>);

impl Executor for Enter {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let _ = rustix::process::set_parent_process_death_signal(None);
        let (step, e) = self.0.run();
        let errno = e.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
        sys::exec::report(self.0.report.as_raw_fd(), &[step, errno[0], errno[1], errno[2], errno[3]]);
        // Not back to libcontainer: its descriptors may be closed already.
        sys::process::exit_now(127)
    }

    /// Called in the command's process, before that waits for its start. If the caller is killed now, nobody starts
    /// it: it must not hold the lock for good, nor wait for good.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        sys::exec::let_go(&[self.0.lock]);
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        // It may have been killed before that took hold, and a channel to it says nothing: this process has both ends.
        if sys::process::wait_end(&self.0.caller, Some(std::time::Duration::ZERO)).unwrap_or(true) {
            return Err(ExecutorValidationError::ArgValidationError("the caller was killed".into()));
        }
        Ok(())
    }

    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is passed to execve(2) directly.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_in_the_path_of_the_spark() {
        let envp = [c"A=b".to_owned(), c"PATH=/x:/y".to_owned()];
        let found = candidates(&c"ls".to_owned(), &envp);
        assert_eq!(found, [c"/x/ls".to_owned(), c"/y/ls".to_owned()]);
        assert_eq!(candidates(&c"./ls".to_owned(), &envp), [c"./ls".to_owned()]);
    }
}
