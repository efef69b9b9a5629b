//! One container: its processes, its cgroup, and what can be done with it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use containerd_shim::api::CreateTaskRequest;
use containerd_shim::protos::events::task;
use containerd_shim::protos::protobuf::MessageField;
use containerd_shim::protos::shim::oci::Options;
use containerd_shim::protos::topics;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::cgroup::{Cgroup, Wants};
use super::console::ConsoleSocket;
use super::events::{Publisher, timestamp};
use super::helper::{Call, Helper};
use super::logger::Source;
use super::mounts;
use super::process::Process;
use super::reap::{Exit, Reaper};
use super::stdio::{Copies, Wanted};
use crate::error::{Error, Result};

/// The file with the number of a container's first process, for the clean-up after a shim that was killed.
pub(super) const INIT_PID: &str = "init.pid";

/// What all containers of a shim share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) namespace: String,
    pub(super) helper: Helper,
    pub(super) reaper: Arc<Reaper>,
    pub(super) publisher: Publisher,
}

/// A container from its creation to its deletion.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) init: Arc<Process>,
    /// Whether its processes end with the first of them, by the kernel.
    own_pids: bool,
    execs: Mutex<BTreeMap<String, Arc<Process>>>,
    paused: AtomicBool,
    cgroup: OnceLock<Cgroup>,
    oom: Mutex<Option<AbortHandle>>,
    shared: Arc<Shared>,
}

impl Container {
    /// Creates a container from its bundle. Nothing of it runs yet.
    ///
    /// # Errors
    /// If a mount, a standard stream or the runtime fails. Nothing is left of it then.
    pub(super) async fn create(shared: Arc<Shared>, request: &CreateTaskRequest) -> Result<Arc<Container>> {
        if !request.checkpoint.is_empty() {
            return Err(no_checkpoints());
        }
        let streams = Wanted {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let bundle = PathBuf::from(&request.bundle);
        let container = Arc::new(Container {
            id: request.id.clone(),
            init: Arc::new(Process::new(String::new(), streams, Vec::new())),
            own_pids: has_own_pids(&bundle)?,
            execs: Mutex::default(),
            paused: AtomicBool::new(false),
            cgroup: OnceLock::new(),
            oom: Mutex::default(),
            bundle,
            shared,
        });
        mounts::mount(request).await?;
        if let Err(e) = container.create_init(request).await {
            // The first failure says more than what could fail here.
            let _ = container.run("delete", ["delete", "--force"]).await;
            let _ = mounts::unmount(&mounts::root_of(&container.bundle));
            return Err(e);
        }
        container.shared.publisher.publish(topics::TASK_CREATE_EVENT_TOPIC, created(&container, request));
        Ok(container)
    }

    async fn create_init(self: &Arc<Self>, request: &CreateTaskRequest) -> Result<()> {
        let mut arguments = vec![OsString::from("create"), "--bundle".into(), self.bundle.clone().into()];
        let options = request.options.as_ref().filter(|o| o.type_url.ends_with("containerd.runc.v1.Options"));
        if let Some(options) = options {
            let options =
                <Options as containerd_shim::protos::protobuf::Message>::parse_from_bytes(&options.value);
            let options =
                options.map_err(|e| Error::usage(format!("the runtime options are malformed: {e}")))?;
            if options.systemd_cgroup {
                arguments.insert(0, "--systemd-cgroup".into());
            }
        }
        self.launch(&self.init, "create", arguments).await?;
        match Cgroup::of(self.init.pid()) {
            Ok(cgroup) => _ = self.cgroup.set(cgroup),
            Err(e) => return Err(Error::sys("find the cgroup of a new container")(e)),
        }
        Ok(())
    }

    /// Starts the first process.
    ///
    /// # Errors
    /// If the runtime fails.
    pub(super) async fn start(self: &Arc<Self>) -> Result<u32> {
        let _starting = self.init.starting.lock().await;
        if self.init.is_started() || self.init.exit().is_some() {
            return Err(self.wrong_state("start", "started already"));
        }
        // Before: it may run out of memory at once.
        let wants = self.cgroup.get().and_then(Cgroup::wants);
        self.run("start", ["start"]).await?;
        self.init.set_started();
        if let Some(wants) = wants {
            self.tell_of(wants);
        }
        let pid = self.init.pid();
        let event = task::TaskStart { container_id: self.id.clone(), pid, ..Default::default() };
        self.shared.publisher.publish(topics::TASK_START_EVENT_TOPIC, event);
        Ok(pid)
    }

    /// Remembers a process to execute.
    ///
    /// # Errors
    /// If there is one of that name.
    pub(super) fn add_exec(&self, process: Process) -> Result<()> {
        let exec_id = process.exec_id.clone();
        let mut execs = self.execs();
        if execs.contains_key(&exec_id) {
            return Err(Error::Exists { kind: "process", name: exec_id, in_project: None });
        }
        execs.insert(exec_id.clone(), Arc::new(process));
        let event = task::TaskExecAdded { container_id: self.id.clone(), exec_id, ..Default::default() };
        self.shared.publisher.publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, event);
        Ok(())
    }

