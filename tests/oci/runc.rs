//! One bundle under runc and under `spark-oci`: what runc accepts is accepted, and comes out the same.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::bundle::Host;
use crate::common::Output;

/// runc, with a place of its own beside that of `spark-oci`.
fn runc(host: &Host, args: &[&str]) -> Output {
    let mut command = Command::new("runc");
    command.arg("--root").arg(host.run().join("runc")).args(args);
    command.current_dir(host.bundle()).stdin(Stdio::null());
    crate::common::default_signals(&mut command);
    Output::of(&format!("runc {}", args.join(" ")), &mut command)
}

/// Runs the bundle under both, which must agree: on what is printed, and where the container cannot be made, on that.
/// None if it cannot.
fn agreed(host: &Host, what: &str) -> Option<String> {
    agreed_after(host, what, || ())
}

/// The same, with something to be done before each.
fn agreed_after(host: &Host, what: &str, prepare: impl Fn()) -> Option<String> {
    // Cgroups have the name, and tests run side by side.
    let id = host.dir().file_name().unwrap().to_str().unwrap();
    let made = |out: &Output| (out.status() == 0).then(|| out.stdout());
    prepare();
    let theirs = runc(host, &["run", id]);
    prepare();
    let ours = host.oci(&["run", id]);
    let said = format!("{what}\nrunc: {}\nspark-oci: {}", theirs.stderr(), ours.stderr());
    assert_eq!(made(&theirs), made(&ours), "runc and spark-oci differ: {said}");
    made(&ours)
}

fn add_mount(config: &mut Value, at: &str, kind: &str, source: &str, options: &[&str]) {
    let mount = json!({"destination": at, "type": kind, "source": source, "options": options});
    config["mounts"].as_array_mut().unwrap().push(mount);
}

/// Everything optional that a container on any host may have.
fn full(config: &mut Value) {
    config["hostname"] = json!("named");
    config["annotations"] = json!({"a": "b"});
    config["process"]["user"] = json!({"uid": 0, "gid": 0, "umask": 0o027, "additionalGids": [5]});
    config["process"]["consoleSize"] = json!({"height": 3, "width": 4});
    config["process"]["oomScoreAdj"] = json!(77);
    config["process"]["apparmorProfile"] = json!("");
    config["process"]["selinuxLabel"] = json!("");
    let lists = ["bounding", "effective", "permitted", "inheritable", "ambient"];
    config["process"]["capabilities"] =
        Value::Object(lists.iter().map(|list| ((*list).to_owned(), json!(["CAP_KILL"]))).collect());
    let hook = json!([{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 60}]);
    let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    config["hooks"] = Value::Object(kinds.iter().map(|kind| ((*kind).to_owned(), hook.clone())).collect());
    add_mount(config, "/tmp", "tmpfs", "tmpfs", &["size=64k"]);
    config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    config["linux"]["rootfsPropagation"] = json!("private");
    config["linux"]["mountLabel"] = json!("");
    config["linux"]["devices"] = json!([{"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 438, "uid": 7, "gid": 7}]);
    config["linux"]["uidMappings"] = json!([]);
    config["linux"]["gidMappings"] = json!([]);
    config["linux"]["resources"] = json!({
        "devices": [{"allow": false, "type": "a", "major": -1, "minor": -1, "access": "rwm"}],
        "memory": {"limit": 67_108_864, "reservation": 33_554_432, "disableOOMKiller": false},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "", "mems": ""},
        "pids": {"limit": 50},
        "hugepageLimits": [], "network": {"priorities": []}, "blockIO": {"weightDevice": []}, "unified": {},
    });
    let arg = json!({"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"});
    config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95, "args": [arg]}],
    });
}

/// What the specification's schema requires of an object, by the last name of a path to it or to the list with it.
fn required(name: &str) -> &'static [&'static str] {
    match name {
        "" => &["ociVersion", "process", "root"],
        "process" => &["cwd", "args"],
        "root" | "prestart" | "createRuntime" | "createContainer" | "startContainer" | "poststart"
        | "poststop" => &["path"],
        "mounts" => &["destination"],
        "consoleSize" => &["height", "width"],
        "rlimits" => &["type", "soft", "hard"],
        "namespaces" => &["type"],
        // Of resources, allow; of linux, type and path.
        "devices" => &["allow", "type", "path"],
        "seccomp" => &["defaultAction"],
        "syscalls" => &["names", "action"],
        "args" => &["index", "value", "op"],
        _ => &[],
    }
}

