//! What `config.json` says is so, for the first process and for those that join it.

use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::bundle::Host;

/// A filter that refuses `unshare` of one kind only: its argument is compared through a mask.
fn filter(config: &mut Value) {
    const NEWUTS: u64 = 0x0400_0000;
    config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{
            "names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
            "args": [{"index": 0, "value": NEWUTS, "valueTwo": NEWUTS, "op": "SCMP_CMP_MASKED_EQ"}]
        }]
    });
}

fn lists(config: &mut Value, names: &[&str]) {
    let sets = ["bounding", "effective", "permitted", "inheritable", "ambient"];
    config["process"]["capabilities"] =
        Value::Object(sets.iter().map(|set| ((*set).to_owned(), json!(names))).collect());
}

/// The lines of `/proc/PID/status` that are about confinement.
fn confinement(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let about = ["Cap", "Seccomp", "NoNewPrivs", "Uid", "Gid", "Groups", "Umask"];
    let lines = text.lines().filter(|l| about.iter().any(|a| l.starts_with(a)));
    lines.map(|l| format!("{l}\n")).collect()
}

fn joins(host: &Host, id: &str) -> i32 {
    let pid_file = host.dir().join("exec-pid");
    let process = host.dir().join("process.json");
    let config: Value =
        serde_json::from_slice(&std::fs::read(host.bundle().join("config.json")).unwrap()).unwrap();
    std::fs::write(&process, config["process"].to_string()).unwrap();
    let args = ["exec", "-d", "--pid-file", pid_file.to_str().unwrap(), "-p", process.to_str().unwrap(), id];
    assert_eq!(host.quietly(&args), 0);
    std::fs::read_to_string(pid_file).unwrap().parse().unwrap()
}

/// Gives itself a session keyring with a key that only those see who have it in hand, and becomes another program.
const WITH_A_KEY: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
ADD_KEY, KEYCTL, JOIN, SETPERM = 248, 250, 1, 5
assert libc.syscall(KEYCTL, JOIN, None) > 0
key = libc.syscall(ADD_KEY, b"user", b"spark-canary", b"x", 1, ctypes.c_int(-3))
assert key > 0 and libc.syscall(KEYCTL, SETPERM, key, ctypes.c_uint(0x3f000000)) == 0
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn the_callers_session_keyring_is_out_of_reach_unless_it_is_to_be_kept() {
    let host = Host::new();
    let sees = "grep -c spark-canary /proc/keys; true";
    host.configure(&["sh", "-c", sees], |c| c["linux"]["maskedPaths"] = json!([]));
    let with_a_key = |args: &[&str]| {
        let mut command = std::process::Command::new("python3");
        command.args(["-c", WITH_A_KEY, env!("CARGO_BIN_EXE_spark-oci"), "--root"]);
        command
            .arg(host.root())
            .args(args)
            .env("SPARK_RUN", host.run())
            .current_dir(host.bundle())
            .stdin(std::process::Stdio::null());
        crate::common::Output::of(&args.join(" "), &mut command).ok()
    };
    assert_eq!(with_a_key(&["run", "c"]), "0\n");
    assert_eq!(with_a_key(&["run", "--no-new-keyring", "c"]), "1\n");
    host.configure(&["sleep", "1000"], |c| c["linux"]["maskedPaths"] = json!([]));
    host.start("apart");
    assert_eq!(with_a_key(&["exec", "apart", "sh", "-c", sees]), "0\n");
    assert_eq!(host.quietly(&["run", "-d", "--no-new-keyring", "kept"]), 0);
    assert_eq!(with_a_key(&["exec", "kept", "sh", "-c", sees]), "1\n");
}

#[test]
fn who_joins_is_confined_as_the_first_process_is() {
    for case in 0..4 {
        let host = Host::new();
        host.configure(&["sleep", "1000"], |c| {
            filter(c);
            if case & 1 == 1 {
                Host::with_user_namespace(c);
            }
            // False, and not missing: libcontainer takes the two for different things.
            c["process"]["noNewPrivileges"] = json!(case & 2 == 2);
            c["process"]["user"] =
                json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 0o027});
            c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 99, "soft": 55}]);
            c["process"]["oomScoreAdj"] = json!(77);
            lists(c, &["CAP_NET_BIND_SERVICE", "CAP_KILL"]);
        });
        host.start("c");
        let (first, other) = (host.pid("c"), joins(&host, "c"));
        // The program of the first one may not be executed yet.
        let ready =
            || std::fs::read_to_string(format!("/proc/{first}/cmdline")).unwrap().starts_with("sleep");
        assert!(crate::common::wait_for(ready));
        let confined = confinement(first);
        assert_eq!(confined, confinement(other), "case {case}");
        assert!(confined.contains("Seccomp:\t2") && confined.contains("Umask:\t0027"), "{confined}");
        assert!(confined.contains("CapAmb:\t0000000000000420"), "{confined}");
        for ns in ["user", "mnt", "uts", "ipc", "net", "pid", "cgroup"] {
            let of = |pid: i32| std::fs::metadata(format!("/proc/{pid}/ns/{ns}")).unwrap().ino();
            assert_eq!(of(first), of(other), "{ns}");
        }
        for file in ["limits", "oom_score_adj", "cgroup"] {
            let of = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
            assert_eq!(of(first), of(other), "{file}");
        }
    }
}

