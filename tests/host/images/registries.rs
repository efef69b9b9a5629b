//! Registries: Debian's docker-registry on a loopback port, open, closed, with tokens and with TLS.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::built::{Tar, busybox, index, layout, sh};
use crate::common::{Killed, Machine, Output, wait_for};

/// Ends with the test.
pub(super) struct Server(Killed);

impl Server {
    /// Starts a program that is told which port to listen at. A free port may be somebody else's a moment later, who
    /// would be taken for the server: then it is another one.
    fn start(command: impl Fn(u16) -> Command) -> (u16, Server) {
        for _ in 0..10 {
            let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
            let mut command = command(port);
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            let mut server =
                Server(Killed(child.unwrap_or_else(|e| panic!("these tests need {command:?}: {e}"))));
            let pid = server.0.id();
            let mut ended = || server.0.try_wait().unwrap().is_some();
            let ended = std::cell::RefCell::new(&mut ended);
            assert!(wait_for(|| listens(pid, port) || ended.borrow_mut()()), "{command:?} does not listen");
            if listens(pid, port) {
                return (port, server);
            }
        }
        panic!("no port stays free for long enough");
    }
}

/// Whether a process has the socket that listens at a port.
fn listens(pid: u32, port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let at = format!("0100007F:{port:04X}");
    let sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut listening = sockets.filter(|f| f.len() > 9 && f[1] == at && f[3] == "0A");
    listening.any(|fields| {
        let socket = PathBuf::from(format!("socket:[{}]", fields[9]));
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == socket))
    })
}

/// A registry of a test's own.
pub(super) struct Registry {
    pub(super) host: String,
    dir: PathBuf,
    _server: Server,
}

impl Registry {
    /// `more` is configuration besides where its files are and where it listens; `tls` is what belongs below `http`.
    pub(super) fn start(machine: &Machine, more: &str, tls: &str) -> Registry {
        let dir = tempfile::Builder::new().prefix("registry-").tempdir_in(machine.work()).unwrap().keep();
        let (port, _server) = Server::start(|port| {
            let config = format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {dir}/files}}}}\n\
                 http:\n  addr: 127.0.0.1:{port}\n{tls}\n{more}\n",
                dir = dir.display()
            );
            std::fs::write(dir.join("config.yml"), config).unwrap();
            let mut command = Command::new("docker-registry");
            let log = std::fs::File::create(dir.join("log")).unwrap();
            command.arg("serve").arg(dir.join("config.yml")).stderr(log);
            command
        });
        Registry { host: format!("127.0.0.1:{port}"), dir, _server }
    }

    pub(super) fn open(machine: &Machine) -> Registry {
        Registry::start(machine, "", "")
    }

    /// Puts an image into it.
    fn fill(&self, machine: &Machine, tag: &str, options: &str) {
        let dir = machine.work().join("l");
        if !dir.exists() {
            layout(
                &dir,
                tag,
                &[busybox().layer().gzip(), Tar::default().file("own", b"1").layer()],
                json!({}),
            );
        }
        let host = &self.host;
        sh(
            &machine.work(),
            &format!(
                "skopeo copy -q {options} --dest-tls-verify=false oci:l:{tag} docker://{host}/team/app:{tag}"
            ),
        );
    }

    fn name(&self, what: &str) -> String {
        format!("{}/{what}", self.host)
    }
}

fn pull(machine: &Machine, name: &str, env: &[(&str, &Path)]) -> Output {
    let mut command = machine.command(&["--json", "base", "pull", name]);
    command.envs(env.iter().copied());
    Output::of("base pull", &mut command)
}

#[test]
fn what_was_pulled_is_pushed_with_the_same_digest_and_to_another_repository_without_its_bytes() {
    let machine = Machine::new();
    let registry = Registry::open(&machine);
    registry.fill(&machine, "v1", "");
    let digest = |name: &str| {
        let line =
            format!("skopeo inspect --tls-verify=false docker://{} | jq -r .Digest", registry.name(name));
        sh(&machine.work(), &line).trim().to_owned()
    };
    let name = registry.name("team/app:v1");
    let base = pull(&machine, &name, &[]).json();
    assert_eq!((&base["name"], &base["image"]["digest"]), (&json!("app-v1"), &json!(digest("team/app:v1"))));
    for to in ["team/app:copy", "other/app:v1"] {
        let pushed = machine.spark(&["--json", "base", "push", "app-v1", &registry.name(to)]).json();
        assert_eq!(pushed["digest"], json!(digest(to)));
        assert_eq!(digest(to), digest("team/app:v1"));
    }
    // By its digest, and as another base.
    machine
        .spark(&[
            "base",
            "pull",
            &format!("{}@{}", registry.name("team/app"), digest("team/app:v1")),
            "exact",
        ])
        .ok();
    machine.spark(&["--json", "base", "pull", &registry.name("team/app:none")]).fails_with("not_found");
    machine.spark(&["--json", "base", "pull", &registry.name("nobody/app")]).fails_with("not_found");
    // The process that pulled is the one that starts.
    let name = registry.name("other/app:v1");
    machine.spark(&["create", "web", "--image", &name, "--network", "none"]).ok();
    assert_eq!(machine.spark(&["exec", "web", "--", "/bin/cat", "/own"]).ok(), "1");
    // No base of its own, and nothing to ask for.
    drop(registry);
    machine.spark(&["create", "more", "--image", &name, "--no-start"]).ok();
    machine.spark(&["--json", "base", "pull", &name, "app-v1-2"]).fails_with("network");
}

