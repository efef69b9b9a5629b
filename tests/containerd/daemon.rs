//! A containerd of a test's own, with images that are made here, gone again whatever happens.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// An image with busybox. No registry has it.
pub const IMAGE: &str = "localhost/spark-test/busybox:1";
/// The same with a command that waits: what holds a pod together.
pub const PAUSE: &str = "localhost/spark-test/pause:1";
pub const RUNTIME: &str = "io.containerd.spark.v1";

/// A deadline, for machines that have much else to do.
const PATIENCE: Duration = Duration::from_secs(300);

/// One containerd with its state, and one namespace in it.
pub struct Daemon {
    dir: tempfile::TempDir,
    run: tempfile::TempDir,
    child: Option<Child>,
    /// The namespace, which is the name of a cgroup too.
    pub namespace: String,
    bridge: String,
}

impl Daemon {
    /// Starts one that has [`IMAGE`] and [`PAUSE`].
    pub fn new() -> Daemon {
        Daemon::prepared(|_| {})
    }

    /// The same, whose btrfs snapshotter keeps what it has in a directory on btrfs.
    pub fn with_btrfs(directory: &Path) -> Daemon {
        let own = directory.to_owned();
        Daemon::prepared(move |config| {
            let table = "[plugins.\"io.containerd.snapshotter.v1.btrfs\"]";
            config.push_str(&format!("{table}\n  root_path = \"{}\"\n", own.display()));
        })
    }

    fn prepared(configure: impl FnOnce(&mut String)) -> Daemon {
        let mut daemon = Daemon::without_images(configure);
        daemon.import(IMAGE, &["/bin/sh"]);
        daemon.start_images();
        daemon
    }

    fn without_images(more: impl FnOnce(&mut String)) -> Daemon {
        assert!(rustix::process::geteuid().is_root(), "these tests run containers: run them as root");
        let dir = tempfile::Builder::new().prefix("sparks-test-").tempdir().unwrap();
        let run = tempfile::Builder::new().prefix("test-containerd-").tempdir_in("/run").unwrap();
        fs::set_permissions(run.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let unique = ulid::Ulid::generate().to_string().to_lowercase();
        let bridge = format!("t{}", &unique[unique.len() - 10..]);
        let mut daemon = Daemon { dir, run, child: None, namespace: format!("t{unique}"), bridge };
        daemon.configure(more);
        daemon.start();
        daemon
    }

    fn start_images(&mut self) {
        self.in_namespace("k8s.io", |d| {
            d.import(PAUSE, &["/bin/sleep", "2147483647"]);
            d.import(IMAGE, &["/bin/sh"]);
        });
    }

    fn configure(&self, more: impl FnOnce(&mut String)) {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let mut config = format!(
            r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[timeouts]
  "io.containerd.timeout.shim.cleanup" = "300s"
  "io.containerd.timeout.shim.load" = "300s"
  "io.containerd.timeout.shim.shutdown" = "300s"
  "io.containerd.timeout.task.state" = "300s"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "spark"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.spark]
      runtime_type = "{RUNTIME}"
"#,
            root = at("root"),
            state = at("state"),
            socket = self.socket().display(),
            cni = at("cni"),
        );
        more(&mut config);
        fs::write(self.dir.path().join("config.toml"), config).unwrap();
        fs::create_dir(self.dir.path().join("cni")).unwrap();
        let network = serde_json::json!({
            "cniVersion": "0.4.0", "name": self.bridge,
            "plugins": [{
                "type": "bridge", "bridge": self.bridge, "isGateway": true,
                "ipam": {"type": "host-local", "dataDir": at("addresses"), "ranges": [[{"subnet": "10.213.77.0/24"}]]},
            }],
        });
        fs::write(self.dir.path().join("cni/10-test.conflist"), network.to_string()).unwrap();
    }

