//! Root filesystems that want to hurt whoever starts them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::common::{Machine, tree};
use crate::inside::{bare, machine, output_in_time, root};

/// Replaces a path inside by whatever `make` makes there.
fn replace(path: &Path, make: &dyn Fn(&Path)) {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => fs::create_dir_all(path.parent().unwrap()).unwrap(),
    }
    make(path);
}

fn fifo(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
}

/// Starts it and runs a command, within a time. Whether it started.
fn start(machine: &Machine, what: &str) -> bool {
    let resumed = output_in_time(machine.command(&["resume", "web", "--json"]), b"");
    if resumed.status.success() {
        let run = machine.command(&["exec", "-T", "web", "--", "/bin/busybox", "true"]);
        let ran = output_in_time(run, b"");
        let console = machine.command(&["exec", "-t", "web", "--", "/bin/busybox", "true"]);
        let console = output_in_time(console, b"");
        for output in [ran, console] {
            let code = output.status.code();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                code == Some(0) || (code == Some(125) && said.contains("error: ")),
                "{what}: {code:?} {said}"
            );
        }
    } else {
        let said = String::from_utf8_lossy(&resumed.stderr);
        let error: serde_json::Value = serde_json::from_str(said.trim()).unwrap_or_default();
        assert!(error["error"]["message"].is_string(), "{what}: no clear error: {said}");
        assert!(!machine.place().run.join("bundles").read_dir().unwrap().any(|_| true), "{what}: left over");
    }
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    resumed.status.success()
}

/// Puts something hostile at a path.
type Maker = Box<dyn Fn(&Path)>;

#[test]
fn links_and_fifos_in_place_of_what_is_mounted_upon_do_not_touch_the_host() {
    let machine = machine();
    // Where links lead: by the host's view, and by the spark's, where the same path is another.
    let canary = machine.work().join("canary");
    fs::create_dir_all(canary.join("dir/bin")).unwrap();
    for file in ["file", "dir/hosts", "dir/passwd", "dir/null"] {
        fs::write(canary.join(file), "untouched").unwrap();
    }
    let before = tree(&canary);
    let etc = fs::metadata("/etc/hosts").map(|m| (m.len(), m.modified().unwrap())).unwrap();
    // Loop devices come as other tests mount their pools.
    let devices = || -> BTreeSet<_> {
        let names = fs::read_dir("/dev").unwrap().map(|e| e.unwrap().file_name());
        names.filter(|name| !name.to_string_lossy().starts_with("loop")).collect()
    };
    let dev = devices();
    let outside = |path: &str| {
        let up = "../".repeat(12);
        [
            canary.join(path),
            Path::new(&format!("{up}{}", canary.join(path).display())).to_owned(),
            Path::new("/proc/1/root").join(canary.join(path).strip_prefix("/").unwrap()),
        ]
    };
    let mut started = 0;
    let mut attempts = 0;
    for path in [
        "etc",
        "proc",
        "dev",
        "sys",
        "spark",
        "etc/hosts",
        "etc/hostname",
        "etc/resolv.conf",
        "etc/machine-id",
        "etc/passwd",
        "spark/all",
        "dev/pts",
        "dev/null",
        "dev/ptmx",
        "dev/console",
    ] {
        let target =
            if path.contains('/') && path != "spark/all" && path != "dev/pts" { "file" } else { "dir" };
        let mut makers: Vec<(String, Maker)> = vec![("fifo".into(), Box::new(fifo))];
        for to in outside(target) {
            let text = to.display().to_string();
            makers.push((text, Box::new(move |path: &Path| symlink(&to, path).unwrap())));
        }
        for (kind, make) in makers {
            bare(&machine, "web", &["--no-start"]);
            replace(&root(&machine, "web").join(path), &*make);
            attempts += 1;
            started += u32::from(start(&machine, &format!("/{path} is {kind}")));
            assert_eq!(tree(&canary), before, "/{path} is {kind}");
            machine.spark(&["delete", "web", "--now"]).ok();
        }
    }
    assert!(started > 0 && attempts == 60, "{started} of {attempts}");
    assert_eq!(fs::metadata("/etc/hosts").map(|m| (m.len(), m.modified().unwrap())).unwrap(), etc);
    assert_eq!(devices(), dev);
}

