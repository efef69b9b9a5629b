//! Bases: making, importing, choosing and deleting them.

use std::cell::RefCell;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sparks::domain::name::Name;
use sparks::error::{Code, Result};
use sparks::image::Source;
use sparks::ops::base::{BaseInfo, ImportSource};
use sparks::ops::{Observer, Silent, Sparks};

use crate::common::{Machine, tree};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn import(sparks: &Sparks, source: impl Into<PathBuf>, base: &str) -> Result<BaseInfo> {
    sparks.base_import(ImportSource::Path(source.into()), name(base), &Silent)
}

/// Remembers what it heard.
#[derive(Default)]
struct Ears(RefCell<Vec<String>>);

impl Observer for Ears {
    fn step(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn notice(&self, text: &str) {
        self.0.borrow_mut().push(text.to_owned());
    }
}

/// A root filesystem with one of everything that is kept.
fn rootfs(machine: &Machine) -> PathBuf {
    let root = machine.work().join("rootfs");
    for dir in ["bin", "etc", "tmp", "home/u", "deep/er/still"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::write(root.join("bin/sh"), vec![7; 300_000]).unwrap();
    std::fs::hard_link(root.join("bin/sh"), root.join("bin/ash")).unwrap();
    std::fs::write(root.join("etc/shadow"), "root:*").unwrap();
    std::fs::write(root.join("home/u/file"), "").unwrap();
    symlink("/bin/sh", root.join("bin/absolute")).unwrap();
    symlink("../../../../etc", root.join("deep/er/up")).unwrap();
    let file = std::fs::File::create(root.join("deep/sparse")).unwrap();
    file.set_len(5 << 20).unwrap();
    let mode = |path: &str, mode| {
        std::fs::set_permissions(root.join(path), PermissionsExt::from_mode(mode)).unwrap()
    };
    let owner = |path: &str, id| std::os::unix::fs::lchown(root.join(path), Some(id), Some(id)).unwrap();
    owner("home/u", 1000);
    owner("home/u/file", 65535);
    owner("bin/absolute", 33);
    for (path, bits) in [("tmp", 0o1777), ("bin/sh", 0o4755), ("etc/shadow", 0o640), ("deep/er/still", 0)] {
        mode(path, bits);
    }
    run("mkfifo", &["-m".as_ref(), "620".as_ref(), root.join("home/u/fifo").as_os_str()]);
    let sh = std::fs::File::open(root.join("bin/sh")).unwrap();
    sparks::sys::tree::set_xattr(&sh, b"user.note", b"a\nb").unwrap();
    let net_bind = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    sparks::sys::tree::set_xattr(&sh, b"security.capability", &net_bind).unwrap();
    root
}

fn run<S: AsRef<std::ffi::OsStr>>(program: &str, args: &[S]) {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("these tests need {program}: {e}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn archive(root: &Path, file: &str, with: &str) -> PathBuf {
    let path = root.with_file_name(file);
    let (path_text, root) = (path.to_str().unwrap(), root.to_str().unwrap());
    let kept =
        ["--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability", "--numeric-owner"];
    let mut args = vec!["--format=posix", "-S", "-cf", path_text, "-C", root, with];
    args.extend(kept);
    args.push(".");
    args.retain(|a| !a.is_empty());
    run("tar", &args);
    path
}

#[test]
fn the_minimal_base_has_a_shell_and_is_read_only() {
    let machine = Machine::new();
    let sparks = machine.sparks();
    let base = sparks.base_bootstrap("minimal", None, &Silent).unwrap();
    assert_eq!((base.name.as_str(), base.default, base.broken), ("minimal", true, None));
    assert!(base.subvolume.unwrap().read_only);
    assert!(std::fs::write(base.path.join("x"), "").is_err());
    for applet in ["bin/sh", "usr/bin/env", "bin/ls"] {
        assert_eq!(std::fs::read_link(base.path.join(applet)).unwrap(), Path::new("/bin/busybox"));
    }
    assert_eq!(std::fs::metadata(base.path.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    let mut sh = Command::new("chroot");
    sh.arg(&base.path).args(["/bin/sh", "-lc", "echo hello from $(whoami); . /etc/os-release; echo $ID"]);
    let said = sh.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "hello from root\nminimal\n");
    assert!(machine.staged().is_empty());
}

#[test]
fn an_import_equals_its_source_from_a_directory_and_from_every_archive() {
    let machine = Machine::new();
    let sparks = machine.sparks();
    let root = rootfs(&machine);
    let wanted = tree(&root);
    assert!(
        wanted.contains("security.capability") && wanted.contains("user.note") && wanted.contains("same as")
    );
    let base = import(&sparks, &root, "directory").unwrap();
    assert_eq!(tree(&base.path), wanted);
    assert_eq!(base.origin.as_deref(), Some("import rootfs"));
    for (file, with) in [("r.tar", ""), ("r.tar.gz", "-z"), ("r.tar.xz", "-J"), ("r.tar.zst", "--zstd")] {
        let path = archive(&root, file, with);
        let base = import(&sparks, &path, &file.replace('.', "-")).unwrap();
        assert_eq!(tree(&base.path), wanted, "{file}");
        assert!(base.subvolume.unwrap().read_only);
        let sparse = std::fs::metadata(base.path.join("deep/sparse")).unwrap();
        assert!(sparse.blocks() * 512 < sparse.len(), "{file}: holes were filled");
    }
    let stream: Box<dyn Source> = Box::new(std::fs::File::open(archive(&root, "s.tar.gz", "-z")).unwrap());
    let base = sparks.base_import(ImportSource::Stdin(stream), name("stream"), &Silent).unwrap();
    assert_eq!(tree(&base.path), wanted);
}

#[test]
fn what_a_directory_has_of_the_host_is_left_out_and_said() {
    let machine = Machine::new();
    let sparks = machine.sparks();
    let root = rootfs(&machine);
    let at = |p: &str| root.join(p);
    run("mknod", &[at("etc/null").as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()]);
    let _socket = std::os::unix::net::UnixListener::bind(at("etc/socket")).unwrap();
    std::os::unix::fs::chown(at("etc/shadow"), Some(200_000), Some(0)).unwrap();
    std::fs::create_dir(at("mnt")).unwrap();
    run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), at("mnt").as_os_str()]);
    std::fs::write(at("mnt/secret"), "").unwrap();
    let ears = Ears::default();
    let made = sparks.base_import(ImportSource::Path(root.clone()), name("b"), &ears);
    run("umount", &[at("mnt").as_os_str()]);
    let base = made.unwrap();
    for gone in ["etc/null", "etc/socket", "mnt/secret"] {
        assert!(!base.path.join(gone).exists(), "{gone}");
    }
    assert!(base.path.join("mnt").is_dir());
    assert_eq!(std::fs::metadata(base.path.join("etc/shadow")).unwrap().uid(), 65534);
    let heard = ears.0.borrow().join("\n");
    for said in ["2 device nodes or sockets", "1 files of users", "1 directories with another"] {
        assert!(heard.contains(said), "{heard}");
    }
}

#[test]
fn a_failed_import_leaves_the_name_free_and_nothing_behind() {
    let machine = Machine::new();
    let sparks = machine.sparks();
    let root = rootfs(&machine);
    let whole = std::fs::read(archive(&root, "r.tar.gz", "-z")).unwrap();
    let bad = machine.work().join("bad.tar.gz");
    for cut in [0, 10, whole.len() / 2, whole.len() - 4] {
        std::fs::write(&bad, &whole[..cut]).unwrap();
        let e = import(&sparks, &bad, "b").unwrap_err();
        assert_eq!(e.code(), Code::Image, "cut at {cut}: {e}");
        assert!(e.to_string().contains("bad.tar.gz"), "{e}");
    }
    assert_eq!(import(&sparks, machine.work().join("none"), "b").unwrap_err().code(), Code::NotFound);
    assert!(machine.staged().is_empty());
    assert!(sparks.base_list().unwrap().is_empty());
    assert_eq!(sparks.base_default(None).unwrap(), None);
    std::fs::write(&bad, &whole).unwrap();
    import(&sparks, &bad, "b").unwrap();
}

#[test]
fn an_image_with_layers_is_not_taken_for_a_root_filesystem() {
    let machine = Machine::new();
    let dir = machine.work().join("image");
    std::fs::create_dir_all(dir.join("blobs")).unwrap();
    std::fs::write(dir.join("oci-layout"), "{}").unwrap();
    let e = import(&machine.sparks(), archive(&dir, "i.tar", ""), "b").unwrap_err();
    assert_eq!(e.code(), Code::Image);
    assert!(e.to_string().contains("layers"), "{e}");
}

#[test]
fn an_archive_larger_than_the_pool_is_refused_and_the_space_comes_back() {
    let machine = Machine::new();
    let sparks = machine.sparks();
    let mut zeros = Command::new("sh");
    zeros
        .args(["-c", "truncate -s 2G big && tar --format=gnu -cf - big && rm big"])
        .current_dir(machine.work());
    let mut child = zeros.stdout(Stdio::piped()).spawn().unwrap();
    let stream: Box<dyn Source> = Box::new(child.stdout.take().unwrap());
    let e = sparks.base_import(ImportSource::Stdin(stream), name("b"), &Silent).unwrap_err();
    child.wait().unwrap();
    assert_eq!(e.code(), Code::NoSpace, "{e}");
    assert!(e.to_string().contains("room for") && e.to_string().contains("big"), "{e}");
    assert!(machine.staged().is_empty());
}

#[test]
fn a_hundred_thousand_entries_are_no_trouble() {
    let machine = Machine::new();
    let mut builder = tar::Builder::new(Vec::new());
    for i in 0..100_000 {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, format!("d{}/l{i}", i / 1000), "t").unwrap();
    }
    let archive: Box<dyn Source> = Box::new(std::io::Cursor::new(builder.into_inner().unwrap()));
    let base = machine.sparks().base_import(ImportSource::Stdin(archive), name("b"), &Silent).unwrap();
    assert_eq!(std::fs::read_dir(base.path.join("d99")).unwrap().count(), 1000);
}