    /// Executes a process that was added.
    ///
    /// # Errors
    /// If there is none of that name, or the runtime cannot execute it.
    pub(super) async fn start_exec(self: &Arc<Self>, exec_id: &str) -> Result<u32> {
        let process = self.process(exec_id)?;
        let _starting = process.starting.lock().await;
        if process.is_started() || process.exit().is_some() {
            return Err(self.wrong_state("start a process of", "started already"));
        }
        let what = anonymous_file(&process.what).map_err(Error::sys("keep what to execute"))?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&what));
        let arguments = vec!["exec".into(), "--detach".into(), "--process".into(), path.into()];
        if let Err(e) = self.launch(&process, "execute in", arguments).await {
            // Who waits for it must not wait for ever.
            process.set_exit(Exit { status: 255, at: std::time::SystemTime::now() });
            return Err(e);
        }
        process.set_started();
        let (container_id, exec_id, pid) = (self.id.clone(), exec_id.to_owned(), process.pid());
        let event = task::TaskExecStarted { container_id, exec_id, pid, ..Default::default() };
        self.shared.publisher.publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, event);
        Ok(pid)
    }

    /// Freezes every process.
    ///
    /// # Errors
    /// If the runtime fails.
    pub(super) async fn pause(&self) -> Result<()> {
        self.run("pause", ["pause"]).await?;
        self.paused.store(true, Ordering::SeqCst);
        let event = task::TaskPaused { container_id: self.id.clone(), ..Default::default() };
        self.shared.publisher.publish(topics::TASK_PAUSED_EVENT_TOPIC, event);
        Ok(())
    }

    /// Thaws every process.
    ///
    /// # Errors
    /// If the runtime fails.
    pub(super) async fn resume(&self) -> Result<()> {
        self.run("resume", ["resume"]).await?;
        self.paused.store(false, Ordering::SeqCst);
        let event = task::TaskResumed { container_id: self.id.clone(), ..Default::default() };
        self.shared.publisher.publish(topics::TASK_RESUMED_EVENT_TOPIC, event);
        Ok(())
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Sends a signal to a process, or with `all` to every process of the container.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it has ended.
    pub(super) async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let process = self.process(exec_id)?;
        let ended = || Error::NotFound {
            kind: "running process",
            name: if exec_id.is_empty() { self.id.clone() } else { exec_id.to_owned() },
            in_project: None,
            near: Vec::new(),
        };
        if process.exit().is_some() {
            return Err(ended());
        }
        if !exec_id.is_empty() {
            if !process.is_started() {
                return Err(self.wrong_state("signal a process of", "not started yet"));
            }
            return self.shared.reaper.signal(process.pid(), signal).map_err(|e| match e.raw_os_error() {
                Some(libc::ESRCH) => ended(),
                _ => Error::sys("send a signal")(e),
            });
        }
        let mut arguments = vec![OsString::from("kill")];
        if all {
            arguments.push("--all".into());
        }
        let killed = self.call("kill", arguments, vec![signal.to_string().into()]).await;
        // It may have ended by itself in the meantime.
        killed.map_err(|e| if process.exit().is_some() { ended() } else { e })
    }

    /// Changes limits, given as JSON of the runtime specification's resources.
    ///
    /// # Errors
    /// If the runtime fails.
    pub(super) async fn update(&self, resources: &[u8]) -> Result<()> {
        let file = anonymous_file(resources).map_err(Error::sys("keep the limits"))?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
        self.call("update", vec!["update".into(), "--resources".into(), path.into()], Vec::new()).await
    }

    /// Forgets an executed process that has ended or was never started.
    ///
    /// # Errors
    /// While it runs.
    pub(super) async fn delete_exec(&self, exec_id: &str) -> Result<(u32, Exit)> {
        let process = self.process(exec_id)?;
        let exit = match (process.exit(), process.is_started()) {
            (Some(exit), _) => exit,
            (None, true) => return Err(self.wrong_state("delete a process of", "running")),
            (None, false) => Exit { status: 0, at: std::time::SystemTime::now() },
        };
        process.set_exit(exit);
        if let Some(copies) = process.take_copies() {
            copies.finish().await;
        }
        self.execs().remove(exec_id);
        Ok((process.pid(), exit))
    }

    /// Removes a container that has ended, or that was never started.
    ///
    /// # Errors
    /// While it runs, or if something of it cannot be removed: then it is there still, to be deleted again.
    pub(super) async fn delete(&self) -> Result<(u32, Exit)> {
        if self.init.exit().is_none() && self.init.is_started() {
            return Err(self.wrong_state("delete", "running"));
        }
        self.run("delete", ["delete", "--force"]).await?;
        let ended = self.init.wait().await;
        let exit = ended.unwrap_or(Exit { status: 137, at: std::time::SystemTime::now() });
        if let Some(copies) = self.init.take_copies() {
            copies.finish().await;
        }
        mounts::unmount(&mounts::root_of(&self.bundle))?;
        if let Some(oom) = self.oom.lock().unwrap_or_else(PoisonError::into_inner).take() {
            oom.abort();
        }
        let event = task::TaskDelete {
            container_id: self.id.clone(),
            pid: self.init.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        };
        self.shared.publisher.publish(topics::TASK_DELETE_EVENT_TOPIC, event);
        Ok((self.init.pid(), exit))
    }

    /// The first process for an empty name, else one that was executed.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let process = self.execs().get(exec_id).cloned();
        let name = exec_id.to_owned();
        process.ok_or(Error::NotFound { kind: "process", name, in_project: None, near: Vec::new() })
    }

    /// Every process with the name under which it was executed, if it was.
    ///
    /// # Errors
    /// If the cgroup cannot be read.
    pub(super) fn pids(&self) -> Result<Vec<(u32, Option<String>)>> {
        let known: BTreeMap<u32, String> =
            self.execs().values().map(|process| (process.pid(), process.exec_id.clone())).collect();
        let pids = self.cgroup()?.pids().map_err(Error::sys("list the processes of a container"))?;
        Ok(pids.into_iter().map(|pid| (pid, known.get(&pid).cloned())).collect())
    }

    /// # Errors
    /// Before it is known.
    pub(super) fn cgroup(&self) -> Result<&Cgroup> {
        self.cgroup.get().ok_or_else(|| self.wrong_state("look into", "not created yet"))
    }

    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the runtime start a process, and follows it.
    async fn launch(
        self: &Arc<Self>,
        process: &Arc<Process>,
        action: &'static str,
        mut arguments: Vec<OsString>,
    ) -> Result<()> {
        let name = match process.exec_id.as_str() {
            "" => "init".to_owned(),
            exec_id => format!("exec-{exec_id}"),
        };
        let pid_file = self.bundle.join(format!("{name}.pid"));
        arguments.extend(["--pid-file".into(), pid_file.clone().into()]);
        let window = self.shared.reaper.window();
        let id = if process.exec_id.is_empty() { &self.id } else { &process.exec_id };
        let source = Source { id, namespace: &self.shared.namespace, reaper: &self.shared.reaper };
        let copies = if process.streams.terminal {
            let socket = ConsoleSocket::listen(&self.bundle, format!("{name}.tty"))?;
            arguments.extend(["--console-socket".into(), socket.path().into()]);
            arguments.push(self.id.clone().into());
            self.help(action, arguments, [Stdio::null(), Stdio::null(), Stdio::null()]).await?;
            Copies::of_terminal(&process.streams, socket.receive().await?, source).await?
        } else {
            arguments.push(self.id.clone().into());
            let (copies, streams) = Copies::of_pipes(&process.streams, source).await?;
            self.help(action, arguments, streams).await?;
            copies
        };
        let pid = read_pid(&pid_file)?;
        let exit = self.shared.reaper.claim(pid).map_err(Error::sys("follow a new process"))?;
        drop(window);
        if !process.exec_id.is_empty() {
            let _ = fs::remove_file(&pid_file);
        }
        process.set_pid(pid);
        process.set_copies(copies);
        self.follow(Arc::clone(process), exit);
        Ok(())
    }

    /// Tells the end of a process when it has come.
    fn follow(self: &Arc<Self>, process: Arc<Process>, exit: oneshot::Receiver<Exit>) {
        let container = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(exit) = exit.await else { return };
            let is_init = process.exec_id.is_empty();
            if is_init {
                container.end_the_rest().await;
            }
            let _starting = process.starting.lock().await;
            process.set_exit(exit);
            let event = task::TaskExit {
                container_id: container.id.clone(),
                id: if is_init { container.id.clone() } else { process.exec_id.clone() },
                pid: process.pid(),
                exit_status: exit.status,
                exited_at: MessageField::some(timestamp(exit.at)),
                ..Default::default()
            };
            container.shared.publisher.publish(topics::TASK_EXIT_EVENT_TOPIC, event);
        });
    }

    /// When the first process has ended, so do the others: by the kernel where they have a PID namespace of their own,
    /// else by us. Theirs are told first.
    async fn end_the_rest(&self) {
        if !self.own_pids {
            let arguments = vec![OsString::from("kill"), "--all".into()];
            if let Err(e) = self.call("kill the rest of", arguments, vec!["9".into()]).await {
                tracing::debug!("{e}");
            }
            return;
        }
        let execs: Vec<_> = self.execs().values().filter(|p| p.is_started()).cloned().collect();
        for process in execs {
            process.wait().await;
        }
    }

    /// Tells whoever listens of each want of memory.
    fn tell_of(&self, wants: Wants) {
        let (shared, id) = (Arc::clone(&self.shared), self.id.clone());
        let tell = move || {
            let event = task::TaskOOM { container_id: id.clone(), ..Default::default() };
            shared.publisher.publish(topics::TASK_OOM_EVENT_TOPIC, event);
        };
        let telling = tokio::spawn(wants.each(tell));
        *self.oom.lock().unwrap_or_else(PoisonError::into_inner) = Some(telling.abort_handle());
    }

    /// One operation on this container by its name alone.
    async fn run<const N: usize>(&self, action: &'static str, words: [&str; N]) -> Result<()> {
        self.call(action, words.iter().map(OsString::from).collect(), Vec::new()).await
    }

    async fn call(
        &self,
        action: &'static str,
        mut arguments: Vec<OsString>,
        after: Vec<OsString>,
    ) -> Result<()> {
        arguments.push(self.id.clone().into());
        arguments.extend(after);
        self.help(action, arguments, [Stdio::null(), Stdio::null(), Stdio::null()]).await
    }

    async fn help(&self, action: &'static str, arguments: Vec<OsString>, streams: [Stdio; 3]) -> Result<()> {
        let call = Call { action, id: &self.id, bundle: &self.bundle, arguments };
        self.shared.helper.run(&self.shared.reaper, call, streams).await
    }

    fn wrong_state(&self, action: &'static str, state: &str) -> Error {
        let (name, state) = (self.id.clone(), state.to_owned());
        Error::WrongState { action, kind: "container", name, state, hint: String::new() }
    }
}