/// The paths of all that may be absent.
fn optional(value: &Value, path: &str, name: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let at = format!("{path}/{}", key.replace('/', "~1"));
                // Maps with keys of one's own hold no null.
                if !required(name).contains(&key.as_str()) && !["sysctl", "annotations"].contains(&name) {
                    found.push(at.clone());
                }
                optional(member, &at, key, found);
            }
        }
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate().take(1) {
                optional(item, &format!("{path}/{number}"), name, found);
            }
        }
        _ => {}
    }
}

#[test]
fn null_is_as_good_as_absent_wherever_something_may_be_absent() {
    let host = Host::new();
    let script = "/bin/hostname; umask; id -G; env | sort; grep -E 'Cap|NoNew|Seccomp' /proc/self/status; ulimit -n; \
                  cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_forward; stat -c '%n %a %u' /dev/own /dev/shm; \
                  cut -d' ' -f2,3 /proc/mounts; cat /proc/1/limits";
    host.configure(&["/bin/sh", "-c", script], full);
    let path = host.bundle().join("config.json");
    let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    agreed(&host, "all of it").unwrap();
    let mut places = Vec::new();
    optional(&config, "", "", &mut places);
    // runc wants that one. Without the others, both make no container of the rest.
    places.retain(|place| place != "/linux/resources/devices/0/access");
    let needed = [
        "/process/capabilities/bounding",
        "/process/capabilities/permitted",
        "/mounts",
        "/mounts/0/type",
        "/linux",
        "/linux/namespaces",
    ];
    for place in needed {
        let mut changed = config.clone();
        *changed.pointer_mut(place).unwrap() = Value::Null;
        std::fs::write(&path, changed.to_string()).unwrap();
        assert_eq!(agreed(&host, place), None);
    }
    places.retain(|place| !needed.contains(&place.as_str()));
    assert!(places.len() > 80, "{places:?}");
    // Neighbours in groups of their own, since runc takes its time; where one fails, the whole group is told.
    for group in 0..12 {
        let mut changed = config.clone();
        let mut nulls = Vec::new();
        for place in places.iter().skip(group).step_by(12) {
            if let Some(value) = changed.pointer_mut(place) {
                *value = Value::Null;
                nulls.push(place);
            }
        }
        std::fs::write(&path, changed.to_string()).unwrap();
        agreed(&host, &format!("{nulls:?}")).unwrap();
    }
    // And all at once that no other needs.
    host.configure(&["/bin/sh", "-c", script], |c| {
        for key in ["hostname", "annotations", "hooks"] {
            c[key] = Value::Null;
        }
        for key in ["user", "capabilities", "rlimits", "noNewPrivileges", "consoleSize", "oomScoreAdj"] {
            c["process"][key] = Value::Null;
        }
        for key in ["resources", "seccomp", "sysctl", "devices", "maskedPaths", "cgroupsPath"] {
            c["linux"][key] = Value::Null;
        }
    });
    agreed(&host, "many").unwrap();
}