#[test]
fn a_taken_name_is_refused_and_the_base_that_has_it_stays() {
    let machine = Machine::new();
    let sparks = machine.sparks();
    let first = sparks.base_bootstrap("minimal", Some(name("b")), &Silent).unwrap();
    assert_eq!(import(&sparks, rootfs(&machine), "b").unwrap_err().code(), Code::Exists);
    assert_eq!(sparks.base_info(&name("b")).unwrap().id, first.id);
    assert!(machine.staged().is_empty());
}

#[test]
fn the_first_base_is_the_default_until_another_is_set_and_only_the_default_stays() {
    let machine = Machine::new();
    let sparks = machine.sparks();
    for base in ["one", "two"] {
        sparks.base_bootstrap("minimal", Some(name(base)), &Silent).unwrap();
    }
    assert_eq!(sparks.base_default(None).unwrap(), Some(name("one")));
    let e = sparks.base_delete(&name("one")).unwrap_err();
    assert_eq!(e.code(), Code::WrongState);
    assert!(e.hint().unwrap().contains("spark base default"));
    assert_eq!(sparks.base_default(Some(&name("three"))).unwrap_err().code(), Code::NotFound);
    sparks.base_default(Some(&name("two"))).unwrap();
    sparks.base_delete(&name("one")).unwrap();
    let e = sparks.base_delete(&name("one")).unwrap_err();
    assert_eq!(e.code(), Code::NotFound);
    let left: Vec<_> = sparks.base_list().unwrap().into_iter().map(|b| (b.name, b.default)).collect();
    assert_eq!(left, [(name("two"), true)]);
    assert!(machine.staged().is_empty());
    assert_eq!(sparks.base_info(&name("twi")).unwrap_err().hint().unwrap(), "did you mean `two`?");
}

