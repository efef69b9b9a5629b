//! Repositories are made by the real `git`; a machine without it fails these tests.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{chown, symlink};
use std::process::{Command, Stdio};

use super::*;
use crate::error::Code;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn git(&self, args: &[&str]) {
        let ok = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"])
            .args(args)
            .current_dir(self.0.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.0.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(ok.success(), "git {args:?}");
    }

    /// A repository with a commit.
    fn repository(&self, name: &str) {
        self.git(&["init", name]);
        self.git(&["-C", name, "commit", "--allow-empty", "-m", "x"]);
    }
}

fn caller() -> Owners {
    Owners::new(rustix::process::geteuid().as_raw(), None)
}

fn found(dir: impl AsRef<Path>) -> Repository {
    around(dir.as_ref(), &caller()).unwrap().expect("a repository")
}

fn fifo(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
}

#[test]
fn a_subfolder_a_worktree_and_the_git_directory_itself_are_one_repository() {
    let f = Folder::new();
    f.repository("shop");
    f.git(&["-C", "shop", "worktree", "add", "../feature"]);
    fs::create_dir_all(f.path("shop/a/b")).unwrap();
    fs::create_dir_all(f.path("feature/c")).unwrap();
    let git_dir = f.path("shop/.git");
    for dir in [
        "shop",
        "shop/a/b",
        "feature",
        "feature/c",
        "shop/.git",
        "shop/.git/refs",
        "shop/.git/worktrees/feature",
    ] {
        assert_eq!(found(f.path(dir)).common, git_dir, "{dir}");
    }
    assert_eq!(found(f.path("feature")).folder_name().unwrap(), "shop");
}

#[test]
fn a_submodule_is_its_own_repository_and_so_are_its_worktrees() {
    let f = Folder::new();
    f.repository("lib");
    f.repository("shop");
    f.git(&["-C", "shop", "submodule", "add", "../lib", "vendor/lib"]);
    f.git(&["-C", "shop/vendor/lib", "worktree", "add", "../../../lib-feature"]);
    let modules = f.path("shop/.git/modules/vendor/lib");
    for dir in ["shop/vendor/lib", "lib-feature"] {
        assert_eq!(found(f.path(dir)).common, modules, "{dir}");
    }
    assert_eq!(found(f.path("lib-feature")).folder_name().unwrap(), "lib");
    assert_eq!(found(f.path("shop/vendor")).common, f.path("shop/.git"));
    assert_ne!(found(f.path("lib")).common, modules);
}

#[test]
fn a_bare_repository_and_its_worktrees_are_one() {
    let f = Folder::new();
    f.repository("shop");
    f.git(&["clone", "--bare", "shop", "srv.git"]);
    f.git(&["-C", "srv.git", "worktree", "add", "../out"]);
    for dir in ["srv.git", "srv.git/objects", "out"] {
        assert_eq!(found(f.path(dir)).common, f.path("srv.git"), "{dir}");
    }
    assert_eq!(found(f.path("out")).folder_name().unwrap(), "srv");

    f.git(&["clone", "--bare", "shop", "layout/.bare"]);
    f.git(&["-C", "layout/.bare", "worktree", "add", "../main"]);
    assert_eq!(found(f.path("layout/main")).folder_name().unwrap(), "layout");
}

#[test]
fn repositories_in_folders_of_the_same_name_are_two_and_a_link_leads_to_the_same_one() {
    let f = Folder::new();
    f.repository("a/shop");
    f.repository("b/shop");
    symlink(f.path("a/shop"), f.path("link")).unwrap();
    let (a, b) = (found(f.path("a/shop")), found(f.path("b/shop")));
    assert_ne!(a, b);
    assert_eq!(a.folder_name(), b.folder_name());
    assert_eq!(found(f.path("link")), a);
}

