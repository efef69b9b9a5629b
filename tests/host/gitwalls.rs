//! What git cannot reach, though it has the rights of the repository's owner: a program in its place tries.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::clone::{commit, git, repository, root};
use crate::common::Machine;

/// Tries what a git that a stranger took over would, and says of each attempt `in` or the error.
const ATTACK: &str = r##"
import ctypes, errno, os, resource, socket, sys
work, port, pid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
staged = os.environ.get("TMPDIR", work + "/open")
libc = ctypes.CDLL(None, use_errno=True)
said = []
def attempt(name, run):
    try:
        run()
        said.append(name + "=in")
    except OSError as e:
        said.append(name + "=" + errno.errorcode.get(e.errno, "?"))
def call(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), "call")
def tcp():
    socket.create_connection(("127.0.0.1", port), 5).close()
def local():
    s = socket.socket(socket.AF_UNIX)
    s.connect(work + "/open/listener")
def run():
    path = staged + "/program"
    with open(path, "w") as f:
        f.write("#!/bin/sh\nexit 0\n")
    os.chmod(path, 0o755)
    if os.spawnv(os.P_WAIT, path, [path]) != 0:
        raise OSError(errno.EACCES, path)
attempt("tcp", tcp)
attempt("unix", local)
attempt("read", lambda: open(work + "/id").read())
attempt("list", lambda: os.listdir(work + "/open"))
attempt("write", lambda: open(work + "/open/planted", "w").close())
attempt("hook", lambda: open(work + "/shop/.git/hooks/planted", "w").close())
attempt("object", lambda: open(work + "/shop/.git/objects/planted", "w").close())
attempt("tree", lambda: open(work + "/shop/planted", "w").close())
attempt("program", run)
attempt("signal", lambda: os.kill(pid, 0))
attempt("namespace", lambda: call(libc.unshare(0x10000000)))
attempt("trace", lambda: call(libc.ptrace(16, pid, 0, 0)))
if os.getuid() == 0:
    open(staged + "/owned", "w").close()
    attempt("chown", lambda: os.chown(staged + "/owned", 12345, 12345))
said.append("net=" + os.readlink("/proc/self/ns/net"))
said.append("core=%d,%d" % resource.getrlimit(resource.RLIMIT_CORE))
sys.stderr.write(" ".join(said))
sys.exit(1)
"##;

/// Files, listeners and a process of the host, which belong to `owner` as the repository does.
struct Host {
    machine: Machine,
    repo: PathBuf,
    owner: u32,
    listener: TcpListener,
    _local: UnixListener,
    process: std::process::Child,
}

impl Host {
    fn new(owner: u32) -> Host {
        let machine = Machine::new().with_base();
        let repo = repository(&machine);
        for dir in [machine.work().parent().unwrap().to_owned(), machine.work()] {
            std::fs::set_permissions(dir, PermissionsExt::from_mode(0o777)).unwrap();
        }
        let open = machine.work().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::create_dir_all(repo.join(".git/hooks")).unwrap();
        let local = UnixListener::bind(open.join("listener")).unwrap();
        let id = machine.work().join("id");
        std::fs::write(&id, "the key").unwrap();
        std::fs::set_permissions(&id, PermissionsExt::from_mode(0o600)).unwrap();
        let chown = Command::new("chown")
            .args(["-R", &format!("{owner}:{owner}")])
            .args([&repo, &open, &id])
            .status();
        assert!(chown.unwrap().success());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let process = as_user(owner, "sleep").arg("1000").spawn().unwrap();
        Host { machine, repo, owner, listener, _local: local, process }
    }

    fn args(&self) -> [String; 3] {
        let port = self.listener.local_addr().unwrap().port();
        [self.machine.work().display().to_string(), port.to_string(), self.process.id().to_string()]
    }