/// A container in which the host's Python is, to make system calls by their numbers.
fn with_python(host: &Host, code: &str, change: impl FnOnce(&mut Value)) {
    for (link, to) in [("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        let _ = std::os::unix::fs::symlink(to, host.rootfs().join(link));
    }
    host.configure(&["/usr/bin/python3", "-Sc", code], |c| {
        add_mount(c, "/usr", "bind", "/usr", &["rbind", "ro"]);
        change(c);
    });
}

/// Prints how calls fail. The arguments are such that nobody does anything.
const CALLS: &str = "import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for number in (0, 39, 135, 312, 334, 425, 435, 449, 450, 452, 457, 462, 999, *others):
    ctypes.set_errno(0)
    bad = ctypes.c_long(-1)
    libc.syscall(ctypes.c_long(number), bad, bad, bad, bad, bad, bad)
    print(number, errno.errorcode.get(ctypes.get_errno()))";

/// The calls that this repository's own profile allows by name alone, and those that no program does without, of which it forbids
/// some uses.
fn allowed() -> Value {
    let profile: Value = serde_json::from_str(include_str!("../../bundles/seccomp.json")).unwrap();
    let rules = profile["syscalls"].as_array().unwrap().iter();
    let plain = rules.filter(|r| r["action"] == "SCMP_ACT_ALLOW" && r["args"].is_null());
    let plain = plain.flat_map(|r| r["names"].as_array().unwrap()).cloned();
    plain.chain(["fcntl", "mmap", "memfd_create"].map(Value::from)).collect()
}

#[test]
fn calls_that_a_profile_is_too_old_for_are_enosys_and_others_what_it_says() {
    let host = Host::new();
    let all = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    let foreign = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_MIPSEL64"]);
    for (number, (architectures, errno)) in [
        (all, Value::Null),
        (json!(["SCMP_ARCH_X86_64"]), json!(13)),
        (foreign, json!(38)),
        (Value::Null, Value::Null),
    ]
    .into_iter()
    .enumerate()
    {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno, "architectures": architectures,
            "syscalls": [{"names": allowed(), "action": "SCMP_ACT_ALLOW"},
                         {"names": ["nosuchcall", "personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
        });
        // Where the table of x32 is not listed, whoever uses it is ended.
        let others = if number == 0 { "0x40000000 + 39, 0x40000000 + 999" } else { "" };
        let calls = format!("others = [{others}]\n{CALLS}");
        with_python(&host, &calls, |c| c["linux"]["seccomp"] = profile.clone());
        // Without a list, older runc knows nothing; since 1.2 it takes this machine's architecture.
        let first = match architectures.is_null() {
            true => host.oci(&["run", "c"]).ok(),
            false => agreed(&host, &format!("case {number}")).unwrap(),
        };
        assert!(first.contains("135 ENOTSUP\n") && first.contains("999 ENOSYS\n"), "{first}");
        // Who joins has the same.
        host.configure(&["sleep", "1000"], |c| {
            add_mount(c, "/usr", "bind", "/usr", &["rbind", "ro"]);
            c["linux"]["seccomp"] = profile;
        });
        host.start("c");
        let joined = host.oci(&["exec", "c", "/usr/bin/python3", "-Sc", &calls]);
        assert_eq!(joined.stdout(), first, "{}", joined.stderr());
        host.oci(&["delete", "--force", "c"]).ok();
    }
}

/// libseccomp 2.5.4 does not know `mseal`.
#[test]
fn calls_that_a_list_forbids_are_forbidden_though_the_library_is_older_than_they_are() {
    let host = Host::new();
    for architectures in
        [json!(["SCMP_ARCH_X86_64"]), json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])]
    {
        with_python(&host, &format!("others = []\n{CALLS}"), |c| {
            c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures,
                "syscalls": [{"names": ["personality", "mseal", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
        });
        let said = host.oci(&["run", "c"]).ok();
        for forbidden in [135, 452, 462] {
            assert!(said.contains(&format!("{forbidden} ENOTSUP\n")), "{said}");
        }
        // Those beside them are what the kernel says.
        assert!(!said.contains("450 ENOTSUP") && !said.contains("457 ENOTSUP"), "{said}");
    }
    host.configure(&["true"], |c| {
        c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["nosuchcall"], "action": "SCMP_ACT_ERRNO"}]});
    });
    let refused = host.oci(&["run", "c"]);
    assert_eq!(refused.status(), 255);
    assert!(refused.stderr().contains("`nosuchcall`"), "{}", refused.stderr());
}

#[test]
fn a_rule_with_two_conditions_on_one_argument_holds_where_either_is_met() {
    let host = Host::new();
    let code = "import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for value in (0, 8, 0x20000, 0x20008, 0xffffffff):
    ctypes.set_errno(0)
    libc.syscall(135, ctypes.c_ulong(value))
    print(value, ctypes.get_errno())";
    let condition = |value: u64| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"});
    let masked = json!({"index": 0, "value": 0x20000, "valueTwo": 0x20000, "op": "SCMP_CMP_MASKED_EQ"});
    let other = json!({"index": 1, "value": 0, "op": "SCMP_CMP_GE"});
    for args in [
        json!([condition(0), condition(8), condition(0xffff_ffff)]),
        json!([condition(8), masked]),
        json!([condition(8), other, condition(0)]),
        json!([condition(8), other]),
    ] {
        with_python(&host, code, |c| {
            c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95, "args": args}]});
        });
        assert!(agreed(&host, &args.to_string()).unwrap().contains("8 95\n"));
    }
}