#[test]
fn no_repository_is_none_also_below_what_only_looks_like_one() {
    let f = Folder::new();
    fs::create_dir_all(f.path("empty/.git")).unwrap();
    fs::create_dir_all(f.path("fifo")).unwrap();
    fifo(&f.path("fifo/.git"));
    fs::create_dir_all(f.path("half/.git/objects")).unwrap();
    fs::write(f.path("half/.git/HEAD"), "ref: refs/heads/main\n").unwrap();
    fs::create_dir_all(f.path("head/.git/objects")).unwrap();
    fs::create_dir_all(f.path("head/.git/refs")).unwrap();
    fifo(&f.path("head/.git/HEAD"));
    for dir in ["", "empty", "fifo", "half", "head"] {
        assert_eq!(around(&f.path(dir), &caller()).unwrap(), None, "{dir}");
    }
    // As git does, the search goes on above a `.git` that is none.
    f.repository("shop");
    fs::create_dir_all(f.path("shop/sub/.git")).unwrap();
    assert_eq!(found(f.path("shop/sub")).common, f.path("shop/.git"));
}

#[test]
fn a_repository_of_somebody_else_is_denied_except_to_root_through_their_sudo() {
    let f = Folder::new();
    f.repository("shop");
    f.git(&["-C", "shop", "worktree", "add", "../feature"]);
    let root = Owners::new(0, None);
    for part in ["shop", "shop/.git"] {
        chown(f.path(part), Some(12345), None).unwrap();
        let e = around(&f.path("shop"), &root).unwrap_err();
        assert_eq!(e.code(), Code::Denied, "{part}");
        assert!(e.to_string().contains("12345") && e.hint().unwrap().contains("-P NAME"));
        assert!(around(&f.path("shop"), &Owners::new(0, Some(12345))).unwrap().is_some());
        assert!(around(&f.path("shop"), &Owners::new(12345, None)).unwrap().is_some());
        assert!(around(&f.path("shop"), &Owners::new(54321, Some(12345))).is_err());
        chown(f.path(part), Some(0), None).unwrap();
    }
    // A `.git` file of somebody else's, pointing to a repository of ours.
    chown(f.path("feature/.git"), Some(12345), None).unwrap();
    assert_eq!(around(&f.path("feature"), &root).unwrap_err().code(), Code::Denied);
    chown(f.path("feature/.git"), Some(0), None).unwrap();
    // A repository of somebody else's behind a worktree of ours.
    chown(f.path("shop/.git"), Some(12345), None).unwrap();
    assert_eq!(around(&f.path("feature"), &root).unwrap_err().code(), Code::Denied);
}

#[test]
fn files_that_somebody_else_puts_into_a_directory_for_all_make_it_no_repository_of_ours() {
    let f = Folder::new();
    f.git(&["init", "--bare", "tmp"]);
    assert!(around(&f.path("tmp"), &Owners::new(0, None)).unwrap().is_some());
    chown(f.path("tmp/HEAD"), Some(12345), None).unwrap();
    assert_eq!(around(&f.path("tmp"), &Owners::new(0, None)).unwrap_err().code(), Code::Denied);
}

#[test]
fn a_git_file_that_leads_nowhere_is_an_error_that_names_it() {
    let f = Folder::new();
    f.repository("shop");
    f.git(&["-C", "shop", "worktree", "add", "inner"]);
    fs::remove_dir_all(f.path("shop/.git/worktrees")).unwrap();
    let e = around(&f.path("shop/inner"), &caller()).unwrap_err();
    assert_eq!(e.code(), Code::Corrupt);
    assert!(e.to_string().contains("shop/inner/.git"), "{e}");
    assert!(e.hint().unwrap().contains("-P NAME"));

    for content in ["", "gitdir:", "gitdir: ", "nonsense", "gitdir: .", "gitdir: ../shop/.git/objects\n"] {
        fs::write(f.path("shop/inner/.git"), content).unwrap();
        assert_eq!(
            around(&f.path("shop/inner"), &caller()).unwrap_err().code(),
            Code::Corrupt,
            "{content:?}"
        );
    }
    fs::write(f.path("shop/inner/.git"), vec![b'x'; 10 << 20]).unwrap();
    let e = around(&f.path("shop/inner"), &caller()).unwrap_err();
    assert!(e.to_string().contains("larger than it may be"), "{e}");
}

