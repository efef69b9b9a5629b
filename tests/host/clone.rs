//! `create --clone`: source in. What the tests of `pull` need too is here.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{Machine, tree};

/// Git as a test uses it, apart from who runs the tests.
pub(crate) fn git_command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).args(["-c", "safe.directory=*"]).args(args).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", "/nonexistent");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "t").env(format!("GIT_{who}_EMAIL"), "t@example.org");
    }
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").stdin(Stdio::null());
    command
}

#[track_caller]
pub(crate) fn git(dir: &Path, args: &[&str]) -> String {
    let output = git_command(dir, args).output().expect("these tests need git: `apt-get install git`");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(crate) fn commit(dir: &Path, file: &str, content: &str) -> String {
    std::fs::write(dir.join(file), content).unwrap();
    git(dir, &["add", "--", file]);
    git(dir, &["commit", "--quiet", "-m", content]);
    git(dir, &["rev-parse", "HEAD"])
}

/// A repository with the branches main and fix/1, a tag and an ignored file; main is the current one.
pub(crate) fn repository(machine: &Machine) -> PathBuf {
    let repo = machine.work().join("shop");
    std::fs::create_dir(&repo).unwrap();
    git(&repo, &["init", "--quiet", "-b", "main"]);
    std::fs::write(repo.join(".gitignore"), "*.log\n").unwrap();
    git(&repo, &["add", "."]);
    commit(&repo, "a.txt", "one");
    git(&repo, &["tag", "v1"]);
    git(&repo, &["checkout", "--quiet", "-b", "fix/1"]);
    commit(&repo, "b.txt", "two");
    git(&repo, &["checkout", "--quiet", "main"]);
    std::fs::write(repo.join("x.log"), "ignored").unwrap();
    repo
}

pub(crate) fn root(machine: &Machine, spark: &str) -> PathBuf {
    machine.pool().join("projects/default/sparks").join(spark).join("root")
}

pub(crate) fn branches(dir: &Path) -> String {
    git(dir, &["for-each-ref", "--format=%(refname) %(objectname)"])
}

/// Makes a program that leaves a trace if anybody runs it. Returns its path.
pub(crate) fn canary(machine: &Machine) -> PathBuf {
    let (program, trace) = (machine.work().join("canary"), machine.work().join("trace"));
    std::fs::write(&program, format!("#!/bin/sh\nid >> {}\ncat\n", trace.display())).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    program
}

#[track_caller]
pub(crate) fn canary_lives(machine: &Machine) {
    let trace = machine.work().join("trace");
    assert!(!trace.exists(), "the canary was run: {}", std::fs::read_to_string(trace).unwrap());
}

/// Everything that git can be told to execute, in a repository's configuration and hooks.
pub(crate) fn set_traps(git_dir: &Path, canary: &Path) {
    let program = canary.to_str().unwrap();
    for key in [
        "core.fsmonitor",
        "core.alternateRefsCommand",
        "core.sshCommand",
        "core.askPass",
        "core.pager",
        "core.editor",
        "uploadpack.packObjectsHook",
        "filter.trap.smudge",
        "filter.trap.clean",
        "filter.trap.process",
        "remote.origin.uploadpack",
        "gpg.program",
    ] {
        let value = if key.ends_with("process") { "false" } else { program };
        git(git_dir, &["config", "--file", git_dir.join("config").to_str().unwrap(), key, value]);
    }
    std::fs::create_dir_all(git_dir.join("hooks")).unwrap();
    for hook in [
        "post-checkout",
        "pre-commit",
        "reference-transaction",
        "post-index-change",
        "update",
        "pre-auto-gc",
        "post-merge",
        "fsmonitor-watchman",
    ] {
        std::fs::copy(canary, git_dir.join("hooks").join(hook)).unwrap();
    }
    std::fs::create_dir_all(git_dir.join("info")).unwrap();
    std::fs::write(git_dir.join("info/attributes"), "* filter=trap\n").unwrap();
}

#[test]
fn a_clone_has_all_branches_and_tags_and_the_current_one_checked_out() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    git(&repo, &["remote", "add", "origin", "https://ann:token@example.org/shop.git"]);
    git(&repo, &["update-ref", "refs/remotes/origin/main", "HEAD"]);
    std::fs::create_dir(repo.join("sub")).unwrap();
    std::fs::write(repo.join("a.txt"), "uncommitted").unwrap();
    let before = tree(&repo);
    let sub = repo.join("sub");
    machine.spark(&["create", "web", "--clone", sub.to_str().unwrap()]).ok();
    assert_eq!(tree(&repo), before, "the host's repository was changed");

    let inside = root(&machine, "web").join("work/shop");
    let expected = branches(&repo);
    let expected: Vec<_> = expected.lines().filter(|l| !l.contains("refs/remotes/")).collect();
    assert_eq!(branches(&inside).lines().collect::<Vec<_>>(), expected);
    assert_eq!(git(&inside, &["symbolic-ref", "HEAD"]), "refs/heads/main");
    assert_eq!(git(&inside, &["status", "--porcelain"]), "");
    assert_eq!(std::fs::read_to_string(inside.join("a.txt")).unwrap(), "one");
    assert!(!inside.join("x.log").exists());
    assert_eq!(git(&inside, &["remote", "get-url", "origin"]), "https://example.org/shop.git");
    git(&inside, &["fsck", "--strict"]);
    assert!(!inside.join(".git/objects/info/alternates").exists());
    let host = machine.work().to_str().unwrap().to_owned();
    let config = std::fs::read_to_string(inside.join(".git/config")).unwrap();
    assert!(!config.contains(&host) && !config.contains("token"), "{config}");

    assert_eq!(machine.spark(&["exec", "web", "--", "pwd"]).ok(), "/work/shop\n");
    machine.spark(&["exec", "web", "--", "sh", "-c", "echo x > a.txt && rm -r .git"]).ok();
    assert_eq!(tree(&repo), before, "the spark reaches the host's repository");
    assert!(machine.staged().is_empty());
}