    /// Puts a program in git's place that attacks if it is called with a word, and else is git.
    fn attack_in_place_of(&self, word: &str) -> PathBuf {
        let bin = self.machine.work().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let real = Command::new("sh").args(["-c", "command -v git"]).output().unwrap();
        let real = String::from_utf8(real.stdout).unwrap();
        let [work, port, pid] = self.args();
        let script = format!(
            "#!/bin/sh\nfor arg; do\n[ \"$arg\" != {word} ] || exec python3 -I -S -c '{ATTACK}' {work} {port} {pid}\ndone\nexec {} \"$@\"\n",
            real.trim()
        );
        std::fs::write(bin.join("git"), script).unwrap();
        std::fs::set_permissions(bin.join("git"), PermissionsExt::from_mode(0o755)).unwrap();
        bin
    }

    /// `spark` that finds the attack in git's place.
    fn spark(&self, word: &str, args: &[&str]) -> Command {
        let bin = self.attack_in_place_of(word);
        let mut command = self.machine.command(args);
        let path = std::env::var_os("PATH").unwrap();
        let dirs = std::iter::once(bin).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(dirs).unwrap());
        command
    }

    /// What the attack says under confinement.
    #[track_caller]
    fn attacked(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains("tcp="), "{text}");
        text
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn as_user(id: u32, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.env("PATH", "/usr/bin:/bin");
    command.args([format!("--reuid={id}"), format!("--regid={id}"), "--clear-groups".into(), program.into()]);
    command
}

#[track_caller]
fn has(said: &str, all: &[&str]) {
    for one in all {
        assert!(said.split_ascii_whitespace().any(|word| word == *one), "no {one} in: {said}");
    }
}

fn landlock() -> u32 {
    sparks::sys::confine::landlock_version().expect("these tests need a kernel with Landlock")
}

const CLOSED: [&str; 8] = [
    "tcp=ENOSYS",
    "unix=ENOSYS",
    "read=EACCES",
    "list=EACCES",
    "write=EACCES",
    "hook=EACCES",
    "tree=EACCES",
    "program=EACCES",
];

#[test]
fn the_attack_succeeds_where_nothing_confines_it() {
    for owner in [0, 1000] {
        let host = Host::new(owner);
        let mut command = as_user(owner, "python3");
        let output = command.args(["-I", "-S", "-c", ATTACK]).args(host.args()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let all = ["tcp", "unix", "read", "list", "write", "hook", "object", "tree", "program", "signal"];
        has(&said, &all.map(|name| format!("{name}=in")).each_ref().map(String::as_str));
    }
}

#[test]
fn git_reaches_nothing_of_its_users_but_the_repository() {
    landlock();
    for owner in [0, 1000] {
        let host = Host::new(owner);
        let create = ["create", "web", "--no-start", "--clone", "shop"];
        let said = host.attacked(&mut host.spark("pack-objects", &create));
        has(&said, &CLOSED);
        has(&said, &["object=EACCES", "namespace=ENOSYS", "trace=ENOSYS", "core=1,1"]);
        if landlock() >= 6 {
            has(&said, &["signal=EPERM"]);
        }
        if host.owner == 0 {
            has(&said, &["chown=EPERM"]);
        }
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert!(said.contains("net=net:") && !said.contains(ours.to_str().unwrap()), "{said}");
        assert!(!host.repo.join("planted").exists());
    }
}

#[test]
fn a_pull_writes_objects_and_then_refs_and_reads_nothing_else() {
    landlock();
    for (word, objects, hook) in [
        ("index-pack", "object=EACCES", "hook=EACCES"),
        ("unpack-objects", "object=in", "hook=EACCES"),
        // Refs are in several places of the git directory, so all of that is open to what takes nothing from inside.
        ("update-ref", "object=in", "hook=in"),
    ] {
        let host = Host::new(1000);
        host.machine.spark(&["create", "web", "--no-start", "--clone", "shop"]).ok();
        commit(&root(&host.machine, "web").join("work/shop"), "c.txt", "three");
        let said = host.attacked(&mut host.spark(word, &["pull", "web"]));
        has(
            &said,
            &[objects, hook, "tcp=ENOSYS", "unix=ENOSYS", "read=EACCES", "list=EACCES", "write=EACCES"],
        );
        has(&said, &["tree=EACCES", "program=EACCES", "namespace=ENOSYS"]);
    }
}

/// Runs a command on a kernel that seems to have no Landlock.
fn without_landlock(command: &Command) -> Command {
    const FILTER: &str = r#"
import ctypes, os, struct, sys
# Load the number of the call; 444 is landlock_create_ruleset, and 38 is ENOSYS.
code = b"".join(struct.pack("HBBI", *i) for i in [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (6, 0, 0, 0x50026), (6, 0, 0, 0x7FFF0000)])
buffer = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(22, 2, program) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"#;
    let mut other = Command::new("python3");
    other.args(["-c", FILTER]).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => other.env(key, value),
            None => other.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        other.current_dir(dir);
    }
    other.stdin(std::process::Stdio::null());
    other
}

