//! Repositories as people and their tools leave them: packed by `git maintenance`, cut off, partial, with branches that
//! changed their kind, with one bad commit, with work that is in no branch.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::clone::{branches, commit, git, git_command, repository, root};
use crate::common::{Machine, Output};

/// A spark `web` that is not started, with a clone of `shop`. Returns the repository, and the clone as the host sees it.
fn cloned(machine: &Machine) -> (PathBuf, PathBuf) {
    let repo = repository(machine);
    machine.spark(&["create", "web", "--no-start", "--clone", "shop"]).ok();
    (repo, root(machine, "web").join("work/shop"))
}

/// The branches that a pull brought.
#[track_caller]
fn pulled(machine: &Machine) -> BTreeMap<String, String> {
    let output = machine.spark(&["--json", "pull", "web"]);
    output.ok();
    rows(&output)
}

#[track_caller]
fn rows(output: &Output) -> BTreeMap<String, String> {
    let rows: serde_json::Value = serde_json::from_str(&output.stdout()).unwrap();
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(|row| (text(row, "branch"), text(row, "id"))).collect()
}

fn write(path: impl AsRef<Path>, content: &str) {
    std::fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn maintain(dir: &Path, tasks: &[&str]) {
    for task in tasks {
        git(dir, &["maintenance", "run", &format!("--task={task}")]);
    }
}

#[test]
fn what_git_maintenance_packs_is_cloned_and_pulled() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    let tasks = ["loose-objects", "loose-objects", "incremental-repack", "commit-graph", "pack-refs"];
    maintain(&repo, &tasks);
    git(&repo, &["update-ref", "refs/prefetch/remotes/origin/main", "main"]);
    machine.spark(&["create", "web", "--no-start", "--clone", "shop"]).ok();
    let inside = root(&machine, "web").join("work/shop");
    assert!(!branches(&inside).contains("refs/prefetch"));

    for round in 0..3 {
        let id = commit(&inside, "c.txt", &format!("round {round}"));
        git(&inside, &["update-ref", "refs/prefetch/remotes/origin/main", "main"]);
        maintain(&inside, &tasks);
        assert_eq!(pulled(&machine)["main"], id);
        assert_eq!(git(&repo, &["rev-parse", "refs/spark/web/main"]), id);
    }
    let packs = std::fs::read_dir(inside.join(".git/objects/pack")).unwrap();
    let packs: Vec<_> = packs.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(packs.iter().any(|name| name.starts_with("loose-")), "{packs:?}");
    assert!(packs.iter().any(|name| name == "multi-pack-index"), "{packs:?}");
    git(&repo, &["fsck", "--strict"]);
}

#[test]
fn a_pull_leaves_no_object_of_a_refused_branch_and_no_temporary_pack() {
    let machine = Machine::new().with_base();
    let (repo, inside) = cloned(&machine);
    for number in 0..200 {
        write(inside.join(format!("many/{number}")), &number.to_string());
    }
    git(&inside, &["add", "."]);
    let good = commit(&inside, "c.txt", "many");
    let bad = with_bad_zone(&inside, &good);
    git(&inside, &["update-ref", "refs/heads/bad", &bad]);
    machine.spark(&["--json", "pull", "web"]).fails_with("corrupt");
    assert_eq!(git(&repo, &["rev-parse", "refs/spark/web/main"]), good);
    // A pull brings nothing that was there.
    let packs = std::fs::read_dir(repo.join(".git/objects/pack")).unwrap().map(|e| e.unwrap().path());
    let packs: Vec<_> = packs.filter(|p| p.extension().is_some_and(|e| e == "idx")).collect();
    let [pack] = &packs[..] else { panic!("{packs:?}") };
    let has = git(&repo, &["verify-pack", "-v", pack.to_str().unwrap()]);
    assert!(has.contains(&good) && !has.contains(&git(&repo, &["rev-parse", "main"])), "{has}");
    assert!(git_command(&repo, &["cat-file", "-e", &bad]).status().unwrap().code() != Some(0));
    let left = Command::new("find").arg(repo.join(".git")).args(["-name", "tmp_*"]).output().unwrap();
    assert_eq!(String::from_utf8(left.stdout).unwrap(), "");
    git(&repo, &["fsck", "--strict"]);
}