#[test]
fn a_path_that_cannot_be_masked_or_made_read_only_is_refused() {
    let host = Host::new();
    let root = host.rootfs();
    std::fs::write(root.join("file"), "seen\n").unwrap();
    std::fs::create_dir(root.join("dir")).unwrap();
    std::fs::write(root.join("dir/inner"), "seen\n").unwrap();
    std::fs::copy("/bin/busybox", root.join("dir/echo")).unwrap();
    for (link, to) in [("loop", "loop"), ("a", "b"), ("b", "a"), ("gone", "nosuch"), ("to-file", "/file")] {
        std::os::unix::fs::symlink(to, root.join(link)).unwrap();
    }
    let long = format!("/{}", "n".repeat(300));
    let deep = "/dir/..".repeat(700);
    let script =
        "cat /file /dir/inner 2>&1; (echo x >/file) 2>&1; (echo x >/dir/new) 2>&1; /dir/echo runs 2>&1; true";
    let mut refused = Vec::new();
    for list in ["maskedPaths", "readonlyPaths"] {
        for path in
            ["/file", "/dir", "/nosuch", "/gone", "/to-file", "/loop", "/a/x", "/file/x", &long, &deep]
        {
            host.configure(&["sh", "-c", script], |c| {
                c["linux"]["maskedPaths"] = json!([]);
                c["linux"]["readonlyPaths"] = json!([]);
                c["linux"][list] = json!([path]);
            });
            let made = agreed_after(&host, &format!("{list} {path}"), || {
                std::fs::write(root.join("file"), "seen\n").unwrap();
                let _ = std::fs::remove_file(root.join("dir/new"));
            });
            if made.is_none() {
                let said = host.oci(&["run", "c"]).stderr();
                assert!(said.contains(&format!("the path `{path}`")), "{said}");
                refused.push(path.to_owned());
            }
        }
    }
    let expected = ["/loop", "/a/x", "/file/x", &long, &deep];
    assert_eq!(refused, [expected, expected].concat());
}

