//! The task service: what containerd calls.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use containerd_shim::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
    StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim::protos::protobuf::MessageField;
use containerd_shim::protos::shim::oci::ProcessDetails;
use containerd_shim::protos::types::task::ProcessInfo;
use containerd_shim::{ExitSignal, Task, TtrpcContext, TtrpcResult};

use super::container::{Container, Shared, no_checkpoints};
use super::events::timestamp;
use super::process::Process;
use super::stdio::Wanted;
use super::{stats, status};
use crate::error::{Error, Result};

/// The containers of one pod, or the one that is in none.
pub(super) struct Service {
    shared: Arc<Shared>,
    /// Without a container while it is made.
    containers: Arc<Mutex<Containers>>,
    exit: Arc<ExitSignal>,
}

type Containers = BTreeMap<String, Option<Arc<Container>>>;

impl Service {
    pub(super) fn new(shared: Arc<Shared>, exit: Arc<ExitSignal>) -> Service {
        Service { shared, containers: Arc::default(), exit }
    }

    fn containers(&self) -> MutexGuard<'_, Containers> {
        locked(&self.containers)
    }

    fn container(&self, id: &str) -> TtrpcResult<Arc<Container>> {
        let container = self.containers().get(id).cloned().flatten();
        let name = id.to_owned();
        container
            .ok_or(Error::NotFound { kind: "container", name, in_project: None, near: Vec::new() })
            .map_err(status::of)
    }

    fn process(&self, id: &str, exec_id: &str) -> TtrpcResult<Arc<Process>> {
        self.container(id)?.process(exec_id).map_err(status::of)
    }
}

fn locked(containers: &Mutex<Containers>) -> MutexGuard<'_, Containers> {
    containers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something to its end, also if who asked for it has stopped waiting.
async fn whole<T: Send + 'static>(what: impl Future<Output = Result<T>> + Send + 'static) -> TtrpcResult<T> {
    match tokio::spawn(what).await {
        Ok(done) => done.map_err(status::of),
        Err(e) => Err(status::of(Error::Program { program: "the shim".into(), detail: e.to_string() })),
    }
}

#[async_trait]
impl Task for Service {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> TtrpcResult<StateResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id).map_err(status::of)?;
        let mut state = process.describe(container.is_paused());
        state.id.clone_from(&container.id);
        state.bundle = container.bundle.to_string_lossy().into_owned();
        Ok(state)
    }

    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> TtrpcResult<CreateTaskResponse> {
        let id = request.id.clone();
        if self.containers().contains_key(&id) {
            return Err(status::of(Error::Exists { kind: "container", name: id, in_project: None }));
        }
        self.containers().insert(id.clone(), None);
        let (shared, containers) = (Arc::clone(&self.shared), Arc::clone(&self.containers));
        let container = whole(async move {
            let made = Container::create(shared, &request).await;
            match &made {
                Ok(container) => _ = locked(&containers).insert(id, Some(Arc::clone(container))),
                Err(_) => _ = locked(&containers).remove(&id),
            }
            made
        });
        let pid = container.await?.init.pid();
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> TtrpcResult<StartResponse> {
        let container = self.container(&request.id)?;
        let started = whole(async move {
            match request.exec_id.as_str() {
                "" => container.start().await,
                exec_id => container.start_exec(exec_id).await,
            }
        });
        Ok(StartResponse { pid: started.await?, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> TtrpcResult<DeleteResponse> {
        let container = self.container(&request.id)?;
        let containers = Arc::clone(&self.containers);
        let deleted = whole(async move {
            if !request.exec_id.is_empty() {
                return container.delete_exec(&request.exec_id).await;
            }
            let deleted = container.delete().await?;
            locked(&containers).remove(&request.id);
            Ok(deleted)
        });
        let (pid, exit) = deleted.await?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> TtrpcResult<PidsResponse> {
        let pids = self.container(&request.id)?.pids().map_err(status::of)?;
        let described = pids.into_iter().map(|(pid, exec_id)| {
            let details = exec_id.map(|exec_id| ProcessDetails { exec_id, ..Default::default() });
            let info = details.and_then(|d| containerd_shim::util::convert_to_any(Box::new(d)).ok());
            ProcessInfo {
                pid,
                info: info.map_or_else(MessageField::none, MessageField::some),
                ..Default::default()
            }
        });
        Ok(PidsResponse { processes: described.collect(), ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> TtrpcResult<Empty> {
        let container = self.container(&request.id)?;
        whole(async move { container.pause().await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> TtrpcResult<Empty> {
        let container = self.container(&request.id)?;
        whole(async move { container.resume().await }).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> TtrpcResult<Empty> {
        Err(status::of(no_checkpoints()))
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> TtrpcResult<Empty> {
        let container = self.container(&request.id)?;
        whole(async move { container.kill(&request.exec_id, request.signal, request.all).await }).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> TtrpcResult<Empty> {
        let container = self.container(&request.id)?;
        if request.exec_id.is_empty() || request.exec_id.contains('/') {
            return Err(status::of(Error::usage(format!("`{}` is no name for a process", request.exec_id))));
        }
        let streams = Wanted {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let what = request.spec.into_option().map(|any| any.value).unwrap_or_default();
        let added = with_terminal(&what, streams.terminal)
            .and_then(|what| container.add_exec(Process::new(request.exec_id, streams, what)));
        added.map_err(status::of)?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> TtrpcResult<Empty> {
        let process = self.process(&request.id, &request.exec_id)?;
        process.resize(request.width, request.height).map_err(status::of)?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> TtrpcResult<Empty> {
        let process = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_input();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> TtrpcResult<Empty> {
        let container = self.container(&request.id)?;
        let resources = request.resources.into_option().map(|any| any.value).unwrap_or_default();
        whole(async move { container.update(&resources).await }).await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> TtrpcResult<WaitResponse> {
        let exit = self.process(&request.id, &request.exec_id)?.wait().await;
        Ok(WaitResponse {
            exit_status: exit.map_or(0, |e| e.status),
            exited_at: exit.map(|e| timestamp(e.at)).map_or_else(MessageField::none, MessageField::some),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> TtrpcResult<StatsResponse> {
        let container = self.container(&request.id)?;
        let stats = container.cgroup().and_then(stats::read).map_err(status::of)?;
        Ok(StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> TtrpcResult<ConnectResponse> {
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.container(&request.id)?.init.pid(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> TtrpcResult<Empty> {
        // Others of the pod may be there still: the last one ends the shim.
        if self.containers().is_empty() {
            self.shared.publisher.close();
            self.exit.signal();
        }
        Ok(Empty::new())
    }
}

/// A process of the runtime specification that says whether it has a terminal: the request does.
fn with_terminal(what: &[u8], terminal: bool) -> Result<Vec<u8>> {
    let malformed = |e: serde_json::Error| Error::usage(format!("what to execute is malformed: {e}"));
    let mut process: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(what).map_err(malformed)?;
    process.insert("terminal".into(), terminal.into());
    serde_json::to_vec(&process).map_err(malformed)
}