/// A commit above `parent` whose author has a time zone that git does not write.
fn with_bad_zone(dir: &Path, parent: &str) -> String {
    let tree = git(dir, &["rev-parse", &format!("{parent}^{{tree}}")]);
    let text = format!(
        "tree {tree}\nparent {parent}\nauthor a <a@e> 1112911993 -700\ncommitter a <a@e> 1112911993 +0000\n\nold\n"
    );
    let file = dir.join(".git/raw");
    std::fs::write(&file, text).unwrap();
    git(dir, &["hash-object", "-t", "commit", "--literally", "-w", file.to_str().unwrap()])
}

#[test]
fn one_bad_commit_is_named_and_keeps_no_other_branch_back() {
    let machine = Machine::new().with_base();
    let (repo, inside) = cloned(&machine);
    let good = commit(&inside, "c.txt", "good");
    let bad = with_bad_zone(&inside, &good);
    git(&inside, &["update-ref", "refs/heads/old", &bad]);
    git(&inside, &["update-ref", "refs/heads/older", &bad]);
    for number in 0..5 {
        git(&inside, &["branch", &format!("idea-{number}"), "main"]);
    }
    let output = machine.spark(&["pull", "web"]);
    assert_eq!(output.status(), 1);
    for branch in ["old", "older"] {
        let error =
            format!("error: branch `{branch}` was not fetched: git refuses commit {bad}: badTimezone: ");
        assert!(output.stderr().contains(&error), "{}", output.stderr());
    }
    let way_out = format!("git -C {} config fetch.fsck.badTimezone ignore", repo.join(".git").display());
    assert!(output.stderr().contains(&way_out), "{}", output.stderr());
    assert!(output.stdout().contains("idea-4"), "{}", output.stdout());
    let names = ["fix/1", "idea-0", "idea-1", "idea-2", "idea-3", "idea-4", "main"];
    let again = machine.spark(&["--json", "pull", "web"]);
    assert_eq!(rows(&again).into_keys().collect::<Vec<_>>(), names);
    assert_eq!(git(&repo, &["rev-parse", "refs/spark/web/main"]), good);
    assert!(machine.staged().is_empty());

    // The way out, and a branch that was fetched and is bad now keeps its ref.
    git(&repo, &["config", "fetch.fsck.badTimezone", "ignore"]);
    assert_eq!(machine.spark(&["--json", "pull", "web"]).status(), 0);
    assert_eq!(git(&repo, &["rev-parse", "refs/spark/web/old"]), bad);
    git(&repo, &["config", "--unset", "fetch.fsck.badTimezone"]);
    git(&inside, &["update-ref", "refs/heads/old", &with_bad_zone(&inside, &bad)]);
    machine.spark(&["--json", "pull", "web"]).fails_with("corrupt");
    assert_eq!(git(&repo, &["rev-parse", "refs/spark/web/old"]), bad);
}

#[test]
fn a_tree_with_more_paths_than_there_is_memory_is_pulled() {
    let machine = Machine::new().with_base();
    let (repo, inside) = cloned(&machine);
    let mut id = git(&inside, &["rev-parse", "HEAD:a.txt"]);
    for depth in 0..9 {
        let kind = if depth == 0 { "100644 blob" } else { "040000 tree" };
        let entries: String = (0..10).map(|name| format!("{kind} {id}\t{name}\n")).collect();
        let list = machine.work().join("list");
        std::fs::write(&list, entries).unwrap();
        let mut make = git_command(&inside, &["mktree"]);
        let made = make.stdin(std::fs::File::open(&list).unwrap()).output().unwrap();
        id = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    }
    let bomb = git(&inside, &["commit-tree", &id, "-p", "HEAD", "-m", "many"]);
    git(&inside, &["update-ref", "refs/heads/bomb", &bomb]);
    assert_eq!(pulled(&machine)["bomb"], bomb);
    assert_eq!(git(&repo, &["rev-parse", "refs/spark/web/bomb"]), bomb);
}

