//! A bundle of busybox, and the containers that a test makes of it: gone with it, whatever happens.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::common::{Output, default_signals};

/// Where containers and bundles of one test are.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    run: tempfile::TempDir,
}

const BUSYBOX: &str = "/bin/busybox";

impl Host {
    pub(crate) fn new() -> Host {
        assert!(rustix::process::geteuid().is_root(), "these tests make containers: run them as root");
        assert!(Path::new(BUSYBOX).exists(), "these tests need busybox: `apt-get install busybox-static`");
        let dir = tempfile::Builder::new().prefix("sparks-test-").tempdir().unwrap();
        let run = tempfile::Builder::new().prefix("sparks-test-").tempdir_in("/run").unwrap();
        // A user namespace's root has to get to its root filesystem.
        for path in [dir.path(), run.path()] {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        }
        let host = Host { dir, run };
        let root = host.rootfs();
        for name in ["bin", "dev", "proc", "sys", "tmp", "etc", "out"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
        std::fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
        )
        .unwrap();
        let applets = Command::new(BUSYBOX).arg("--list").output().unwrap().stdout;
        for applet in String::from_utf8(applets).unwrap().lines().filter(|a| *a != "busybox") {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        host
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn run(&self) -> &Path {
        self.run.path()
    }

    /// The directory of its containers.
    pub(crate) fn root(&self) -> PathBuf {
        self.run.path().join("containers")
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    /// The directory `out` of the root filesystem, which containers can write to.
    pub(crate) fn out(&self, name: &str) -> PathBuf {
        self.rootfs().join("out").join(name)
    }

    /// Writes the configuration that `spec` proposes, with another program and changes.
    pub(crate) fn configure(&self, args: &[&str], change: impl FnOnce(&mut Value)) {
        let path = self.bundle().join("config.json");
        let _ = std::fs::remove_file(&path);
        self.oci(&["spec", "--bundle", self.bundle().to_str().unwrap()]).ok();
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(args);
        config["process"]["env"] = json!(["PATH=/bin"]);
        config["root"]["readonly"] = json!(false);
        change(&mut config);
        std::fs::write(&path, config.to_string()).unwrap();
    }

    /// Makes a user namespace of the container's own.
    pub(crate) fn with_user_namespace(config: &mut Value) {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 1_500_000_000, "size": 65536}]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
        // It belongs to nobody in there, and no test needs it.
        config["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "cgroup" && m["type"] != "mqueue");
    }

    /// The `spark-oci` of this build, not started yet.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spark-oci"));
        if !args.contains(&"--root") {
            command.arg("--root").arg(self.root());
        }
        command.args(args).env("SPARK_RUN", self.run.path()).current_dir(self.bundle()).stdin(Stdio::null());
        default_signals(&mut command);
        command
    }

    /// Runs it, and waits for it.
    pub(crate) fn oci(&self, args: &[&str]) -> Output {
        Output::of(&args.join(" "), &mut self.command(args))
    }

    /// The same with the streams of what it makes going nowhere: a container would keep a pipe open.
    pub(crate) fn quietly(&self, args: &[&str]) -> i32 {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code().unwrap()
    }

    /// Creates and starts a container.
    pub(crate) fn start(&self, id: &str) {
        assert_eq!(self.quietly(&["create", id]), 0);
        self.oci(&["start", id]).ok();
    }

    pub(crate) fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.oci(&["state", id]).ok()).unwrap()
    }

    pub(crate) fn pid(&self, id: &str) -> i32 {
        self.state(id)["pid"].as_i64().unwrap() as i32
    }
}

/// The cgroups of containers with an id that no other test has.
pub(crate) fn cgroups(id: &str) -> Vec<PathBuf> {
    let fs = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(fs).unwrap().flatten().map(|e| e.path()).chain([fs.to_owned()]);
    let named =
        |e: &std::fs::DirEntry| e.file_name().to_string_lossy().starts_with(&format!("spark-oci-{id}-"));
    let below =
        |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().filter(named).map(|e| e.path());
    hierarchies.filter(|h| h.is_dir()).flat_map(below).collect()
}

impl Drop for Host {
    fn drop(&mut self) {
        let list = self.command(&["list", "-q"]).output().unwrap();
        for id in String::from_utf8_lossy(&list.stdout).lines() {
            let _ = self.command(&["delete", "--force", id]).status();
        }
    }
}
