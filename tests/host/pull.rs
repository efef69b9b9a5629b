//! `pull`: work out, of a repository that nobody can trust.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::clone::{branches, canary, canary_lives, commit, git, git_command, repository, root, set_traps};
use crate::common::Machine;

/// A spark `web` that is not started, with a clone. Returns where the clone is, seen from the host.
fn cloned(machine: &Machine, repo: &Path) -> PathBuf {
    machine.spark(&["create", "web", "--no-start", "--clone", repo.to_str().unwrap()]).ok();
    root(machine, "web").join("work/shop")
}

/// The base `git`: busybox, and the host's git with its libraries.
fn with_git(machine: &Machine) {
    let rootfs = machine.work().join("rootfs");
    let minimal = machine.pool().join("bases/minimal/root");
    let copied = Command::new("cp").arg("-a").arg(minimal).arg(&rootfs).status().unwrap();
    assert!(copied.success());
    let program = Command::new("sh").args(["-c", "command -v git"]).output().unwrap();
    let program = String::from_utf8(program.stdout).unwrap();
    let linked = Command::new("ldd").arg(program.trim()).output().unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    let libraries = linked.split_ascii_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain([program.trim()]) {
        let to = rootfs.join(file.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(file, to).unwrap();
    }
    machine.spark(&["base", "import", rootfs.to_str().unwrap(), "git"]).ok();
}

#[test]
fn pull_brings_what_was_committed_inside_and_touches_nothing_else() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    with_git(&machine);
    std::fs::write(machine.home().join(".gitconfig"), "[user]\nname = Ann\nemail = ann@example.org\n")
        .unwrap();
    machine.spark(&["create", "web", "--base", "git", "--clone", "shop"]).ok();
    set_traps(&repo.join(".git"), &canary(&machine));
    std::fs::write(repo.join("a.txt"), "uncommitted").unwrap();
    let own = || {
        let refs = branches(&repo);
        let refs: Vec<_> =
            refs.lines().filter(|l| !l.starts_with("refs/spark/")).map(str::to_owned).collect();
        let read = |file: &str| std::fs::read(repo.join(file)).unwrap();
        (refs, read(".git/index"), read(".git/HEAD"), read(".git/config"), read("a.txt"))
    };
    let before = own();
    let run = |script: &str| {
        machine.spark(&["exec", "web", "--", "sh", "-ec", script]).ok();
    };
    let pulled = |what: &str| {
        let rows = machine.spark(&["--json", "pull", "web"]).json();
        let rows = rows.as_array().unwrap().iter();
        let rows: Vec<_> = rows
            .map(|r| {
                format!("{} {} {}", r["branch"].as_str().unwrap(), r["change"].as_str().unwrap(), r["ahead"])
            })
            .collect();
        assert_eq!(rows.join(", "), what);
        let inside = root(&machine, "web").join("work/shop");
        let theirs =
            git(&inside, &["for-each-ref", "--format=%(refname:lstrip=2) %(objectname)", "refs/heads"]);
        let ours =
            git(&repo, &["for-each-ref", "--format=%(refname:lstrip=3) %(objectname)", "refs/spark/web"]);
        assert_eq!(ours, theirs);
    };

    run(
        "echo 2 > a.txt; git commit -qam 2; echo 3 > a.txt; git commit -qam 3; git checkout -qb idea; git gc -q",
    );
    pulled("fix/1 new 0, idea new null, main new 2");
    let table = machine.spark(&["pull", "web"]).ok();
    assert!(table.starts_with("BRANCH  COMMIT") && table.contains("main"), "{table}");
    // History written anew, and a branch gone; the spark is stopped.
    run(
        "git checkout -q main; git reset -q --hard HEAD~1; git commit -q --amend -m other; git branch -qD idea",
    );
    machine.spark(&["stop", "web"]).ok();
    pulled("fix/1 same 0, main updated 1");

    assert_eq!(own(), before);
    let author = git(&repo, &["log", "-1", "--format=%an <%ae>, %cn", "refs/spark/web/main"]);
    assert_eq!(author, "Ann <ann@example.org>, Ann");
    assert!(!repo.join(".git/FETCH_HEAD").exists());
    canary_lives(&machine);
    git(&repo, &["-c", "core.fsmonitor=false", "fsck", "--strict"]);
    machine.spark(&["create", "plain", "--no-start"]).ok();
    machine.spark(&["--json", "pull", "plain"]).fails_with("wrong_state");
}

#[test]
fn pull_runs_nothing_and_reads_no_configuration_from_inside() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    let inside = cloned(&machine, &repo);
    let id = commit(&inside, "c.txt", "three");
    set_traps(&inside.join(".git"), &canary(&machine));
    // A fifo would hang whoever reads the configuration.
    let config = inside.join(".git/config");
    let included = format!("\n[include]\npath = {}\n", inside.join("fifo").display());
    let text = std::fs::read_to_string(&config).unwrap() + &included;
    std::fs::write(&config, text).unwrap();
    assert!(Command::new("mkfifo").arg(inside.join("fifo")).status().unwrap().success());
    machine.spark(&["pull", "web"]).ok();
    assert_eq!(git(&repo, &["rev-parse", "refs/spark/web/main"]), id);
    canary_lives(&machine);
}

