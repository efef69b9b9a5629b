//! What kubelet does, over the socket of containerd's Container Runtime Interface.

use serde_json::{Value, json};

use crate::daemon::{Daemon, IMAGE, eventually};

/// A pod of a test.
struct Pod<'a> {
    daemon: &'a Daemon,
    config: Value,
    id: String,
}

impl<'a> Pod<'a> {
    fn run(daemon: &'a Daemon, name: &str, namespaces: Value) -> Pod<'a> {
        let config = json!({
            "metadata": {"name": name, "uid": name, "namespace": "default", "attempt": 0},
            "hostname": name,
            "log_directory": daemon.path().join("logs").display().to_string(),
            "linux": {
                "cgroup_parent": format!("/{}", daemon.namespace),
                "security_context": {"namespace_options": namespaces},
            },
        });
        let answer = daemon.cri("RunPodSandbox", &json!({"config": config, "runtime_handler": "spark"}));
        let answer = answer.unwrap_or_else(|e| panic!("{e}\n{}", daemon.log()));
        let id = answer["podSandboxId"].as_str().unwrap().to_owned();
        Pod { daemon, config, id }
    }

    fn call(&self, method: &str, request: Value) -> Value {
        self.daemon.cri(method, &request).unwrap_or_else(|e| panic!("{method}: {e}\n{}", self.daemon.log()))
    }

    /// Creates and starts a container. What it has in /data stays.
    fn create(&self, name: &str, attempt: u32, command: &[&str]) -> String {
        let data = self.daemon.path().join("data");
        std::fs::create_dir_all(&data).unwrap();
        let namespaces = &self.config["linux"]["security_context"]["namespace_options"];
        let config = json!({
            "metadata": {"name": name, "attempt": attempt},
            "image": {"image": IMAGE},
            "command": command,
            "envs": [{"key": "GREETING", "value": "hello"}],
            "mounts": [
                {"container_path": "/data", "host_path": data.display().to_string()},
                // As kubelet does with the token of a service account.
                {"container_path": "/var/run/secrets/token", "host_path": data.display().to_string()},
            ],
            "log_path": format!("{name}-{attempt}.log"),
            "linux": {
                "resources": {"memory_limit_in_bytes": 64 << 20, "cpu_shares": 512},
                "security_context": {"namespace_options": namespaces},
            },
        });
        let request = json!({"pod_sandbox_id": self.id, "config": config, "sandbox_config": self.config});
        let id = self.call("CreateContainer", request)["containerId"].as_str().unwrap().to_owned();
        self.call("StartContainer", json!({"container_id": id}));
        id
    }

    fn exec(&self, id: &str, script: &str) -> (String, i64) {
        let request = json!({"container_id": id, "cmd": ["sh", "-c", script], "timeout": 30});
        let answer = self.call("ExecSync", request);
        (decoded(answer["stdout"].as_str().unwrap()), answer["exitCode"].as_i64().unwrap())
    }

    fn state(&self, id: &str) -> (String, i64) {
        let status = &self.call("ContainerStatus", json!({"container_id": id}))["status"];
        (status["state"].as_str().unwrap().to_owned(), status["exitCode"].as_i64().unwrap())
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.daemon.path().join("logs").join(name)).unwrap_or_default()
    }

    fn remove(&self) {
        self.call("StopPodSandbox", json!({"pod_sandbox_id": self.id}));
        self.call("RemovePodSandbox", json!({"pod_sandbox_id": self.id}));
        eventually("its shim has ended", || self.daemon.shims().is_empty());
        eventually("nothing of it is left", || self.daemon.leftovers().is_empty());
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        // Its network namespace is a mount that nobody else removes.
        if std::thread::panicking() {
            let _ = self.daemon.cri("StopPodSandbox", &json!({"pod_sandbox_id": self.id}));
        }
    }
}

/// Base64 as protobuf's JSON has bytes.
fn decoded(base64: &str) -> String {
    let output =
        std::process::Command::new("sh").args(["-c", "printf %s \"$0\" | base64 -d", base64]).output();
    crate::daemon::text(&output.unwrap().stdout)
}

#[test]
fn two_containers_of_a_pod_share_a_shim_and_a_network() {
    let daemon = Daemon::new();
    let pod = Pod::run(&daemon, "web", json!({"pid": "CONTAINER"}));
    let server = pod.create("server", 0, &["sh", "-c", "echo $GREETING; exec httpd -f -p 8080 -h /etc"]);
    let client = pod.create("client", 0, &["sleep", "1000"]);
    assert_eq!(daemon.shims().len(), 1);
    let status = pod.call("PodSandboxStatus", json!({"pod_sandbox_id": pod.id}));
    assert_eq!(status["status"]["state"], "SANDBOX_READY");
    assert!(status["status"]["network"]["ip"].as_str().unwrap().starts_with("10.213.77."), "{status}");
    let fetch = "wget -q -O - http://127.0.0.1:8080/passwd";
    eventually("they reach each other", || pod.exec(&client, fetch).0.starts_with("root:"));
    assert_eq!(pod.exec(&client, "hostname; exit 4"), ("web\n".into(), 4));
    // Each has its own processes.
    assert_eq!(pod.exec(&client, "cat /proc/1/cmdline | tr '\\0' ' '").0, "sleep 1000 ");
    eventually("its log is written", || pod.log("server-0.log").contains("stdout F hello"));
    let stats = pod.call("ContainerStats", json!({"container_id": server}));
    let used = stats["stats"]["memory"]["workingSetBytes"]["value"].as_str().unwrap();
    assert!(used.parse::<u64>().unwrap() > 0, "{stats}");
    pod.call("StopContainer", json!({"container_id": server, "timeout": 1}));
    let (state, code) = pod.state(&server);
    assert_eq!(state, "CONTAINER_EXITED");
    assert!(code == 137 || code == 143, "{code}");
    assert_eq!(pod.state(&client).0, "CONTAINER_RUNNING");
    pod.call("RemoveContainer", json!({"container_id": server}));
    pod.remove();
}