    /// Starts it, again after a [`Daemon::stop`].
    pub fn start(&mut self) {
        let shim = Path::new(env!("CARGO_BIN_EXE_containerd-shim-spark-v1"));
        let path = format!("{}:{}", shim.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(self.dir.path().join("config.toml"))
            .env("PATH", path)
            .env("SPARK_RUN", self.run.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd is not installed");
        self.child = Some(child);
        eventually("containerd answers", || self.ctr(["version"]).status.success());
    }

    /// Stops it. What it runs goes on.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_child(&child),
                rustix::process::Signal::TERM,
            );
            let _ = child.wait();
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn in_namespace(&mut self, namespace: &str, what: impl FnOnce(&Daemon)) {
        let own = std::mem::replace(&mut self.namespace, namespace.into());
        what(self);
        self.namespace = own;
    }

    /// Where what is volatile of the shim's, and of sparks, is.
    pub fn run(&self) -> &Path {
        self.run.path()
    }

    /// Where `ctr` makes the fifos of containers.
    pub fn fifos(&self) -> PathBuf {
        self.dir.path().join("fifos")
    }

    /// `ctr` with arguments.
    pub fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "2", "600", "ctr", "--address"]).arg(self.socket());
        command.args(["--namespace", &self.namespace]);
        for argument in arguments {
            command.arg(argument);
            if argument == "run" {
                command.arg("--fifo-dir").arg(self.fifos());
            }
        }
        command
    }

    pub fn ctr<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// `ctr` with arguments, which has to succeed. Returns what it prints.
    pub fn ok<'a>(&self, arguments: impl IntoIterator<Item = &'a str> + Clone) -> String {
        let shown: Vec<&str> = arguments.clone().into_iter().collect();
        let output = self.ctr(arguments);
        assert!(output.status.success(), "ctr {shown:?}: {}\n{}", text(&output.stderr), self.log());
        text(&output.stdout)
    }

    /// The same with words that are separated by spaces.
    pub fn say(&self, line: &str) -> String {
        self.ok(line.split(' '))
    }

    /// `ctr` with arguments, which has to fail. Returns what it says.
    pub fn refused(&self, line: &str) -> String {
        let output = self.ctr(line.split(' '));
        assert!(!output.status.success(), "ctr {line} succeeded");
        text(&output.stderr)
    }

    /// The state of a task, in capitals, or nothing if there is none.
    pub fn state(&self, id: &str) -> Option<String> {
        let list = self.say("task list");
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(id))?;
        line.split_whitespace().nth(2).map(str::to_owned)
    }

    /// The number of a task's first process.
    pub fn pid(&self, id: &str) -> u32 {
        let list = self.say("task list");
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(id)).expect("no task");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Calls a method of the Container Runtime Interface.
    pub fn cri(&self, method: &str, request: &serde_json::Value) -> Result<serde_json::Value, String> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/containerd");
        if !self.dir.path().join("cri_pb2.py").exists() {
            let made = Command::new("protoc")
                .arg(format!("--proto_path={}", here.display()))
                .arg(format!("--python_out={}", self.dir.path().display()))
                .arg("cri.proto")
                .status()
                .expect("protoc is not installed");
            assert!(made.success());
        }
        let mut child = Command::new("timeout")
            // Debian's, which has Debian's modules: another may come before it in PATH.
            .args(["-k", "2", "600", "/usr/bin/python3"])
            .arg(here.join("cri.py"))
            .arg(self.dir.path())
            .arg(self.socket())
            .arg(method)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
            false => Err(text(&output.stderr)),
        }
    }

    /// The processes of shims that this daemon started.
    pub fn shims(&self) -> Vec<u32> {
        let address = self.socket().display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
            let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
            if words[0].ends_with(b"/containerd-shim-spark-v1") && words.contains(&address.as_bytes()) {
                found.push(pid);
            }
        }
        found
    }

    /// What is left of containers: mounts, cgroups, fifos, what the runtime knows, children of shims. A line each.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let own = format!("{}/", self.dir.path().display());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(mounts.lines().filter(|l| l.contains(&own)).map(|l| format!("mount {l}")));
        for cgroup in self.cgroups() {
            left.extend(below(&cgroup).into_iter().map(|p| format!("cgroup {}", p.display())));
        }
        let known = self.run.path().join("containerd").join(&self.namespace);
        left.extend(below(&known).into_iter().map(|p| format!("runtime {}", p.display())));
        let bundles = self.dir.path().join("state/io.containerd.runtime.v2.task").join(&self.namespace);
        left.extend(below(&bundles).into_iter().map(|p| format!("bundle {}", p.display())));
        left.extend(below(&self.fifos()).into_iter().map(|p| format!("fifos {}", p.display())));
        left.extend(self.shims().into_iter().map(|pid| format!("shim {pid}")));
        left
    }

    /// Waits until nothing is left of containers.
    pub fn nothing_is_left(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "this is left:\n{}\n{}", left.join("\n"), self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let mut tops = vec![PathBuf::from("/sys/fs/cgroup")];
        tops.extend(fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path()));
        tops.into_iter().map(|top| top.join(&self.namespace)).filter(|dir| dir.is_dir()).collect()
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|l| !l.contains("level=info")).collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Makes an image of busybox and imports it.
    fn import(&self, name: &str, command: &[&str]) {
        let archive = self.dir.path().join("image.tar");
        write_image(&archive, name, command);
        let archive = archive.display().to_string();
        self.ok(["image", "import", archive.as_str()]);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
        for pid in self.shims() {
            // What it runs goes with it: its children first, while they are known.
            for child in children(pid) {
                kill(child);
            }
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            kill(pid);
            if let Some(socket) = line.split('\0').find_map(|word| word.strip_prefix("unix://")) {
                let _ = fs::remove_file(socket);
            }
        }
        let own = format!("{}/", self.dir.path().display());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for target in mounts.lines().rev().filter_map(|l| l.split(' ').nth(1)) {
            if target.starts_with(&own) {
                let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
            }
        }
        let _ = Command::new("ip").args(["link", "delete", &self.bridge]).stderr(Stdio::null()).status();
        for cgroup in self.cgroups() {
            for dir in below(&cgroup).into_iter().rev() {
                let _ = fs::remove_dir(dir);
            }
            let _ = fs::remove_dir(cgroup);
        }
    }
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// The children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The directories below one, from the top.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                found.push(entry.path());
                todo.push(entry.path());
            }
        }
    }
    found
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits for something to become true.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "after {PATIENCE:?} still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An archive in the layout of the OCI image specification, with one layer: busybox and its names.
fn write_image(archive: &Path, name: &str, command: &[&str]) {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is not installed");
    let mut layer = tar::Builder::new(Vec::new());
    for dir in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var"] {
        add(&mut layer, dir, tar::EntryType::Directory, &[]);
    }
    add(&mut layer, "bin/busybox", tar::EntryType::Regular, &busybox);
    let names = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in text(&names.stdout).lines().filter(|n| *n != "busybox") {
        let mut header = header_of(tar::EntryType::Symlink, 0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    // As in an image of Debian, so that what kubelet mounts is on the way through a link.
    let mut header = header_of(tar::EntryType::Symlink, 0);
    layer.append_link(&mut header, "var/run", "/run").unwrap();
    add(&mut layer, "etc/passwd", tar::EntryType::Regular, b"root:x:0:0:root:/root:/bin/sh\n");
    let layer = layer.into_inner().unwrap();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let config = config.to_string().into_bytes();
    let describe = |kind: &str, blob: &[u8]| {
        let media = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({"mediaType": media, "digest": digest(blob), "size": blob.len()})
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("config.v1+json", &config), "layers": [describe("layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut described = describe("manifest.v1+json", &manifest);
    described["annotations"] = serde_json::json!({"io.containerd.image.name": name});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [described]}).to_string();
    let mut image = tar::Builder::new(fs::File::create(archive).unwrap());
    add(&mut image, "oci-layout", tar::EntryType::Regular, br#"{"imageLayoutVersion":"1.0.0"}"#);
    add(&mut image, "index.json", tar::EntryType::Regular, index.as_bytes());
    for blob in [&layer, &config, &manifest] {
        let path = format!("blobs/{}", digest(blob).replace(':', "/"));
        add(&mut image, &path, tar::EntryType::Regular, blob);
    }
    image.finish().unwrap();
}

fn add(to: &mut tar::Builder<impl std::io::Write>, path: &str, kind: tar::EntryType, content: &[u8]) {
    let mut header = header_of(kind, content.len());
    to.append_data(&mut header, path, content).unwrap();
}

fn header_of(kind: tar::EntryType, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(size as u64);
    header
}

fn digest(blob: &[u8]) -> String {
    let hash = Sha256::digest(blob);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