#[test]
fn a_git_file_of_an_archive_does_not_take_another_repository() {
    let f = Folder::new();
    f.repository("lib");
    f.repository("shop");
    f.git(&["-C", "shop", "submodule", "add", "../lib", "vendor/lib"]);
    f.git(&["-C", "shop", "worktree", "add", "../feature"]);
    fs::create_dir_all(f.path("unpacked/sub")).unwrap();
    for target in ["shop/.git", "shop/.git/modules/vendor/lib", "shop/.git/worktrees/feature"] {
        fs::write(f.path("unpacked/.git"), format!("gitdir: ../{target}\n")).unwrap();
        for dir in ["unpacked", "unpacked/sub"] {
            let other = found(f.path(dir));
            assert_eq!(other.common, f.path("unpacked/.git"), "{target}");
            assert_eq!(other.folder_name().unwrap(), "unpacked");
            let e = other.git_dir().unwrap_err();
            assert!(e.code() == Code::Denied && e.to_string().contains("shop/.git"), "{e}");
        }
    }
    // Inside the superproject too.
    fs::create_dir_all(f.path("shop/tmp")).unwrap();
    fs::write(f.path("shop/tmp/.git"), "gitdir: ../.git/modules/vendor/lib\n").unwrap();
    assert_eq!(found(f.path("shop/tmp")).common, f.path("shop/tmp/.git"));
    // What git itself writes is believed, also where it writes relative paths.
    for (dir, common) in [("feature", "shop/.git"), ("shop/vendor/lib", "shop/.git/modules/vendor/lib")] {
        assert_eq!(found(f.path(dir)).git_dir().unwrap(), f.path(common));
    }
    fs::write(f.path("shop/.git/worktrees/feature/gitdir"), "../../../../feature/.git\n").unwrap();
    assert_eq!(found(f.path("feature")).common, f.path("shop/.git"));
}

#[test]
fn a_separate_git_dir_makes_a_project_of_the_work_tree() {
    let f = Folder::new();
    f.git(&["init", "--separate-git-dir", "elsewhere.git", "shop"]);
    let shop = found(f.path("shop"));
    assert_eq!(shop.common, f.path("shop/.git"));
    assert_eq!(shop.claimed, Some(f.path("elsewhere.git")));
    assert_eq!(found(f.path("elsewhere.git")).common, f.path("elsewhere.git"));
}

#[test]
fn a_git_file_in_a_loop_of_links_is_none() {
    let f = Folder::new();
    fs::create_dir(f.path("loop")).unwrap();
    symlink(".git", f.path("loop/.git")).unwrap();
    assert_eq!(around(&f.path("loop"), &caller()).unwrap(), None);
}

#[test]
fn a_commondir_that_is_a_fifo_or_leads_nowhere_is_an_error_and_does_not_hang() {
    let f = Folder::new();
    f.repository("shop");
    f.git(&["-C", "shop", "worktree", "add", "../feature"]);
    let pointer = f.path("shop/.git/worktrees/feature/commondir");
    fs::write(&pointer, "../../../gone\n").unwrap();
    let e = around(&f.path("feature"), &caller()).unwrap_err();
    assert!(e.code() == Code::Corrupt && e.to_string().contains("commondir"), "{e}");
    fs::remove_file(&pointer).unwrap();
    fifo(&pointer);
    assert_eq!(around(&f.path("feature"), &caller()).unwrap_err().code(), Code::Corrupt);
    fifo(&f.path("shop/.git/commondir"));
    assert_eq!(around(&f.path("shop"), &caller()).unwrap_err().code(), Code::Corrupt);
}

#[test]
fn folders_of_any_bytes_are_found() {
    let f = Folder::new();
    f.repository("plain");
    for (bytes, name) in [(&b"caf\xe9\xff"[..], "caf\u{fffd}\u{fffd}"), ("🦀".as_bytes(), "🦀")] {
        let dir = f.path(OsStr::from_bytes(bytes));
        fs::rename(f.path("plain"), &dir).unwrap();
        assert_eq!(found(&dir).common, dir.join(".git"));
        assert_eq!(found(&dir).folder_name().unwrap(), name);
        fs::rename(&dir, f.path("plain")).unwrap();
    }
}

#[test]
fn a_repository_at_the_root_of_the_filesystem_has_no_name() {
    assert_eq!(Repository { common: "/.git".into(), claimed: None }.folder_name(), None);
}

#[test]
fn a_directory_that_is_gone_is_an_error() {
    let f = Folder::new();
    assert_eq!(around(&f.path("gone"), &caller()).unwrap_err().code(), Code::NotFound);
}