#[test]
fn a_blob_that_a_registry_has_spoilt_is_refused() {
    let machine = Machine::new();
    let registry = Registry::open(&machine);
    registry.fill(&machine, "v1", "");
    let spoil = "for f in $(find files/docker/registry/v2/blobs -name data -size +100k); do printf x | dd of=$f bs=1 seek=5000 conv=notrunc status=none; done";
    sh(&registry.dir, spoil);
    let message = pull(&machine, &registry.name("team/app:v1"), &[]).fails_with("image");
    assert!(message.contains("is not what it should be"), "{message}");
    assert!(machine.staged().is_empty());
}

/// spark:secret
const HTPASSWD: &str = "spark:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

#[test]
fn a_private_registry_wants_what_a_login_left_or_a_helper_says() {
    let machine = Machine::new();
    let file = machine.work().join("htpasswd");
    std::fs::write(&file, HTPASSWD).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: r, path: {}}}}}", file.display());
    let registry = Registry::start(&machine, &auth, "");
    registry.fill(&machine, "v1", "--dest-creds spark:secret");
    let name = registry.name("team/app:v1");
    let denied = pull(&machine, &name, &[]);
    denied.fails_with("denied");
    assert!(denied.stderr().contains("podman login"));
    // Where docker and podman leave it; `spark:secret` in base64.
    let config = |auth: &str| json!({ "auths": { &registry.host: { "auth": auth } } }).to_string();
    let docker = machine.place().root.parent().unwrap().join("home/.docker");
    std::fs::create_dir(&docker).unwrap();
    std::fs::write(docker.join("config.json"), config("c3Bhcms6d3Jvbmc=")).unwrap();
    pull(&machine, &name, &[]).fails_with("denied");
    std::fs::write(docker.join("config.json"), config("c3Bhcms6c2VjcmV0")).unwrap();
    pull(&machine, &name, &[]).ok();
    machine.spark(&["base", "push", "app-v1", &registry.name("team/pushed")]).ok();
    std::fs::write(docker.join("config.json"), "{").unwrap();
    let message = pull(&machine, &name, &[]).fails_with("denied");
    assert!(message.contains("config.json is damaged"), "{message}");
    std::fs::remove_file(docker.join("config.json")).unwrap();

    // A helper, run as the caller's user, who reads only what the user can read.
    let bin = machine.work().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let helper = bin.join("docker-credential-test");
    let script = "#!/bin/sh\nread -r host\n[ -z \"$CANARY\" ] && [ \"$HOME\" ] || exit 1\n\
                  echo \"{\\\"ServerURL\\\":\\\"$host\\\",\\\"Username\\\":\\\"spark\\\",\\\"Secret\\\":\\\"$(test $(id -u) = 65534 && echo secret)\\\"}\"\n";
    std::fs::write(&helper, script).unwrap();
    let auth = machine.work().join("auth.json");
    std::fs::write(&auth, json!({ "credHelpers": { &registry.host: "test" } }).to_string()).unwrap();
    for path in [&machine.work(), machine.work().parent().unwrap(), &bin, &helper, &auth] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let as_nobody = |uid: &str| {
        let mut command = machine.command(&["--json", "base", "pull", &name, "helped"]);
        command.env("PATH", &path).env("REGISTRY_AUTH_FILE", &auth).env("SUDO_UID", uid).env("SUDO_GID", uid);
        Output::of("base pull", command.env("CANARY", "root's own"))
    };
    as_nobody("0").fails_with("denied");
    as_nobody("65534").ok();
    std::fs::set_permissions(&auth, PermissionsExt::from_mode(0o600)).unwrap();
    as_nobody("65534").fails_with("denied");
}