#[test]
fn pull_lends_no_object_and_follows_no_link_of_the_host() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    let inside = cloned(&machine, &repo);
    // A commit of another repository of the host, which the spark knows the id of.
    let private = machine.work().join("private");
    std::fs::create_dir(&private).unwrap();
    git(&private, &["init", "--quiet", "-b", "main"]);
    let secret = commit(&private, "secret.txt", "secret");
    let git_dir = inside.join(".git");
    let before = branches(&repo);
    let fails = |what: &str| {
        let said = machine.spark(&["--json", "pull", "web"]).fails_with("corrupt");
        assert!(
            git_command(&repo, &["cat-file", "-e", &secret]).status().unwrap().code() != Some(0),
            "{what}"
        );
        assert!(machine.staged().is_empty(), "{what}");
        said
    };
    let objects = private.join(".git/objects");
    std::fs::write(git_dir.join("objects/info/alternates"), format!("{}\n", objects.display())).unwrap();
    std::fs::write(git_dir.join("refs/heads/secret"), format!("{secret}\n")).unwrap();
    let said = fails("alternates");
    assert!(said.contains("`secret`") && said.contains(&secret), "{said}");
    let pulled = branches(&repo);
    assert!(pulled.contains("refs/spark/web/main") && !pulled.contains("refs/spark/web/secret"), "{pulled}");
    std::fs::remove_file(git_dir.join("refs/heads/secret")).unwrap();
    // Nor one that only the host's own repository has, in no branch.
    let hidden = git(&repo, &["commit-tree", "HEAD^{tree}", "-m", "hidden"]);
    std::fs::write(git_dir.join("refs/heads/hidden"), format!("{hidden}\n")).unwrap();
    assert!(fails("an object of the host").contains("`hidden`"));
    std::fs::remove_file(git_dir.join("refs/heads/hidden")).unwrap();
    for branch in ["main", "fix/1"] {
        git(&repo, &["update-ref", "-d", &format!("refs/spark/web/{branch}")]);
    }
    let fails = |what: &str| {
        fails(what);
        assert_eq!(branches(&repo), before, "{what}");
    };

    let move_away = |name: &str, target: &Path| {
        std::fs::rename(git_dir.join(name), git_dir.join("away")).unwrap();
        symlink(target, git_dir.join(name)).unwrap();
    };
    let move_back = |name: &str| {
        std::fs::remove_file(git_dir.join(name)).unwrap();
        std::fs::rename(git_dir.join("away"), git_dir.join(name)).unwrap();
    };
    for name in ["objects", "objects/pack", "refs", "refs/heads", "packed-refs"] {
        move_away(name, &private.join(".git").join(name));
        fails(name);
        move_back(name);
    }
    // The same for the whole of it, as a link and as a file.
    let kept = inside.join("kept");
    std::fs::rename(&git_dir, &kept).unwrap();
    symlink(private.join(".git"), &git_dir).unwrap();
    fails(".git as a link");
    std::fs::remove_file(&git_dir).unwrap();
    std::fs::write(&git_dir, format!("gitdir: {}\n", private.join(".git").display())).unwrap();
    fails(".git as a file");
    std::fs::remove_file(&git_dir).unwrap();
    std::fs::rename(&kept, &git_dir).unwrap();
    // And for one that shares its common directory: that file is not read.
    std::fs::write(git_dir.join("commondir"), format!("{}\n", private.join(".git").display())).unwrap();
    machine.spark(&["pull", "web"]).ok();
    assert!(git_command(&repo, &["cat-file", "-e", &secret]).status().unwrap().code() != Some(0));
    // A link in place of the clone ends inside.
    let aside = root(&machine, "web").join("work/aside");
    std::fs::rename(&inside, &aside).unwrap();
    symlink(&private, &inside).unwrap();
    machine.spark(&["--json", "pull", "web"]).fails_with("corrupt");
}