#[test]
fn a_damaged_base_stays_listed_says_why_and_can_be_deleted() {
    let machine = Machine::new();
    let sparks = machine.sparks();
    for base in ["good", "norecord", "badrecord", "noroot"] {
        sparks.base_bootstrap("minimal", Some(name(base)), &Silent).unwrap();
    }
    let bases = machine.pool().join("bases");
    std::fs::remove_file(bases.join("norecord/base.json")).unwrap();
    std::fs::write(bases.join("badrecord/base.json"), "{").unwrap();
    run("btrfs", &["subvolume", "delete", bases.join("noroot/root").to_str().unwrap()]);
    std::fs::create_dir(bases.join("noroot/root")).unwrap();
    let list = sparks.base_list().unwrap();
    assert_eq!(list.len(), 4);
    for base in list {
        assert_eq!(base.broken.is_none(), base.name == name("good"), "{base:?}");
        if base.broken.is_some() {
            let e = sparks.base_default(Some(&base.name)).unwrap_err();
            assert_eq!(e.code(), Code::Corrupt);
            assert!(e.hint().unwrap().contains("spark base delete"));
            sparks.base_delete(&base.name).unwrap();
        }
    }
    assert_eq!(sparks.base_list().unwrap().len(), 1);
}

#[test]
fn an_unknown_suite_or_option_makes_no_base() {
    let machine = Machine::new();
    let sparks = machine.sparks();
    for suite in ["--hook=x", "../etc", "Bookworm", ""] {
        assert_eq!(sparks.base_bootstrap(suite, None, &Silent).unwrap_err().code(), Code::InvalidName);
    }
    assert!(machine.staged().is_empty());
}

