//! The containerd face: a shim for runtime v2.
//!
//! containerd starts `containerd-shim-spark-v1` once for each pod, or for each container that is in none, and calls
//! its [`service`] over ttrpc. The shim is the parent of what it runs: it [`reap`]s it, passes its
//! [`stdio`] on, and tells what happens in [`events`]. Each operation on a container is one run of `spark-oci`
//! ([`helper`]): libcontainer needs a process of its own, with one thread.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim::api::DeleteResponse;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::{Message, MessageField};
use containerd_shim::protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use containerd_shim::publisher::RemotePublisher;
use containerd_shim::{Config, ExitSignal, Flags, Shim, StartOpts};
use tokio::io::unix::AsyncFd;

use crate::domain::place::RUN;
use crate::error::Error;
use crate::ops::begin::{Program, begin};

mod cgroup;
mod console;
mod container;
mod events;
mod helper;
mod logger;
mod mounts;
mod process;
mod reap;
mod service;
mod stats;
mod status;
mod stdio;

use container::{INIT_PID, Shared};
use events::{Publisher, Sending};
use helper::{Call, Helper};
use reap::Reaper;
use service::Service;

/// The name by which containerd finds this program.
const RUNTIME: &str = "io.containerd.spark.v1";
/// The type of what the runtime can do, as JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// What puts containers into one shim. The second is runc's, for clients that group without Kubernetes.
const GROUPS: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.containerd.runc.v2.group"];
/// How long the last events may take before the shim ends.
const LAST_EVENTS: Duration = Duration::from_secs(5);
/// The status of what was killed with its shim: that of SIGKILL.
const KILLED: u32 = 137;

/// Runs the shim as containerd calls it: `start`, `delete`, or to serve.
pub fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let begun = begin(Program::Shim).map_err(|e| io::Error::other(e.to_string()));
    let done = begun.and_then(|()| match containerd_shim::parse(&arguments) {
        Err(e) => Err(io::Error::other(e.to_string())),
        Ok(flags) if flags.version => say_version(),
        Ok(flags) if flags.info => say_info(),
        Ok(flags) => serve(&flags),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: {RUNTIME}: {e}");
            ExitCode::FAILURE
        }
    }
}