#[test]
fn a_branch_may_become_a_directory_of_branches_and_back() {
    let machine = Machine::new().with_base();
    let (repo, inside) = cloned(&machine);
    git(&inside, &["branch", "-D", "fix/1"]);
    git(&inside, &["branch", "fix"]);
    git(&inside, &["branch", "gone"]);
    assert_eq!(pulled(&machine).into_keys().collect::<Vec<_>>(), ["fix", "gone", "main"]);
    for (old, new) in [("fix", "fix/1"), ("fix/1", "fix/1/a"), ("fix/1/a", "fix")] {
        git(&inside, &["branch", "-m", old, "elsewhere"]);
        git(&inside, &["branch", "-m", "elsewhere", new]);
        assert_eq!(pulled(&machine).into_keys().collect::<Vec<_>>(), [new, "gone", "main"]);
        let theirs = git(&repo, &["for-each-ref", "--format=%(refname:lstrip=3)", "refs/spark/web"]);
        assert_eq!(theirs.lines().collect::<Vec<_>>(), [new, "gone", "main"]);
    }
    git(&inside, &["branch", "-D", "gone"]);
    assert_eq!(pulled(&machine).into_keys().collect::<Vec<_>>(), ["fix", "main"]);
    assert!(!branches(&repo).contains("refs/spark/web/gone"));
}

#[test]
fn history_that_is_cut_off_is_pulled_where_the_host_has_its_beginning() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    let work = machine.work();
    for number in 0..4 {
        commit(&repo, "a.txt", &format!("more {number}"));
    }
    // Cut off on the host, and so inside; deeper on one of the two later.
    git(&work, &["clone", "--quiet", "--depth=2", &format!("file://{}", repo.display()), "cut"]);
    let cut = work.join("cut");
    machine.spark(&["create", "web", "--no-start", "--clone", "cut"]).ok();
    let inside = root(&machine, "web").join("work/cut");
    assert_eq!(git(&inside, &["rev-list", "--count", "HEAD"]), "2");
    git(&inside, &["fsck"]);
    let id = commit(&inside, "b.txt", "inside");
    assert_eq!(pulled(&machine)["main"], id);
    git(&inside, &["fetch", "--quiet", "--unshallow", &format!("file://{}", repo.display()), "main"]);
    git(&inside, &["branch", "ancient", "HEAD~4"]);
    let found = pulled(&machine);
    assert_eq!(found["main"], id);
    assert_eq!(git(&cut, &["log", "-1", "--format=%s", &found["ancient"]]), "more 0");
    git(&cut, &["fsck"]);
    git(&cut, &["fetch", "--quiet", "--unshallow"]);
    let id = commit(&inside, "b.txt", "again");
    assert_eq!(pulled(&machine)["main"], id);
    assert_eq!(git(&cut, &["rev-list", "--count", "refs/spark/web/main"]), "7");

    // Of another repository, cut off: the host would have a history without a beginning.
    git(&work, &["init", "--quiet", "-b", "main", "other"]);
    for number in 0..3 {
        commit(&work.join("other"), "o.txt", &format!("other {number}"));
    }
    let other = format!("file://{}", work.join("other").display());
    git(&inside, &["fetch", "--quiet", "--depth=1", &other, "main:new"]);
    let id = commit(&inside, "b.txt", "third");
    let output = machine.spark(&["pull", "web"]);
    assert_eq!(output.status(), 1);
    let cut_off = git(&inside, &["rev-parse", "new"]);
    let error = format!("branch `new` was not fetched: its history is cut off at commit {cut_off}");
    assert!(output.stderr().contains(&error), "{}", output.stderr());
    assert!(output.stderr().contains("git fetch --unshallow"), "{}", output.stderr());
    assert_eq!(git(&cut, &["rev-parse", "refs/spark/web/main"]), id);
    assert!(!cut.join(".git/shallow").exists(), "the host's history was cut off");
    git(&inside, &["fetch", "--quiet", "--unshallow", &other, "main:new"]);
    assert_eq!(pulled(&machine)["new"], cut_off);
}