#[test]
fn a_debian_is_bootstrapped_ready_to_install_packages_and_leaves_no_mount() {
    let machine = Machine::new();
    let sparks = machine.sparks();
    let release = std::fs::read_to_string("/etc/os-release").unwrap();
    let suite =
        release.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME=")).expect("this test needs a Debian");
    let base = sparks.base_bootstrap(suite, None, &Silent).unwrap_or_else(|e| panic!("{e}: {:?}", e.hint()));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("bootstrap") && !mounts.contains("mmdebstrap"), "{mounts}");
    assert_eq!(
        (base.name.as_str(), base.origin.as_deref()),
        (suite, Some(format!("bootstrap {suite}").as_str()))
    );
    let at = |path: &str| base.path.join(path);
    for there in ["usr/bin/apt-get", "usr/bin/ps", "usr/bin/less", "etc/ssl/certs/ca-certificates.crt"] {
        assert!(at(there).exists(), "{there}");
    }
    for gone in ["etc/hostname", "etc/resolv.conf", "dev/null"] {
        assert!(!at(gone).exists(), "{gone}");
    }
    assert_eq!(std::fs::read_to_string(at("etc/machine-id")).unwrap(), "");
    let archives = std::fs::read_dir(at("var/cache/apt/archives")).unwrap();
    assert!(!archives.flatten().any(|e| e.path().extension().is_some_and(|x| x == "deb")));
    assert!(machine.staged().is_empty());

    // The lists are there: packages can be installed without `apt-get update`. Set-user-id programs work inside.
    machine.spark(&["create", "deb"]).ok();
    let script = "apt-get install -y -qq hello sudo >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }; hello; \
                  useradd -m ann; echo 'ann ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ann; \
                  su - ann -c 'id -un; sudo id -un'";
    assert_eq!(machine.spark(&["exec", "deb", "--", "sh", "-c", script]).ok(), "Hello, world!\nann\nroot\n");
    assert_eq!(machine.spark(&["exec", "-u", "ann", "deb", "--", "sudo", "id", "-u"]).ok(), "0\n");
}