#[test]
fn dirty_brings_uncommitted_work_and_nothing_that_is_ignored() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    std::fs::write(repo.join("staged.txt"), "staged, and in no branch").unwrap();
    git(&repo, &["add", "staged.txt"]);
    std::fs::write(repo.join("a.txt"), "changed").unwrap();
    std::fs::write(repo.join("new.txt"), "new").unwrap();
    std::fs::set_permissions(repo.join("new.txt"), PermissionsExt::from_mode(0o755)).unwrap();
    symlink("/etc/passwd", repo.join("link")).unwrap();
    std::fs::remove_file(repo.join(".gitignore")).unwrap();
    std::fs::write(repo.join(".git/info/exclude"), "*.log\n").unwrap();
    let before = tree(&repo);
    machine.spark(&["create", "web", "--no-start", "--clone", "shop", "--dirty"]).ok();
    assert_eq!(tree(&repo), before, "the host's repository was changed");

    let inside = root(&machine, "web").join("work/shop");
    let status = git(&inside, &["status", "--porcelain"]);
    assert_eq!(status, "D .gitignore\n M a.txt\n?? link\n?? new.txt\n?? staged.txt");
    assert_eq!(std::fs::read_to_string(inside.join("a.txt")).unwrap(), "changed");
    assert_eq!(std::fs::read_link(inside.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(inside.join("new.txt").metadata().unwrap().mode() & 0o777, 0o755);
    assert!(!inside.join("x.log").exists());
    git(&inside, &["fsck"]);

    // What a sparse checkout leaves out is not deleted.
    git(&machine.work(), &["clone", "--quiet", "shop", "sparse"]);
    git(&machine.work().join("sparse"), &["sparse-checkout", "set", "--no-cone", "/.gitignore"]);
    machine.spark(&["create", "sparse", "--no-start", "--clone", "sparse", "--dirty"]).ok();
    assert_eq!(git(&root(&machine, "sparse").join("work/sparse"), &["status", "--porcelain"]), "");

    let error = machine.spark(&["--json", "create", "other", "--dirty"]);
    assert_eq!(error.status(), 2, "{}", error.stderr());
}

#[test]
fn worktrees_bare_detached_unborn_and_shallow_repositories_are_cloned_as_they_are() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    let work = machine.work();
    let place = |name: &str| work.join(name).to_str().unwrap().to_owned();
    git(&repo, &["worktree", "add", "--quiet", &place("tree"), "fix/1"]);
    git(&work, &["clone", "--quiet", "--bare", "shop", "bare.git"]);
    git(&work, &["clone", "--quiet", "shop", "detached"]);
    git(&work.join("detached"), &["checkout", "--quiet", "--detach"]);
    let lone = commit(&work.join("detached"), "c.txt", "in no branch");
    git(&work, &["init", "--quiet", "-b", "begun", "unborn"]);
    std::fs::write(work.join("unborn/first.txt"), "first").unwrap();
    let url = format!("file://{}", place("tree"));
    git(&work, &["clone", "--quiet", "--depth=1", &url, "shallow"]);

    git(&work, &["init", "--quiet", "-b", "main", "--object-format=sha256", "sha256"]);
    commit(&work.join("sha256"), "d.txt", "four");

    for (name, folder, head) in [
        ("sha256", "sha256", "refs/heads/main"),
        ("tree", "shop", "refs/heads/fix/1"),
        ("bare.git", "bare", "refs/heads/main"),
        ("detached", "detached", ""),
        ("unborn", "unborn", "refs/heads/begun"),
        ("shallow", "shallow", "refs/heads/fix/1"),
    ] {
        let spark = folder.to_owned() + "-" + name.split('.').next().unwrap();
        machine.spark(&["create", &spark, "--no-start", "--clone", name]).ok();
        let inside = root(&machine, &spark).join("work").join(folder);
        match head {
            "" => assert_eq!(git(&inside, &["rev-parse", "HEAD"]), lone, "{name}"),
            head => assert_eq!(git(&inside, &["symbolic-ref", "HEAD"]), head, "{name}"),
        }
        assert_eq!(git(&inside, &["status", "--porcelain"]), "", "{name}");
        let pulled = machine.spark(&["--json", "pull", &spark]).json();
        assert_eq!(pulled.as_array().unwrap().is_empty(), name == "unborn", "{name}: {pulled}");
    }
    machine.spark(&["create", "fresh", "--no-start", "--clone", "unborn", "--dirty"]).ok();
    assert!(root(&machine, "fresh").join("work/unborn/first.txt").exists());
    machine.spark(&["--json", "create", "no", "--clone", "bare.git", "--dirty"]).fails_with("usage");
    machine.spark(&["--json", "create", "no", "--clone", "rootfs"]).fails_with("usage");
    machine.spark(&["--json", "create", "no", "--clone", "https://example.org/a"]).fails_with("usage");
    machine.spark(&["--json", "create", "no", "--clone", "/"]).fails_with("usage");
}