#[test]
fn partial_clones_are_cloned_with_what_they_have_and_pulled_into() {
    let machine = Machine::new().with_base();
    let work = machine.work();
    git(&work, &["init", "--quiet", "-b", "main", "up"]);
    let up = work.join("up");
    for number in 0..3 {
        for dir in ["one", "two"] {
            write(up.join(dir).join("file"), &format!("{dir} {number}"));
        }
        git(&up, &["add", "."]);
        commit(&up, "top", &number.to_string());
    }
    git(&up, &["config", "uploadpack.allowFilter", "true"]);
    git(&up, &["config", "uploadpack.allowAnySHA1InWant", "true"]);
    let url = format!("file://{}", up.display());
    for (name, args) in [
        ("blobless", &["--filter=blob:none"][..]),
        ("treeless", &["--filter=tree:0"]),
        ("sparse", &["--filter=blob:none", "--sparse"]),
    ] {
        let host = work.join(name);
        git(&work, &[&["clone", "--quiet"], args, &[&url, name]].concat());
        if name == "sparse" {
            git(&host, &["sparse-checkout", "set", "one"]);
        }
        let missing =
            || git_command(&host, &["rev-list", "--objects", "--missing=print", "main"]).output().unwrap();
        let missing =
            || String::from_utf8(missing().stdout).unwrap().lines().filter(|l| l.starts_with('?')).count();
        let lacking = missing();
        assert!(lacking > 0, "{name}");
        machine.spark(&["create", "web", "--no-start", "--clone", name, "--dirty"]).ok();
        let inside = root(&machine, "web").join("work").join(name);
        assert_eq!(git(&inside, &["status", "--porcelain"]), "", "{name}");
        assert_eq!(std::fs::read_to_string(inside.join("one/file")).unwrap(), "one 2");
        assert_eq!(inside.join("two").exists(), name != "sparse");
        git(&inside, &["fsck"]);

        write(inside.join("one/new"), "inside");
        git(&inside, &["add", "one/new"]);
        let id = commit(&inside, "top", "inside");
        assert_eq!(pulled(&machine)["main"], id, "{name}");
        assert_eq!(git(&host, &["show", "refs/spark/web/main:one/new"]), "inside");
        assert_eq!(missing(), lacking, "something was fetched behind the caller's back: {name}");
        // What is lacking can be had inside where its remote is within reach.
        git(&inside, &["config", "remote.origin.url", &url]);
        assert_eq!(git(&inside, &["show", "main~3:two/file"]), "two 0", "{name}");
        machine.spark(&["delete", "--now", "web"]).ok();
    }

    git(&work, &["clone", "--quiet", "--filter=blob:none", "--no-checkout", &url, "empty"]);
    let said = machine.spark(&["--json", "create", "no", "--clone", "empty"]).fails_with("not_supported");
    assert!(said.contains("partial clone"), "{said}");
    assert!(machine.staged().is_empty());
}