#[test]
fn pull_leaves_out_refs_that_git_would_not_make() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    let inside = cloned(&machine, &repo);
    let heads = inside.join(".git/refs/heads");
    let id = git(&inside, &["rev-parse", "HEAD"]);
    let before = branches(&repo);
    let mut packed = std::fs::read_to_string(inside.join(".git/packed-refs")).unwrap();
    for name in
        ["../../../refs/heads/main", "../tags/v2", "-x", "a..b", "a b", "\u{1b}[31m", "main/below", "@{0}"]
    {
        packed.push_str(&format!("{id} refs/heads/{name}\n"));
    }
    packed.push_str(&format!("{id} refs/tags/v3\nrubbish\n"));
    std::fs::write(inside.join(".git/packed-refs"), packed).unwrap();
    std::fs::create_dir_all(&heads).unwrap();
    symlink(repo.join(".git/refs/heads/main"), heads.join("linked")).unwrap();
    std::fs::write(heads.join("symbolic"), "ref: refs/heads/main\n").unwrap();
    std::fs::write(heads.join("x.lock"), format!("{id}\n")).unwrap();
    assert!(Command::new("mkfifo").arg(heads.join("fifo")).status().unwrap().success());
    let rows = machine.spark(&["--json", "pull", "web"]).json();
    let names: Vec<_> = rows.as_array().unwrap().iter().map(|r| r["branch"].as_str().unwrap()).collect();
    assert_eq!(names, ["fix/1", "main"]);
    let after = branches(&repo);
    let rest: Vec<_> = after.lines().filter(|l| !l.starts_with("refs/spark/web/")).collect();
    assert_eq!(rest.join("\n"), before);
}

#[test]
fn pull_refuses_what_is_broken_and_then_changes_nothing() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    let inside = cloned(&machine, &repo);
    machine.spark(&["pull", "web"]).ok();
    let before = branches(&repo);
    let fails = |code: &str, what: &str| {
        let said = machine.spark(&["--json", "pull", "web"]).fails_with(code);
        assert_eq!(branches(&repo), before, "{what}");
        assert!(machine.staged().is_empty(), "{what}");
        said
    };
    // A tree that would be written into .git of whoever checks it out.
    git(&inside, &["checkout", "--quiet", "-b", "bad"]);
    let blob = git(&inside, &["rev-parse", "HEAD:a.txt"]);
    let raw: Vec<u8> = (0..20).map(|i| u8::from_str_radix(&blob[2 * i..2 * i + 2], 16).unwrap()).collect();
    std::fs::write(machine.work().join("tree"), [b"100644 .git\0".as_slice(), &raw].concat()).unwrap();
    let file = machine.work().join("tree");
    let tree = git(&inside, &["hash-object", "-t", "tree", "--literally", "-w", file.to_str().unwrap()]);
    let bad = git(&inside, &["commit-tree", &tree, "-m", "bad"]);
    git(&inside, &["update-ref", "refs/heads/bad", &bad]);
    let said = fails("corrupt", "a tree with .git");
    assert!(said.contains("`bad`") && said.contains(&bad) && said.contains("hasDotgit"), "{said}");
    git(&inside, &["update-ref", "refs/heads/bad", "HEAD~0"]);

    git(&inside, &["checkout", "--quiet", "main"]);
    // A branch that is no commit, and a commit whose tree is missing.
    std::fs::write(inside.join(".git/refs/heads/bad"), format!("{blob}\n")).unwrap();
    assert!(fails("corrupt", "a blob").contains("`bad`"));
    let lost = commit_without_its_tree(&inside);
    std::fs::write(inside.join(".git/refs/heads/bad"), format!("{lost}\n")).unwrap();
    let said = fails("corrupt", "a missing tree");
    assert!(said.contains("`bad`") && said.contains(&lost), "{said}");
    std::fs::remove_file(inside.join(".git/refs/heads/bad")).unwrap();

    // Ten times as many branches as there may be.
    let id = git(&repo, &["rev-parse", "main"]);
    let packed = inside.join(".git/packed-refs");
    let kept = std::fs::read_to_string(&packed).unwrap();
    let many: String = (0..100_000).map(|n| format!("{id} refs/heads/b{n}\n")).collect();
    std::fs::write(&packed, many).unwrap();
    assert!(fails("corrupt", "many branches").contains("packed-refs"));
    std::fs::write(&packed, vec![b'x'; 20 << 20]).unwrap();
    fails("corrupt", "a large file");
    std::fs::write(&packed, kept).unwrap();
    machine.spark(&["pull", "web"]).ok();

    let packs = std::fs::read_dir(inside.join(".git/objects/pack")).unwrap();
    let pack = packs.map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "pack")).unwrap();
    let mut content = std::fs::read(&pack).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 0xff;
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, content).unwrap();
    assert!(fails("corrupt", "a broken pack").contains(".pack"));
    // One that claims to be larger than any disk, and is all hole.
    let hole = std::fs::File::create(&pack).unwrap();
    hole.set_len(1 << 40).unwrap();
    assert!(fails("corrupt", "a huge pack").contains(".pack"));
}

fn commit_without_its_tree(inside: &Path) -> String {
    let before = git(inside, &["rev-parse", "HEAD"]);
    let lost = commit(inside, "lost.txt", "lost");
    let tree = git(inside, &["rev-parse", "HEAD^{tree}"]);
    std::fs::remove_file(inside.join(".git/objects").join(&tree[..2]).join(&tree[2..])).unwrap();
    git(inside, &["update-ref", "HEAD", &before]);
    lost
}