/// A directory of an image with all that can be in one.
fn fill(dir: &std::path::Path) {
    std::fs::create_dir_all(dir.join("sub/deeper")).unwrap();
    std::fs::write(dir.join("sub/file"), "text\n").unwrap();
    std::fs::write(dir.join("program"), "#!/bin/sh\necho ran\n").unwrap();
    std::fs::write(dir.join("own"), vec![7; 100_000]).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("link")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc/shadow", dir.join("sub/out")).unwrap();
    let change = |path: &str, mode: u32| {
        std::fs::set_permissions(dir.join(path), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    std::os::unix::fs::chown(dir.join("own"), Some(1000), Some(1001)).unwrap();
    change("own", 0o640);
    change("program", 0o711);
    change("sub", 0o750);
    change("", 0o751);
}

#[test]
fn a_memory_filesystem_has_what_it_covers_where_it_is_to_and_the_mode_always() {
    let host = Host::new();
    let root = host.rootfs();
    std::os::unix::fs::symlink("data", root.join("linked")).unwrap();
    std::fs::create_dir(root.join("strict")).unwrap();
    std::fs::set_permissions(root.join("strict"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .unwrap();
    let volume = host.dir().join("volume");
    std::fs::create_dir_all(volume.join("inner")).unwrap();
    std::fs::write(volume.join("inner/of-the-volume"), "").unwrap();
    let script = "list() { (cd $1 && find . | sort | while read f; do stat -c '%n %F %a %u:%g %s' $f; done); }
        list /data | grep -v '^. directory'; stat -c '%a %u:%g' /data; cat /data/sub/file; /data/program; readlink /data/sub/out
        list /volume; list /strict; [ ! -e /new ] || list /new; grep -E ' /(data|strict|new|volume)' /proc/mounts | cut -d' ' -f2-4 | cut -d, -f1-3 |
            sed 's/,nr_inodes.*//; s/,mode.*//'
        echo x >/data/written && rm /data/own && ls /data";
    for users in [false, true] {
        let _ = std::fs::remove_dir_all(root.join("data"));
        fill(&root.join("data"));
        if users {
            for path in ["data", "data/sub", "data/sub/deeper", "data/sub/file", "strict"] {
                std::os::unix::fs::chown(root.join(path), Some(1_500_000_000), Some(1_500_000_000)).unwrap();
            }
            std::os::unix::fs::chown(root.join("data/own"), Some(1_500_001_000), Some(1_500_001_001))
                .unwrap();
            std::os::unix::fs::chown(root.join("data/program"), Some(1_500_000_000), Some(0)).unwrap();
        }
        for place in ["/data", "/linked"] {
            host.configure(&["sh", "-c", script], |c| {
                let capabilities = json!(["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"]);
                for set in ["bounding", "effective", "permitted"] {
                    c["process"]["capabilities"][set] = capabilities.clone();
                }
                add_mount(
                    c,
                    place,
                    "tmpfs",
                    "tmpfs",
                    &["rw", "nosuid", "nodev", "tmpcopyup", "size=1m", "rprivate"],
                );
                add_mount(c, "/volume", "bind", volume.to_str().unwrap(), &["rbind"]);
                add_mount(c, "/volume/inner", "tmpfs", "tmpfs", &["tmpcopyup", "nr_inodes=20"]);
                add_mount(c, "/strict", "tmpfs", "tmpfs", &["noexec"]);
                if users {
                    Host::with_user_namespace(c);
                } else {
                    add_mount(c, "/new", "tmpfs", "tmpfs", &["tmpcopyup", "ro"]);
                }
            });
            let made_by_the_other = || _ = std::fs::remove_dir(root.join("new"));
            let seen = agreed_after(&host, &format!("{place}, users {users}"), made_by_the_other).unwrap();
            assert!(seen.contains("text\nran\n") && seen.contains("./inner/of-the-volume"), "{seen}");
            assert!(root.join("data/own").exists() && !root.join("data/written").exists());
        }
    }
    // More than it may hold.
    host.configure(&["true"], |c| add_mount(c, "/data", "tmpfs", "tmpfs", &["tmpcopyup", "size=4k"]));
    assert_eq!(agreed(&host, "no space"), None);
}

#[test]
fn the_source_of_a_mount_may_be_where_the_roots_user_cannot_go() {
    let host = Host::new();
    let closed = host.dir().join("closed");
    std::fs::create_dir_all(closed.join("dir/below")).unwrap();
    std::fs::write(closed.join("file"), "content\n").unwrap();
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::create_dir(host.bundle().join("beside")).unwrap();
    std::fs::write(host.bundle().join("beside/it"), "").unwrap();
    let script = "cat /file; echo x >/file; ls /dir /beside; \
                  grep -E ' /(file|dir|beside) ' /proc/mounts | cut -d' ' -f2,4 | cut -d, -f1,2";
    for users in [false, true] {
        host.configure(&["sh", "-c", script], |c| {
            let source = |name: &str| closed.join(name).to_str().unwrap().to_owned();
            add_mount(c, "/file", "bind", &source("file"), &["bind", "ro"]);
            add_mount(c, "/dir", "none", &source("dir"), &["rbind", "nosuid"]);
            add_mount(c, "/beside", "bind", "beside", &["bind"]);
            if users {
                Host::with_user_namespace(c);
            }
        });
        let seen = agreed(&host, &format!("users {users}")).unwrap();
        assert!(seen.starts_with("content\n") && seen.contains("below\n") && seen.contains("it\n"), "{seen}");
    }
    host.configure(&["true"], |c| {
        add_mount(c, "/file", "bind", "/nosuch/source", &["bind"]);
        Host::with_user_namespace(c);
    });
    assert_eq!(agreed(&host, "no source"), None);
    assert!(host.oci(&["run", "c"]).stderr().contains("/nosuch/source"));
}

#[test]
fn a_label_that_the_host_cannot_apply_is_refused_and_not_left_out() {
    let host = Host::new();
    let has = |path: &str| std::path::Path::new(path).exists();
    assert!(
        !has("/sys/module/apparmor") && !has("/sys/fs/selinux"),
        "this test is for a host without AppArmor and SELinux"
    );
    let sleep = &["sleep", "1000"];
    for (path, value) in [
        ("process.apparmorProfile", "a-profile"),
        ("process.selinuxLabel", "system_u:system_r:container_t:s0"),
        ("linux.mountLabel", "system_u:object_r:container_file_t:s0"),
    ] {
        let at = format!("/{}", path.replace('.', "/"));
        host.configure(&["true"], |config| {
            let (object, name) = at.rsplit_once('/').unwrap();
            config.pointer_mut(object).unwrap()[name] = json!(value);
        });
        assert_eq!(agreed(&host, path), None);
        let said = host.oci(&["run", "labelled"]).stderr();
        assert!(said.contains(path) && said.contains(value) && said.contains("this host has no"), "{said}");
    }
    host.configure(sleep, |_| ());
    host.start("plain");
    for (option, field) in
        [("--apparmor", "process.apparmorProfile"), ("--process-label", "process.selinuxLabel")]
    {
        let out = host.oci(&["exec", option, "a-label", "plain", "true"]);
        assert_eq!(out.status(), 255);
        assert!(out.stderr().contains(field), "{}", out.stderr());
    }
}