#[test]
fn a_registry_with_tokens_gives_one_for_what_is_asked() {
    let machine = Machine::new();
    let work = machine.work();
    sh(
        &work,
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN=auth -days 2 2>/dev/null",
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/images/tokens.py");
    let (port, _tokens) = Server::start(|port| {
        let mut command = Command::new("python3");
        let log = std::fs::File::create(work.join("tokens.log")).unwrap();
        command.arg(&script).arg(port.to_string()).current_dir(&work).stderr(log);
        command
    });
    let auth = format!(
        "auth: {{token: {{realm: \"http://127.0.0.1:{port}/token\", service: s, issuer: i, rootcertbundle: {}}}}}",
        work.join("cert.pem").display()
    );
    let registry = Registry::start(&machine, &auth, "");
    registry.fill(&machine, "v1", "--dest-creds spark:secret");
    let name = registry.name("team/app:v1");
    // Everybody may pull, and only the one who is known may push.
    pull(&machine, &name, &[]).ok();
    machine.spark(&["--json", "base", "push", "app-v1", &registry.name("team/new")]).fails_with("denied");
    let auth = work.join("auth.json");
    std::fs::write(&auth, json!({ "auths": { &registry.host: { "auth": "c3Bhcms6c2VjcmV0" } } }).to_string())
        .unwrap();
    let mut command = machine.command(&["base", "push", "app-v1", &registry.name("team/new")]);
    Output::of("base push", command.env("REGISTRY_AUTH_FILE", &auth)).ok();
    pull(&machine, &registry.name("team/new"), &[]).ok();
}

#[test]
fn tls_is_believed_only_where_its_authority_is_known() {
    let machine = Machine::new();
    let work = machine.work();
    sh(
        &work,
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN=127.0.0.1 \
               -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE -days 2 2>/dev/null",
    );
    let tls = format!("  tls: {{certificate: {0}/cert.pem, key: {0}/key.pem}}", work.display());
    let registry = Registry::start(&machine, "", &tls);
    registry.fill(&machine, "v1", "");
    let name = registry.name("team/app:v1");
    let message = pull(&machine, &name, &[]).fails_with("network");
    assert!(message.contains("certificate"), "{message}");
    pull(&machine, &name, &[("SSL_CERT_FILE", &work.join("cert.pem"))]).ok();
    // As docker and podman have it, for this registry alone.
    let dir = Path::new("/etc/containers/certs.d").join(&registry.host);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(work.join("cert.pem"), dir.join("ca.crt")).unwrap();
    let pulled = machine.spark(&["base", "pull", &name, "again"]);
    std::fs::remove_dir_all(&dir).unwrap();
    let _ = std::fs::remove_dir("/etc/containers/certs.d");
    pulled.ok();
}

/// Writes the caller's `registries.conf`, and returns its directory.
fn conf(machine: &Machine, text: &str) -> PathBuf {
    let dir = machine.home().join(".config/containers");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("registries.conf"), text).unwrap();
    dir
}

#[test]
fn a_mirror_of_registries_conf_is_asked_first_and_the_registry_where_it_has_nothing_or_is_down() {
    let machine = Machine::new();
    let (mirror, registry) = (Registry::open(&machine), Registry::open(&machine));
    registry.fill(&machine, "v1", "");
    // As the mirror has it, it can be told from the other one.
    std::fs::remove_dir_all(machine.work().join("l")).unwrap();
    layout(&machine.work().join("l"), "v1", &[busybox().file("mirrored", b"").layer()], json!({}));
    mirror.fill(&machine, "v1", "");
    let dir = conf(
        &machine,
        &format!(
            "[[registry]]\nprefix = \"h.example/team\"\nlocation = \"{}/team\"\n\
             [[registry.mirror]]\nlocation = \"{}/team\"\n",
            registry.host, mirror.host
        ),
    );
    let has = |base: &str| machine.pool().join("bases").join(base).join("root/mirrored").exists();
    // A base is called, and found again, by what was asked for.
    let first = pull(&machine, "h.example/team/app:v1", &[]).json();
    assert_eq!(first["image"]["reference"], "h.example/team/app:v1");
    assert!(has("app-v1"));
    // By a digest that the mirror has not, and when it is down.
    let digest = sh(
        &machine.work(),
        &format!(
            "skopeo inspect --tls-verify=false --format '{{{{.Digest}}}}' docker://{}",
            registry.name("team/app:v1")
        ),
    );
    machine.spark(&["base", "pull", &format!("h.example/team/app@{}", digest.trim()), "exact"]).ok();
    assert!(!has("exact"));
    drop(mirror);
    machine.spark(&["base", "pull", "h.example/team/app:v1", "down"]).ok();
    assert!(!has("down"));
    // Both are told when nobody has it.
    let message = pull(&machine, "h.example/team/app:none", &[]).fails_with("not_found");
    assert!(message.contains(&registry.host) && message.contains("; its mirror before that: "), "{message}");

    // A drop-in is read after it, and one that is damaged is named.
    let parts = dir.join("registries.conf.d");
    std::fs::create_dir(&parts).unwrap();
    let blocked = "[[registry]]\nlocation = \"h.example/team\"\nblocked = true\n";
    std::fs::write(parts.join("50-no.conf"), blocked).unwrap();
    let message = pull(&machine, "h.example/team/app:v1", &[]).fails_with("denied");
    assert!(
        message.contains("`h.example/team` is blocked in") && message.contains("50-no.conf"),
        "{message}"
    );
    let push = machine.spark(&["--json", "base", "push", "down", "h.example/team/app:w"]);
    assert!(push.fails_with("denied").contains("50-no.conf"));
    std::fs::write(parts.join("60-bad.conf"), "[[registry]]\nblocked = 1\n").unwrap();
    let message = pull(&machine, "h.example/team/app:v1", &[]).fails_with("usage");
    assert!(message.contains("60-bad.conf: line 2"), "{message}");
    // What the environment names stands for the file, and has to be there.
    std::fs::remove_dir_all(&parts).unwrap();
    let other = machine.work().join("other.conf");
    let named = [("CONTAINERS_REGISTRIES_CONF", other.as_path())];
    pull(&machine, "h.example/team/app:v1", &named).fails_with("not_found");
    std::fs::write(&other, "[[registry]]\nlocation = \"h.example\"\nblocked = true\n").unwrap();
    pull(&machine, "h.example/team/app:v1", &named).fails_with("denied");
}