#[test]
fn a_container_that_has_ended_is_started_again_in_its_pod() {
    let daemon = Daemon::new();
    let pod = Pod::run(&daemon, "job", json!({"pid": "CONTAINER"}));
    let first = pod.create("work", 0, &["sh", "-c", "exit 5"]);
    eventually("it has ended", || pod.state(&first).0 == "CONTAINER_EXITED");
    assert_eq!(pod.state(&first).1, 5);
    let second = pod.create("work", 1, &["sleep", "1000"]);
    pod.call("RemoveContainer", json!({"container_id": first}));
    assert_eq!(pod.state(&second).0, "CONTAINER_RUNNING");
    let raised = json!({"container_id": second, "linux": {"memory_limit_in_bytes": 128 << 20}});
    pod.call("UpdateContainerResources", raised);
    let pid = daemon.shims().into_iter().flat_map(crate::daemon::children).find(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep\x001000"))
    });
    assert_eq!(memory_limit(pid.unwrap()), (128 << 20).to_string());
    pod.remove();
}

/// What limits the memory of a process.
fn memory_limit(pid: u32) -> String {
    let places = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let v1 = places.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path.to_owned()));
    let file = match v1 {
        Some(path) => format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"),
        None => format!("/sys/fs/cgroup{}/memory.max", places.trim().strip_prefix("0::").unwrap()),
    };
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

#[test]
fn where_processes_are_shared_those_of_an_ended_container_end_too() {
    let daemon = Daemon::new();
    let pod = Pod::run(&daemon, "shared", json!({"pid": "POD"}));
    let a = pod.create("a", 0, &["sleep", "1000"]);
    // Its child is no child of a PID 1 that the kernel would end it with.
    let b = pod.create("b", 0, &["sh", "-c", "sleep 4242 & while ! test -e /data/go; do sleep 0.1; done"]);
    assert!(pod.exec(&a, "ps").0.contains("sleep 4242"));
    pod.exec(&a, "touch /data/go");
    eventually("it has ended", || pod.state(&b).0 == "CONTAINER_EXITED");
    eventually("so has what it left", || !pod.exec(&a, "ps").0.contains("sleep 4242"));
    assert_eq!(pod.state(&a).0, "CONTAINER_RUNNING");
    pod.remove();
}

#[test]
fn a_pod_that_is_suspended_and_resumed_has_its_volume_again() {
    let daemon = Daemon::new();
    let ends_on_term = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";
    let pod = Pod::run(&daemon, "sandbox-0", json!({"pid": "CONTAINER"}));
    let first = pod.create("sandbox", 0, &["sh", "-c", ends_on_term]);
    pod.exec(&first, "echo kept > /data/file");
    pod.call("StopContainer", json!({"container_id": first, "timeout": 30}));
    assert_eq!(pod.state(&first), ("CONTAINER_EXITED".into(), 0));
    pod.remove();
    let pod = Pod::run(&daemon, "sandbox-0", json!({"pid": "CONTAINER"}));
    let second = pod.create("sandbox", 0, &["sh", "-c", ends_on_term]);
    assert_eq!(pod.exec(&second, "cat /data/file; hostname").0, "kept\nsandbox-0\n");
    // The link on the way to it is followed inside the root.
    let seen = pod.exec(&second, "cat /var/run/secrets/token/file /run/secrets/token/file");
    assert_eq!(seen, ("kept\nkept\n".into(), 0));
    assert!(!std::path::Path::new("/run/secrets/token").exists());
    pod.remove();
}

#[test]
fn when_the_shim_of_a_pod_is_killed_all_its_containers_end() {
    let daemon = Daemon::new();
    let pod = Pod::run(&daemon, "doomed", json!({"pid": "CONTAINER"}));
    let ids = [pod.create("a", 0, &["sleep", "1000"]), pod.create("b", 0, &["sleep", "1000"])];
    let [shim] = daemon.shims()[..] else { panic!("not one shim") };
    let children = crate::daemon::children(shim);
    assert_eq!(children.len(), 3);
    std::process::Command::new("kill").args(["-9", &shim.to_string()]).status().unwrap();
    eventually("they are gone", || {
        children.iter().all(|pid| !std::fs::exists(format!("/proc/{pid}")).unwrap())
    });
    for id in &ids {
        // With what status, containerd does not know any more.
        eventually("it is known to have ended", || pod.state(id).0 == "CONTAINER_EXITED");
    }
    pod.remove();
}