#[test]
fn work_that_is_in_no_branch_is_named() {
    let machine = Machine::new().with_base();
    let (repo, inside) = cloned(&machine);
    let quiet = machine.spark(&["pull", "web"]);
    assert_eq!(quiet.ok().lines().count(), 3);
    assert_eq!(quiet.stderr(), "");
    git(&inside, &["checkout", "--quiet", "--detach"]);
    let lone = commit(&inside, "lone.txt", "in no branch");
    git(&inside, &["tag", "v2"]);
    git(&inside, &["notes", "add", "-m", "a note"]);
    for content in ["first", "second"] {
        write(inside.join("a.txt"), content);
        git(&inside, &["stash", "--quiet"]);
    }
    git(&inside, &["worktree", "add", "--quiet", "--detach", inside.join("tree").to_str().unwrap(), "main"]);
    let in_tree = commit(&inside.join("tree"), "tree.txt", "in a work tree");
    let output = machine.spark(&["pull", "web"]);
    output.ok();
    let mut both = [lone.as_str(), in_tree.as_str()];
    both.sort_unstable();
    let said = format!(
        "only branches are fetched, and not: tags v2; notes commits; commits of a detached HEAD {}; stashes (2)",
        both.join(", ")
    );
    assert!(output.stderr().contains(&said), "{}", output.stderr());

    // What is in a branch then, or in the host's repository, is no longer named.
    git(&inside, &["branch", "kept", &lone]);
    git(&inside, &["branch", "tree", &in_tree]);
    git(&inside, &["stash", "clear"]);
    git(&inside, &["tag", "-d", "v2"]);
    git(&inside, &["update-ref", "-d", "refs/notes/commits"]);
    let output = machine.spark(&["pull", "web"]);
    output.ok();
    assert_eq!(output.stderr(), "");
    assert_eq!(git(&repo, &["rev-parse", "refs/spark/web/kept"]), lone);
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:";

#[test]
fn submodules_other_repositories_and_pointers_of_git_lfs_are_named() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    git(&machine.work(), &["init", "--quiet", "-b", "main", "lib"]);
    let lib = machine.work().join("lib");
    commit(&lib, "l.txt", "lib");
    let add =
        ["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", lib.to_str().unwrap(), "lib"];
    git(&repo, &add);
    write(repo.join(".gitattributes"), "*.bin filter=lfs diff=lfs -text\n");
    let (there, lost) = ("1".repeat(64), "2".repeat(64));
    write(repo.join("big.bin"), &format!("{POINTER}{lost}\nsize 3\n"));
    git(&repo, &["add", "."]);
    git(&repo, &["commit", "--quiet", "-m", "submodule and pointer"]);
    git(&repo, &["init", "--quiet", "nested"]);
    commit(&repo.join("nested"), "n.txt", "nested");
    let output = machine.spark(&["create", "web", "--no-start", "--clone", "shop", "--dirty"]);
    output.ok();
    for said in [
        "submodules are empty in the clone: lib;",
        "repositories of their own are empty in the clone: nested;",
        "files of git-lfs are pointers in the clone: big.bin;",
    ] {
        assert!(output.stderr().contains(said), "{}", output.stderr());
    }
    let inside = root(&machine, "web").join("work/shop");
    assert!(!inside.join("nested/n.txt").exists() && !inside.join("lib/l.txt").exists());
    assert_eq!(git(&inside, &["status", "--porcelain"]), "");

    // Nothing new, nothing named; then a new pointer, one to a file that the host has, and another commit of the submodule.
    let output = machine.spark(&["pull", "web"]);
    output.ok();
    assert_eq!(output.stderr(), "");
    commit(&inside, "a.txt", "the submodule stays what it was");
    let output = machine.spark(&["pull", "web"]);
    output.ok();
    assert_eq!(output.stderr(), "");
    write(repo.join(".git/lfs/objects/11/11").join(&there), "abc");
    write(inside.join("new.bin"), &format!("{POINTER}{}\nsize 3\n", "3".repeat(64)));
    write(inside.join("known.bin"), &format!("{POINTER}{there}\nsize 3\n"));
    write(inside.join("doc.txt"), "a pointer begins with version https://git-lfs.github.com/spec/v1\n");
    git(&inside, &["add", "."]);
    let other = git(&lib, &["rev-parse", "HEAD^{tree}"]);
    git(&inside, &["update-index", "--cacheinfo", &format!("160000,{other},lib")]);
    git(&inside, &["commit", "--quiet", "-m", "inside"]);
    let output = machine.spark(&["pull", "web"]);
    output.ok();
    let said = output.stderr();
    assert!(said.contains("commits in submodules were not fetched: lib;"), "{said}");
    assert!(said.contains("files of git-lfs were not fetched, only their pointers: new.bin;"), "{said}");
}