/// A registry without TLS at an address that is not of the loopback device, in a network of its own: then a command.
const PLAIN: &str = "
    ip link set lo up; ip link add d0 type bridge; ip address add 10.213.99.1/24 dev d0; ip link set d0 up
    sed 's/addr: .*/addr: 10.213.99.1:5000/; /tls:/d' \"$CONFIG\" > plain.yml
    docker-registry serve plain.yml 2>plain.log &
    registry=$!
    trap 'kill $registry' EXIT
    until nc -z 10.213.99.1 5000; do kill -0 $registry; sleep 0.05; done
    \"$@\"";

#[test]
fn an_insecure_registry_may_be_anybody_and_have_no_tls_and_no_other_may() {
    let machine = Machine::new();
    let work = machine.work();
    sh(
        &work,
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN=nobody -days 2 2>/dev/null",
    );
    let tls = format!("  tls: {{certificate: {0}/cert.pem, key: {0}/key.pem}}", work.display());
    let registry = Registry::start(&machine, "", &tls);
    registry.fill(&machine, "v1", "");
    let name = registry.name("team/app:v1");
    let insecure = |host: &str| format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n");
    conf(&machine, &insecure("h.example"));
    pull(&machine, &name, &[]).fails_with("network");
    conf(&machine, &insecure(&registry.host));
    pull(&machine, &name, &[]).ok();
    machine.spark(&["base", "push", "app-v1", &registry.name("team/pushed")]).ok();

    let plain = || {
        let spark = machine.command(&["--json", "base", "pull", "10.213.99.1:5000/team/app:v1", "plain"]);
        let mut command = Command::new("unshare");
        command.args(["-n", "timeout", "-k", "2", "600", "sh", "-ec", PLAIN, "sh"]);
        command.arg(spark.get_program()).args(spark.get_args()).current_dir(&work);
        command.envs(spark.get_envs().filter_map(|(key, value)| Some((key, value?))));
        Output::of("base pull", command.env("CONFIG", registry.dir.join("config.yml")))
    };
    plain().fails_with("network");
    conf(&machine, &insecure("10.213.99.1:5000"));
    plain().ok();
}

#[test]
fn of_an_index_in_a_registry_this_hosts_image_is_pulled() {
    let machine = Machine::new();
    let registry = Registry::open(&machine);
    let dir = machine.work().join("l");
    for tag in ["here", "there"] {
        layout(&dir, tag, &[busybox().file("which", tag.as_bytes()).layer().gzip()], json!({}));
    }
    let own = sparks::domain::image::Platform::default().architecture;
    index(&dir, "v1", &[("there", "s390x"), ("here", &own)]);
    registry.fill(&machine, "v1", "--all");
    machine.spark(&["base", "pull", &registry.name("team/app:v1")]).ok();
    let which = std::fs::read_to_string(machine.pool().join("bases/app-v1/root/which")).unwrap();
    assert_eq!(which, "here");
}