#[test]
fn a_repository_of_another_user_is_read_and_written_as_that_user_and_its_traps_stay_shut() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    set_traps(&repo.join(".git"), &canary(&machine));
    for dir in [machine.work().parent().unwrap().to_owned(), machine.work()] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let chown = |owner: &str| Command::new("chown").args(["-R", owner]).arg(&repo).status().unwrap();
    assert!(chown("1000:1000").success());

    machine.spark(&["create", "web", "--no-start", "--clone", "shop", "--user", "33:44"]).ok();
    canary_lives(&machine);
    let inside = root(&machine, "web").join("work/shop");
    for file in ["", "a.txt", ".git", ".git/HEAD", ".git/objects"] {
        let meta = inside.join(file).metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (33, 44), "{file}");
    }
    commit(&inside, "c.txt", "three");
    machine.spark(&["pull", "web"]).ok();
    canary_lives(&machine);
    let owners = Command::new("find").arg(&repo).args(["!", "-uid", "1000"]).output().unwrap();
    assert_eq!(String::from_utf8(owners.stdout).unwrap(), "");
    assert_eq!(git(&repo, &["log", "-1", "--format=%s", "refs/spark/web/main"]), "three");
}

#[test]
fn a_base_leads_no_clone_out_and_one_that_has_the_place_is_refused() {
    let machine = Machine::new().with_base();
    repository(&machine);
    let outside = machine.work().join("outside");
    let rootfs = machine.work().join("rootfs");
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir_all(rootfs.join("etc")).unwrap();
    symlink(&outside, rootfs.join("work")).unwrap();
    machine.spark(&["base", "import", "rootfs", "leads-out"]).ok();
    machine.spark(&["create", "web", "--base", "leads-out", "--no-start", "--clone", "shop"]).ok();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    let inside = root(&machine, "web").join(outside.strip_prefix("/").unwrap()).join("shop");
    assert_eq!(std::fs::read_to_string(inside.join("a.txt")).unwrap(), "one");
    machine.spark(&["pull", "web"]).ok();

    std::fs::remove_file(rootfs.join("work")).unwrap();
    std::fs::create_dir_all(rootfs.join("work/shop")).unwrap();
    machine.spark(&["base", "import", "rootfs", "full"]).ok();
    let create = ["--json", "create", "no", "--base", "full", "--no-start", "--clone", "shop"];
    machine.spark(&create).fails_with("not_supported");
    assert!(machine.staged().is_empty() && !root(&machine, "no").exists());
}

#[test]
fn a_clone_that_fails_leaves_nothing() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    let blob = git(&repo, &["rev-parse", "HEAD:a.txt"]);
    std::fs::remove_file(repo.join(".git/objects").join(&blob[..2]).join(&blob[2..])).unwrap();
    let said = machine.spark(&["--json", "create", "web", "--clone", "shop"]).fails_with("internal");
    assert!(said.contains("git pack-objects"), "{said}");
    assert!(machine.staged().is_empty());
    assert_eq!(machine.spark(&["--json", "list"]).json(), serde_json::json!([]));
}