#[test]
fn commits_inside_have_the_name_and_e_mail_of_the_caller_and_anybody_inside_can_have_others() {
    let machine = Machine::new().with_base();
    let repo = repository(&machine);
    let author = |spark: &str| {
        let top = root(&machine, spark);
        let mut ask = git_command(&top.join("work/shop"), &["var", "GIT_AUTHOR_IDENT"]);
        ask.env_remove("GIT_CONFIG_GLOBAL").env("HOME", top.join("root"));
        ask.env_remove("GIT_AUTHOR_NAME").env_remove("GIT_AUTHOR_EMAIL");
        let said = String::from_utf8(ask.output().unwrap().stdout).unwrap();
        said.split_once('>').map(|(who, _)| format!("{who}>")).unwrap_or_default()
    };
    let create = |name: &str, uid: Option<&str>| {
        let mut command = machine.command(&["create", name, "--no-start", "--clone", "shop"]);
        uid.map(|uid| command.env("SUDO_UID", uid).env("SUDO_GID", uid));
        Output::of("create", &mut command).ok();
        author(name)
    };
    assert_eq!(create("nobody", None), "");
    write(
        machine.home().join(".gitconfig"),
        "[user]\n\tname = Ann \\\"A\\\" O'Neill\n[include]\n\tpath = more\n",
    );
    write(machine.home().join("more"), "[user]\n\temail = ann@example.org\n");
    // What the repository executes is not executed.
    for key in ["core.fsmonitor", "core.pager", "core.sshCommand"] {
        git(&repo, &["config", key, "false"]);
    }
    assert_eq!(create("ann", None), "Ann \"A\" O'Neill <ann@example.org>");
    git(&repo, &["config", "user.email", "ann@work.example.org"]);
    assert_eq!(create("work", None), "Ann \"A\" O'Neill <ann@work.example.org>");
    // The repository of another user says nothing on who its caller is; behind sudo that user is the caller.
    for dir in [machine.work().parent().unwrap().to_owned(), machine.work()] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o777)).unwrap();
    }
    git(&repo, &["config", "user.name", "Ben"]);
    let chown = Command::new("chown").args(["-R", "54321:54321"]).arg(&repo).status().unwrap();
    assert!(chown.success());
    assert_eq!(create("root", None), "Ann \"A\" O'Neill <ann@example.org>");
    assert_eq!(create("ben", Some("54321")), "Ben <ann@work.example.org>");

    // Whoever is inside has the last word, and a base has nobody's name.
    write(root(&machine, "ann").join("root/.gitconfig"), "[user]\n\tname = Claude\n");
    assert_eq!(author("ann"), "Claude <ann@example.org>");
    machine.spark(&["base", "save", "ann", "saved"]).ok();
    let grep =
        ["-r", "ann@", machine.pool().join("bases/saved/root/root").to_str().unwrap()].map(str::to_owned);
    assert_eq!(Command::new("grep").args(grep).status().unwrap().code(), Some(1));
    machine.spark(&["fork", "work", "copy", "--no-start"]).ok();
    assert_eq!(author("copy"), author("work"));
}

#[test]
fn a_repository_that_was_moved_is_pulled_into_and_an_unrelated_one_is_not() {
    let machine = Machine::new().with_base();
    let (repo, inside) = cloned(&machine);
    let moved = machine.work().join("moved");
    std::fs::rename(&repo, &moved).unwrap();
    let other = machine.work().join("other");
    git(&machine.work(), &["init", "--quiet", "-b", "main", "other"]);
    commit(&other, "o.txt", "other");
    // All history inside is new: the clone still knows where it came from.
    git(&inside, &["checkout", "--quiet", "--orphan", "fresh"]);
    let id = commit(&inside, "c.txt", "fresh");
    git(&inside, &["branch", "-D", "main", "fix/1"]);
    let pull = |dir: &Path| {
        let mut command = machine.command(&["--json", "pull", "default/web"]);
        Output::of("pull", command.current_dir(dir))
    };
    let said = pull(&other).fails_with("usage");
    assert!(said.contains("no commit in common"), "{said}");
    assert!(!branches(&other).contains("refs/spark"));
    pull(&machine.work()).fails_with("usage");
    assert_eq!(rows(&pull(&moved))["fresh"], id);
    assert_eq!(git(&moved, &["rev-parse", "refs/spark/web/fresh"]), id);
}