#[test]
fn without_landlock_everything_else_holds_and_doctor_says_so() {
    let host = Host::new(1000);
    let create = ["create", "web", "--no-start", "--clone", "shop"];
    let said = host.attacked(&mut without_landlock(&host.spark("pack-objects", &create)));
    has(&said, &["tcp=ENOSYS", "unix=ENOSYS", "namespace=ENOSYS", "trace=ENOSYS", "read=in"]);
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert!(!said.contains(ours.to_str().unwrap()), "{said}");
    let doctor = without_landlock(&host.machine.command(&["doctor"])).output().unwrap();
    let text = String::from_utf8(doctor.stdout).unwrap();
    assert!(text.contains("Landlock") && text.contains("git can read"), "{text}");
}

#[test]
fn a_repository_made_of_parts_elsewhere_is_cloned_and_pulled_into() {
    let machine = Machine::new().with_base();
    let (repo, work) = (repository(&machine), machine.work());
    // Alternates of alternates.
    git(&work, &["clone", "--quiet", "--shared", "shop", "second"]);
    git(&work, &["clone", "--quiet", "--shared", "second", "third"]);
    // A git directory of links, as git-new-workdir makes one.
    std::fs::create_dir_all(work.join("linked/.git/logs")).unwrap();
    for part in ["config", "refs", "logs/refs", "objects", "info", "packed-refs"] {
        std::os::unix::fs::symlink(repo.join(".git").join(part), work.join("linked/.git").join(part))
            .unwrap();
    }
    std::fs::copy(repo.join(".git/HEAD"), work.join("linked/.git/HEAD")).unwrap();
    // Configuration that includes other files, one of them empty.
    git(&work, &["clone", "--quiet", "shop", "including"]);
    std::fs::write(work.join("shared.conf"), "[user]\n\tname = Shared\n").unwrap();
    std::fs::write(work.join("empty.conf"), "").unwrap();
    for file in ["shared.conf", "empty.conf"] {
        git(&work.join("including"), &["config", "--add", "include.path", work.join(file).to_str().unwrap()]);
    }
    for name in ["third", "linked", "including"] {
        machine.spark(&["create", name, "--no-start", "--clone", name]).ok();
        let inside = root(&machine, name).join("work").join(name);
        git(&inside, &["fsck", "--strict"]);
        let id = commit(&inside, "new.txt", name);
        machine.spark(&["pull", name]).ok();
        assert_eq!(git(&work.join(name), &["rev-parse", &format!("refs/spark/{name}/main")]), id, "{name}");
    }
}