#[test]
fn a_filter_that_compares_through_a_mask_refuses_what_it_names_and_no_more() {
    let host = Host::new();
    // busybox asks for both at once, so that the mask matters.
    let script = "unshare -u -m true; echo $?; unshare -m true; echo $?";
    host.configure(&["sh", "-c", script], |c| {
        filter(c);
        lists(c, &["CAP_SYS_ADMIN"]);
    });
    let out = host.oci(&["run", "c"]);
    assert_eq!(out.stdout(), "1\n0\n", "{}", out.stderr());
    host.configure(&["sleep", "1000"], |c| {
        filter(c);
        lists(c, &["CAP_SYS_ADMIN"]);
    });
    host.start("c");
    let out = host.oci(&["exec", "c", "sh", "-c", script]);
    assert_eq!(out.stdout(), "1\n0\n", "{}", out.stderr());
}

#[test]
fn what_the_configuration_does_not_give_is_not_there() {
    let host = Host::new();
    let script = "grep -E 'Cap|Groups' /proc/self/status; env; ls -l /proc/self/fd | wc -l";
    host.configure(&["sh", "-c", script], |c| {
        c["process"].as_object_mut().unwrap().remove("capabilities");
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    let out = host.oci(&["run", "c"]).ok();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(out.contains(&format!("{set}:\t0000000000000000")), "{out}");
    }
    assert!(out.contains("Groups:\t \n"), "{out}");
    assert!(out.contains("HOME=/home/ann\n") && out.contains("PATH=/bin\n"), "{out}");
    assert!(!out.contains("SPARK_RUN"), "{out}");
}

#[test]
fn mounts_paths_names_and_parameters_are_as_the_configuration_says() {
    let host = Host::new();
    std::fs::write(host.dir().join("from"), "data").unwrap();
    std::fs::write(host.rootfs().join("secret"), "secret").unwrap();
    std::fs::write(host.rootfs().join("fixed"), "fixed").unwrap();
    let script = "hostname; cat /at; echo x >/at || echo at-ro; cat /secret; echo x >/fixed || echo fixed-ro; \
                  cat /proc/sys/net/ipv4/ip_forward; stat -c '%t:%T %a %u' /dev/own; cat /sys/class/net/lo/flags";
    let from = host.dir().join("from");
    host.configure(&["sh", "-c", script], |c| {
        c["hostname"] = json!("named");
        let mount = json!({"destination": "/at", "source": from, "type": "bind", "options": ["bind", "ro"]});
        c["mounts"].as_array_mut().unwrap().push(mount);
        c["linux"]["maskedPaths"] = json!(["/secret"]);
        c["linux"]["readonlyPaths"] = json!(["/fixed"]);
        c["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        c["linux"]["devices"] =
            json!([{"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 7}]);
    });
    let out = host.oci(&["run", "c"]);
    assert_eq!(out.stdout(), "named\ndataat-ro\nfixed-ro\n1\n1:5 640 7\n0x9\n", "{}", out.stderr());
}

#[test]
fn a_namespace_by_its_path_is_joined() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |_| {});
    host.start("first");
    let path = format!("/proc/{}/ns/net", host.pid("first"));
    host.configure(&["sleep", "1000"], |c| {
        let all = c["linux"]["namespaces"].as_array_mut().unwrap();
        all.retain(|n| n["type"] != "network");
        all.push(json!({"type": "network", "path": path}));
    });
    host.start("second");
    let of = |id: &str, ns: &str| std::fs::metadata(format!("/proc/{}/ns/{ns}", host.pid(id))).unwrap().ino();
    assert_eq!(of("first", "net"), of("second", "net"));
    assert_ne!(of("first", "uts"), of("second", "uts"));
}

#[test]
fn our_own_program_cannot_be_opened_for_writing_through_a_container() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |_| {});
    assert_eq!(host.quietly(&["create", "c"]), 0);
    let program = format!("/proc/{}/exe", host.pid("c"));
    let inode = |path: &str| std::fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&program), inode(env!("CARGO_BIN_EXE_spark-oci")));
    // Opening it says ETXTBSY as long as somebody runs it, whatever mount it is in.
    let mount = rustix::fs::statvfs(&program).unwrap();
    assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
}

/// As CVE-2026-41579 of runc.
#[test]
fn a_link_in_place_of_what_the_kernel_provides_is_refused_and_nothing_is_made_at_its_end() {
    let host = Host::new();
    let victim = host.dir().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("ptmx"), "the host's").unwrap();
    for path in ["dev", "dev/pts", "dev/shm", "proc", "sys"] {
        host.configure(&["true"], |_| {});
        let place = host.rootfs().join(path);
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&victim, &place).unwrap();
        let refused = host.oci(&["create", "-b", host.bundle().to_str().unwrap(), "linked"]);
        assert_ne!(refused.status(), 0, "{path}");
        let said = refused.stderr();
        assert!(said.contains(&format!("/{path} of ")) && said.contains("symbolic link"), "{said}");
        let names: Vec<_> = std::fs::read_dir(&victim).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["ptmx"], "{path}");
        std::fs::remove_file(&place).unwrap();
    }
}