/// One thread is enough for what mostly waits, and a node has a shim for each of its pods.
fn serve(flags: &Flags) -> io::Result<()> {
    if flags.action.is_empty() {
        log_to_fifo(flags.debug);
    }
    // Both are ours: the crate's logger waits for its reader, and its reaper would take what ours waits for.
    let config = Config { no_setup_logger: true, no_reaper: true, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(containerd_shim::run::<Spark>(RUNTIME, Some(config)));
    // Without waiting for threads that read from who never writes.
    std::process::exit(0);
}

/// containerd reads this fifo and logs what comes. It may be away, and must not hold anything up.
fn log_to_fifo(debug: bool) {
    use std::os::unix::fs::OpenOptionsExt;
    let fifo = fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("log");
    let Ok(fifo) = fifo else { return };
    let level = if debug { tracing::Level::DEBUG } else { tracing::Level::WARN };
    let log = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(Mutex::new(fifo));
    // Only a second one would be refused.
    let _ = tracing::subscriber::set_global_default(log.finish());
}

fn say_version() -> io::Result<()> {
    writeln!(io::stdout(), "{RUNTIME}:\n  Version: {}", env!("CARGO_PKG_VERSION"))
}

/// What containerd 2 asks of a runtime before it uses it.
fn say_info() -> io::Result<()> {
    io::stdin().read_to_end(&mut Vec::new())?;
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    let features = Any { type_url: FEATURES.into(), value: helper::features()?, ..Default::default() };
    let info = RuntimeInfo {
        name: RUNTIME.into(),
        version: MessageField::some(version),
        features: MessageField::some(features),
        ..Default::default()
    };
    io::stdout().write_all(&info.write_to_bytes().map_err(io::Error::other)?)
}

struct Spark {
    namespace: String,
    id: String,
    /// Given for `delete` only, else it is the working directory.
    bundle: PathBuf,
    /// Where this one is called, if it serves.
    socket: PathBuf,
    exit: Arc<ExitSignal>,
    sending: Mutex<Option<Sending>>,
}

#[async_trait]
impl Shim for Spark {
    type T = Service;

    async fn new(_: &str, flags: &Flags, _: &mut Config) -> Spark {
        Spark {
            namespace: flags.namespace.clone(),
            id: flags.id.clone(),
            bundle: if flags.bundle.is_empty() { PathBuf::from(".") } else { PathBuf::from(&flags.bundle) },
            socket: path_of(&flags.socket).into(),
            exit: Arc::default(),
            sending: Mutex::default(),
        }
    }

    async fn start_shim(&mut self, opts: StartOpts) -> containerd_shim::Result<String> {
        // containerd 2.3 and later write parameters of a kind that the crate takes for another.
        io::stdin().read_to_end(&mut Vec::new()).map_err(failed("read the parameters"))?;
        let group = group_of(Path::new("config.json")).unwrap_or_else(|| opts.id.clone());
        let address = containerd_shim::socket_address(&opts.address, &opts.namespace, &group);
        let address = match UnixStream::connect(path_of(&address)) {
            // The shim of its pod.
            Ok(_) => address,
            Err(_) => containerd_shim::spawn(opts, &group, Vec::new()).await?,
        };
        containerd_shim::util::write_str_to_file("address", &address).await?;
        Ok(address)
    }

    async fn delete_shim(&mut self) -> containerd_shim::Result<DeleteResponse> {
        let bundle = fs::canonicalize(&self.bundle).map_err(failed("find the bundle"))?;
        let arguments = ["delete", "--force", self.id.as_str()].map(Into::into).to_vec();
        let call = Call { action: "delete", id: &self.id, bundle: &bundle, arguments };
        let deleted = Helper::new(root_for(&self.namespace)).run_alone(call);
        let unmounted = mounts::unmount(&mounts::root_of(&bundle));
        remove_dead_socket(&bundle);
        deleted.and(unmounted).map_err(|e| containerd_shim::Error::Other(e.to_string()))?;
        let pid = fs::read_to_string(bundle.join(INIT_PID)).ok().and_then(|text| text.trim().parse().ok());
        Ok(DeleteResponse {
            pid: pid.unwrap_or(0),
            exit_status: KILLED,
            exited_at: MessageField::some(events::timestamp(SystemTime::now())),
            ..Default::default()
        })
    }

    async fn wait(&mut self) {
        self.exit.wait().await;
        // Not left to the crate, which looks for the path in the bundle: containerd may have removed that already, and
        // the next container of that name may have its shim at the same place by then.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file("address");
        let sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sending) = sending {
            let _ = tokio::time::timeout(LAST_EVENTS, sending).await;
        }
    }

    async fn create_task_service(&self, publisher: RemotePublisher) -> Service {
        // Not the crate's: it forgets what is queued when the shim ends.
        let (publisher, sending) = Publisher::start(publisher.address.clone(), self.namespace.clone());
        *self.sending.lock().unwrap_or_else(PoisonError::into_inner) = Some(sending);
        let reaper = match Reaper::start() {
            Ok(reaper) => reaper,
            Err(e) => {
                let _ = writeln!(io::stderr(), "error: {RUNTIME}: cannot listen to SIGCHLD: {e}");
                std::process::exit(1);
            }
        };
        let helper = Helper::new(root_for(&self.namespace));
        let shared = Shared { namespace: self.namespace.clone(), helper, reaper, publisher };
        Service::new(Arc::new(shared), Arc::clone(&self.exit))
    }
}

/// Where the runtime keeps what it knows of a containerd namespace.
fn root_for(namespace: &str) -> PathBuf {
    let run = std::env::var_os("SPARK_RUN").map_or_else(|| PathBuf::from(RUN), PathBuf::from);
    run.join("containerd").join(namespace)
}

/// What a container's bundle says of the pod that it is in.
fn group_of(config: &Path) -> Option<String> {
    let spec: serde_json::Value = serde_json::from_slice(&fs::read(config).ok()?).ok()?;
    GROUPS.iter().find_map(|group| spec["annotations"][group].as_str().map(str::to_owned))
}

fn path_of(address: &str) -> &str {
    address.strip_prefix("unix://").unwrap_or(address)
}

/// A shim that was killed leaves its socket. Another container of its pod may have a new one at the same place.
fn remove_dead_socket(bundle: &Path) {
    let Ok(address) = fs::read_to_string(bundle.join("address")) else { return };
    let path = path_of(address.trim());
    if matches!(UnixStream::connect(path), Err(e) if e.kind() == io::ErrorKind::ConnectionRefused) {
        let _ = fs::remove_file(path);
    }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> containerd_shim::Error {
    move |e| containerd_shim::Error::Other(Error::sys(what)(e).to_string())
}

/// Lets the runtime wait for a descriptor.
#[expect(
    deprecated,
    reason = "what replaces it is unsafe, for types that could change their descriptor: this cannot"
)]
fn asynchronous(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}