/// Runs a command where user 1000 is `ann`, with a home.
fn with_ann(command: &Command, home: &Path) -> Command {
    let passwd = home.join("../passwd");
    std::fs::write(
        &passwd,
        format!("root:x:0:0::/root:/bin/sh\nann:x:1000:1000::{}:/bin/sh\n", home.display()),
    )
    .unwrap();
    let mut other = Command::new("unshare");
    let script = "mount --bind \"$0\" /etc/passwd && exec \"$@\"";
    other.args(["-m", "sh", "-c", script]).arg(&passwd).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => other.env(key, value),
            None => other.env_remove(key),
        };
    }
    other.current_dir(command.get_current_dir().unwrap()).stdin(std::process::Stdio::null());
    other
}

#[test]
fn the_owners_configuration_and_filters_count_for_uncommitted_work() {
    let host = Host::new(1000);
    let home = host.machine.work().join("ann");
    std::fs::create_dir_all(home.join("dots")).unwrap();
    std::fs::create_dir_all(home.join(".config/git")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(home.join(name), text).unwrap();
    write("dots/gitconfig", "[include]\n\tpath = dots/more\n[core]\n\texcludesFile = ~/dots/excludes\n");
    write("dots/more", "[filter \"shout\"]\n\tclean = shout\n");
    write("dots/excludes", "*.secret\n");
    write("dots/ignore", "*.tmp\n");
    write("words", "upper");
    std::os::unix::fs::symlink("dots/gitconfig", home.join(".gitconfig")).unwrap();
    // The first program of the owner's that is found, which reads a file of the owner's.
    let bin = host.machine.work().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let filter = format!("#!/bin/sh\ncat {}/words >&2 && tr a-z A-Z\n", home.display());
    std::fs::write(bin.join("shout"), filter).unwrap();
    std::fs::set_permissions(bin.join("shout"), PermissionsExt::from_mode(0o755)).unwrap();
    for (name, text) in [(".gitattributes", "*.txt filter=shout\n"), ("b.txt", "loud"), ("x.secret", "")] {
        std::fs::write(host.repo.join(name), text).unwrap();
    }
    let chown = Command::new("chown").args(["-R", "1000:1000"]).args([&home, &host.repo]).status().unwrap();
    assert!(chown.success());
    let create = host.spark("never", &["create", "web", "--no-start", "--clone", "shop", "--dirty"]);
    let made = with_ann(&create, &home).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let inside = root(&host.machine, "web").join("work/shop");
    assert_eq!(std::fs::read_to_string(inside.join("b.txt")).unwrap(), "LOUD");
    assert!(!inside.join("x.secret").exists());
}

#[test]
fn a_filter_of_the_repositorys_own_is_confined_too() {
    landlock();
    let host = Host::new(1000);
    let config = host.repo.join(".git/config");
    let [work, port, pid] = host.args();
    let filter = format!("python3 -I -S -c \"$(cat)\" {work} {port} {pid}; exit 1");
    git(&host.repo, &["config", "--file", config.to_str().unwrap(), "filter.x.clean", &filter]);
    git(&host.repo, &["config", "--file", config.to_str().unwrap(), "filter.x.required", "true"]);
    std::fs::write(host.repo.join(".gitattributes"), "a.txt filter=x\n").unwrap();
    std::fs::write(host.repo.join("a.txt"), ATTACK).unwrap();
    let create = ["create", "web", "--no-start", "--clone", "shop", "--dirty"];
    let said = host.attacked(&mut host.machine.command(&create));
    has(&said, &["tcp=ENOSYS", "unix=ENOSYS", "read=EACCES", "list=EACCES", "write=EACCES", "tree=EACCES"]);
}

#[test]
fn a_work_tree_that_is_elsewhere_is_not_taken_for_the_repositorys() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    let home = machine.work().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join("id"), "the key").unwrap();
    git(&repo, &["config", "core.worktree", home.to_str().unwrap()]);
    let create = ["--json", "create", "web", "--no-start", "--clone", "shop", "--dirty"];
    let said = machine.spark(&create).fails_with("denied");
    assert!(said.contains("home"), "{said}");
    assert!(!root(&machine, "web").exists());
}