/// As CVE-2026-41579 of runc: the runtime library would make its links, and remove a file, in the host's directory.
#[test]
fn a_link_in_place_of_what_the_kernel_provides_is_refused() {
    let machine = machine();
    // Open to everybody, as the spark's root is nobody on the host.
    let victim = tempfile::Builder::new().prefix("sparks-test-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(victim.path(), PermissionsExt::from_mode(0o777)).unwrap();
    fs::write(victim.path().join("ptmx"), "the host's").unwrap();
    let before = tree(victim.path());
    for path in ["dev", "dev/pts", "dev/shm", "proc", "sys"] {
        bare(&machine, "web", &["--no-start"]);
        replace(&root(&machine, "web").join(path), &|path| symlink(victim.path(), path).unwrap());
        let message = machine.spark(&["resume", "web", "--json"]).fails_with("not_supported");
        let what = format!("/{path} in its root filesystem is a symbolic link");
        assert!(message.contains(&what), "{message}");
        assert_eq!(tree(victim.path()), before, "{path}");
        machine.spark(&["delete", "web", "--now"]).ok();
    }
}

/// As CVE-2019-14271: whoever enters is the host's root for a moment, and must not load anything of the root's.
#[test]
fn no_module_of_the_c_library_is_loaded_from_inside() {
    let machine = machine();
    bare(&machine, "web", &["--no-start"]);
    let inside = root(&machine, "web");
    let ldd = Command::new("ldd").arg("/usr/bin/getent").output().unwrap();
    let libraries = String::from_utf8_lossy(&ldd.stdout).into_owned();
    let libraries: Vec<&Path> =
        libraries.split_whitespace().filter(|w| w.starts_with('/')).map(Path::new).collect();
    for path in &libraries {
        let target = inside.join(path.strip_prefix("/").unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
    let source = machine.work().join("evil.c");
    fs::write(
        &source,
        "#include <stdio.h>\n__attribute__((constructor)) static void f(void) { fclose(fopen(\"/loaded\", \"w\")); }\n",
    )
    .unwrap();
    for path in &libraries {
        let evil = inside.join(path.strip_prefix("/").unwrap()).with_file_name("libnss_evil.so.2");
        let gcc = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(evil).arg(&source).status();
        assert!(gcc.unwrap().success());
    }
    fs::write(inside.join("etc/nsswitch.conf"), "passwd: evil\ngroup: evil\nshadow: evil\nhosts: evil\n")
        .unwrap();
    fs::remove_file(inside.join("etc/passwd")).unwrap();
    for run in [
        &["resume", "web"][..],
        &["exec", "-T", "web", "--", "/bin/busybox", "true"],
        &["exec", "-t", "-u", "1000", "web", "--", "/bin/busybox", "true"],
    ] {
        assert!(output_in_time(machine.command(run), b"").status.success(), "{run:?}");
        assert!(!inside.join("loaded").exists(), "{run:?} ran code of the spark's before it was confined");
    }
    // The test does what it says: a program of the C library's inside does load it.
    fs::copy("/usr/bin/getent", inside.join("bin/getent")).unwrap();
    machine.spark(&["exec", "-T", "web", "--", "/bin/getent", "passwd", "0"]);
    assert!(inside.join("loaded").exists(), "the module cannot be loaded at all");
}

#[test]
fn users_are_not_looked_up_outside_and_a_huge_or_strange_file_hangs_nobody() {
    let machine = machine();
    bare(&machine, "web", &[]);
    let passwd = root(&machine, "web").join("etc/passwd");
    let host = machine.work().join("passwd");
    fs::write(&host, "eve:x:7:7::/eve:/bin/sh\n").unwrap();
    let links = [
        host.clone(),
        Path::new("../../../../../..").join(host.strip_prefix("/").unwrap()),
        "/proc/self/fd/0".into(),
    ];
    for link in links {
        replace(&passwd, &|p| symlink(&link, p).unwrap());
        let run = machine.command(&["exec", "-T", "-u", "eve", "web", "--", "true"]);
        assert_eq!(
            output_in_time(run, fs::read(&host).unwrap().as_slice()).status.code(),
            Some(125),
            "{link:?}"
        );
    }
    let makers: [&dyn Fn(&Path); 4] = [
        &fifo,
        &|p| fs::create_dir(p).unwrap(),
        &|p| fs::File::create(p).unwrap().set_len(1 << 36).unwrap(),
        &|p| fs::write(p, [b"x:".repeat(1 << 20), vec![0xff; 100]].concat()).unwrap(),
    ];
    for (n, make) in makers.iter().enumerate() {
        replace(&passwd, *make);
        for user in ["0", "1000"] {
            let run =
                machine.command(&["exec", "-T", "-u", user, "web", "--", "grep", "Uid", "/proc/self/status"]);
            let output = output_in_time(run, b"");
            let uid = String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1).map(str::to_owned);
            assert_eq!(uid.as_deref(), Some(user), "{n}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