/// What is said to who asks for a checkpoint, or for a start from one.
pub(super) fn no_checkpoints() -> Error {
    Error::NotSupported {
        what: "cannot checkpoint: sparks keep files, not memory; snapshot the root filesystem instead".into(),
        hint: None,
    }
}

fn created(container: &Container, request: &CreateTaskRequest) -> task::TaskCreate {
    let io = task::TaskIO {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
        ..Default::default()
    };
    task::TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: MessageField::some(io),
        pid: container.init.pid(),
        ..Default::default()
    }
}

/// Whether a bundle asks for a PID namespace that is not somebody else's.
fn has_own_pids(bundle: &Path) -> Result<bool> {
    let config = bundle.join("config.json");
    let text = fs::read(&config).map_err(Error::io("read", &config))?;
    let spec: serde_json::Value = serde_json::from_slice(&text).map_err(|e| Error::corrupt(&config, e))?;
    let namespaces = spec["linux"]["namespaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(namespaces.iter().any(|n| n["type"] == "pid" && n["path"].as_str().unwrap_or_default().is_empty()))
}

fn read_pid(file: &Path) -> Result<u32> {
    let text = fs::read_to_string(file).map_err(Error::io("read", file))?;
    text.trim().parse().map_err(|e| Error::corrupt(file, e))
}

/// A file in memory only: what is executed may have secrets in its environment.
fn anonymous_file(content: &[u8]) -> std::io::Result<fs::File> {
    let fd = rustix::fs::memfd_create("spark", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = fs::File::from(fd);
    std::io::Write::write_all(&mut file, content)?;
    Ok(file)
}
