//! The layers of `src/lib.rs`, checked on every run: who may import whom, and where certain words may stand.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// A layer and what it may import of ours, besides itself.
const LAYERS: [(&str, &[&str]); 16] = [
    ("domain", &[]),
    ("error", &["domain"]),
    ("fault", &["error"]),
    ("sys", &[]),
    ("pool", &["domain", "error", "fault", "sys"]),
    ("bundle", &["domain", "error", "fault", "sys"]),
    ("runtime", &["domain", "error", "fault", "sys"]),
    ("image", &["domain", "error", "fault", "sys"]),
    ("net", &["domain", "error", "fault", "sys"]),
    ("secrets", &["domain", "error", "fault", "sys"]),
    ("config", &["domain", "error", "sys"]),
    (
        "ops",
        &[
            "domain", "error", "fault", "sys", "pool", "bundle", "runtime", "image", "net", "secrets",
            "config",
        ],
    ),
    ("foreground", &["ops", "domain", "error"]),
    ("cli", &["foreground", "ops", "domain", "error"]),
    ("oci", &["foreground", "ops", "domain", "error"]),
    ("shim", &["ops", "domain", "error"]),
];

/// A word and the only places where it may stand.
const PLACES: [(&str, &[&str]); 11] = [
    ("libcontainer::", &["runtime/"]),
    ("libcgroups::", &["runtime/"]),
    ("btrfsutil::", &["pool/btrfs.rs"]),
    ("libseccomp::", &["bundle/seccomp"]),
    ("unsafe {", &["sys/", "runtime/init/"]),
    ("println!", &["cli/", "oci/"]),
    ("tokio::", &["cli/", "foreground/", "image/", "net/", "shim/"]),
    ("oci_client::", &["image/oci/registry.rs"]),
    ("h2::", &["image/containerd.rs"]),
    ("gix_discover::", &["ops/project/"]),
    // Whoever locks a spark otherwise may see half of a restore. A delete settles by itself, since it goes on if that fails.
    ("lock(&self.dir(", &["ops/spark.rs", "ops/delete.rs"]),
];

/// Lines of a source file that count against it: a page of tests at its end does not make a file hard to find
/// one's way in, so they count too.
const LONGEST: usize = 500;

#[test]
fn no_layer_imports_what_is_above_it() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let Some(layer) = layer_of(&path) else { continue };
        let allowed = LAYERS.iter().find(|l| l.0 == layer).map(|l| l.1).unwrap();
        for (number, line) in statements(&text) {
            for other in imported(&line) {
                if other != layer && !allowed.contains(&other.as_str()) && LAYERS.iter().any(|l| l.0 == other)
                {
                    wrong.push(format!(
                        "src/{path}:{number}: {layer} may not import {other}",
                        path = path.display()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn words_stand_only_where_they_belong() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let shown = path.to_str().unwrap();
        for (number, line) in code(&text) {
            for (word, places) in PLACES {
                if line.contains(word) && !places.iter().any(|p| shown.starts_with(p)) {
                    wrong.push(format!("src/{shown}:{number}: `{word}` may stand only in {places:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_source_file_is_longer_than_a_person_reads() {
    let long: Vec<String> = sources()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST)
        .map(|(path, lines)| format!("src/{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// What docs/security.md promises is held by tests, whose paths stand there.
#[test]
fn each_test_that_holds_a_promise_exists() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md");
    let text = fs::read_to_string(page).unwrap();
    let code = text.split('`').skip(1).step_by(2);
    let named: Vec<&str> =
        code.filter(|code| code.contains("::") && !code.contains([' ', '…', '/'])).collect();
    assert!(named.len() > 50, "{named:?}");
    let wrong: Vec<_> = named.into_iter().filter(|test| !is_a_test(test)).collect();
    assert!(wrong.is_empty(), "docs/security.md names what is no test: {wrong:?}");
    assert!(
        !is_a_test("layers::imported")
            && !is_a_test("layers::no_such_test")
            && is_a_test("layers::imports_are_recognised_in_every_form")
    );
}

/// Whether there is a test of this path.
fn is_a_test(path: &str) -> bool {
    let (modules, name) = path.rsplit_once("::").unwrap();
    let modules = modules.replace("::", "/");
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Tests of one file stand in it, in a module of that name.
    let places = [&*modules, modules.strip_suffix("/tests").unwrap_or(&modules)];
    let files =
        ["tests", "src"].iter().flat_map(|dir| places.iter().map(move |place| format!("{dir}/{place}")));
    let files =
        files.flat_map(|file| [format!("{file}.rs"), format!("{file}/mod.rs"), format!("{file}/main.rs")]);
    files.filter_map(|file| fs::read_to_string(top.join(file)).ok()).any(|text| {
        let function = format!("fn {name}(");
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let at = lines.iter().position(|line| line.starts_with(&function));
        at.is_some_and(|at| {
            lines[..at].iter().rev().take_while(|line| line.starts_with("#[")).any(|line| *line == "#[test]")
        })
    })
}

/// Calls that wait for somebody, and the only files where they may stand, each with the reason why nobody inside a spark or a
/// container can make them wait for good. All others wait by `sys/deadline.rs` (docs/adr/0022).
const WAITS: [(&str, &[(&str, &str)]); 13] = [
    ("waitpid(", &[("sys/process.rs", "WNOHANG")]),
    ("waitid(", &[("shim/reap.rs", "only looks at a child of which a signal has told")]),
    ("process::wait(", &[("shim/reap.rs", "NOHANG")]),
    (
        ".wait()",
        &[
            ("ops/git.rs", "git of the host; nothing inside is run"),
            ("ops/base/bootstrap.rs", "mmdebstrap of the host"),
            ("runtime/strict/scope.rs", "our own placeholder, which was told to end"),
            ("sys/run.rs", "forks and exits at once"),
            ("sys/helper.rs", "forks and exits at once"),
            ("sys/isolated.rs", "a reader that has ended or was killed"),
            ("ops/create.rs", "Starting::wait, with a deadline"),
            ("ops/start.rs", "Starting::wait, with a deadline"),
            ("ops/race.rs", "Running::wait, of a command that has ended"),
            ("foreground/mod.rs", "a clock"),
            ("shim/container.rs", "asynchronous: others go on"),
            ("shim/mod.rs", "asynchronous: others go on"),
            ("shim/service.rs", "asynchronous: others go on"),
        ],
    ),
    (
        ".output()",
        &[
            ("ops/doctor/fix.rs", "a program of the host"),
            ("ops/doctor/filter.rs", "iptables of the host"),
            ("runtime/strict/scope.rs", "systemctl of the host"),
            ("oci/resources.rs", "ps of the host"),
            ("image/minimal.rs", "busybox of the host"),
            ("pool/image.rs", "mkfs, losetup and mount of the host"),
            ("shim/helper.rs", "our own program, which asks nobody inside"),
            ("foreground/mod.rs", "Relay::output, asynchronous"),
        ],
    ),
    ("command.status()", &[("shim/helper.rs", "spark-oci, whose own waits have deadlines")]),
    (
        "thread::sleep",
        &[
            ("cli/commands/top/mod.rs", "the time between two looks"),
            ("cli/commands/logs.rs", "--follow, until interrupted"),
        ],
    ),
    (
        "event::poll(",
        &[
            ("sys/deadline.rs", "the one"),
            ("sys/ask.rs", "a question to the caller, at the caller's terminal"),
            ("sys/job.rs", "with a deadline of its own, for two pipes"),
            ("sys/net.rs", "with a time limit"),
            ("net/names/serve.rs", "the loop of a process that serves"),
            ("sys/lifeline.rs", "returns at once"),
            ("sys/held.rs", "returns at once"),
            ("sys/isolated.rs", "a source that the caller named, as long as somebody reads what comes of it"),
            ("ops/race.rs", "commands run for as long as they like, and signals are among what is polled"),
            ("runtime/strict/watch.rs", "`events`, until interrupted, with a time limit"),
            ("foreground/relay.rs", "returns at once"),
            ("cli/commands/top/live.rs", "the keyboard, with a time limit"),
        ],
    ),
    (
        "recvmsg(",
        &[
            ("runtime/report.rs", "after deadline::readable"),
            ("sys/net.rs", "after deadline::readable"),
            ("shim/console.rs", "asynchronous, when it is readable"),
        ],
    ),
    (
        "net::recv(",
        &[
            ("sys/nft.rs", "the kernel's own answer, which is there at once"),
            ("sys/conntrack.rs", "the kernel's own answer, which is there at once"),
            ("net/names/upstream.rs", "DONTWAIT"),
            ("net/names/clients.rs", "DONTWAIT"),
        ],
    ),
    ("accept_with(", &[("sys/net.rs", "after deadline::readable")]),
    ("FlockOperation::LockExclusive", &[("sys/loopdev.rs", "/dev/loop-control, which nobody inside has")]),
    ("FlockOperation::LockShared", &[]),
];

/// What opens a path, and would wait at a fifo. Paths of a root filesystem are opened by `sys/beneath.rs` and `sys/tree.rs`.
const OPENERS: [&str; 5] =
    ["File::open(", "fs::read(", "fs::read_to_string(", "File::options()", "OpenOptions::new()"];

/// The layers in which an opener may mean a path of the inside, and the files there whose openers mean another.
const OPENING: [&str; 4] = ["runtime/", "ops/", "pool/", "bundle/"];
const OPENED: [(&str, &[&str]); 4] = [
    (
        "a file of /proc, /sys or /dev, which the kernel answers for",
        &[
            "runtime/traffic.rs",
            "runtime/labels.rs",
            "runtime/log/keeper.rs",
            "runtime/devices.rs",
            "runtime/youki.rs",
            "runtime/cgroup/oom.rs",
            "runtime/cgroup/mod.rs",
            "runtime/cgroup/unmanaged.rs",
            "runtime/strict/features.rs",
            "runtime/strict/staging.rs",
            "runtime/strict/enter.rs",
            "runtime/strict/hooks.rs",
            "runtime/strict/scope.rs",
            "runtime/attach.rs",
            "runtime/launch.rs",
            "ops/cp/whose.rs",
            "pool/growth.rs",
        ],
    ),
    (
        "a file that Sparks makes where nobody inside gets, or a block device of the pool",
        &[
            "runtime/strict/state.rs",
            "runtime/strict/create.rs",
            "runtime/log/mod.rs",
            "runtime/log/reader.rs",
            "runtime/live.rs",
            "runtime/ids.rs",
            "ops/oci/roots.rs",
            "ops/connect/units.rs",
            "ops/base/layers.rs",
            "ops/base/export.rs",
            "ops/doctor/space.rs",
            "bundle/write.rs",
            "pool/trash.rs",
            "pool/index.rs",
            "pool/repair.rs",
            "pool/image.rs",
            "pool/record.rs",
            "pool/space.rs",
            "pool/room.rs",
        ],
    ),
    (
        "a file that the caller names, or a repository of the caller's, opened with O_NONBLOCK where it is a stranger's",
        &[
            "ops/oci/config.rs",
            "ops/oci/spec.rs",
            "ops/base/import.rs",
            "ops/clone.rs",
            "ops/project/detect.rs",
            "ops/git/reach.rs",
            "ops/git/settings.rs",
            "bundle/template.rs",
        ],
    ),
    (
        "a file of the host's /etc, a program or a configuration of the host",
        &[
            "ops/network.rs",
            "ops/base/bootstrap.rs",
            "ops/base/containerd.rs",
            "ops/doctor/programs.rs",
            "ops/doctor.rs",
        ],
    ),
];

#[test]
fn nothing_waits_for_the_inside_but_with_a_deadline() {
    let (mut wrong, mut used) = (Vec::new(), Vec::new());
    for (path, text) in sources() {
        let shown = path.to_str().unwrap();
        for (number, line) in code(without_tests(&text)) {
            for (word, places) in WAITS.iter().filter(|(word, _)| line.contains(word)) {
                match places.iter().any(|(place, _)| *place == shown) {
                    true => used.push((*word, shown.to_owned())),
                    false => wrong.push(format!("src/{shown}:{number}: `{word}` waits; use sys::deadline")),
                }
            }
            if OPENING.iter().any(|layer| shown.starts_with(layer)) && opens(line) {
                match OPENED.iter().any(|(_, files)| files.contains(&shown)) {
                    true => used.push(("open", shown.to_owned())),
                    false => wrong.push(format!(
                        "src/{shown}:{number}: this may wait at a fifo; use sys::beneath, or say what it opens"
                    )),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let waits = WAITS.iter().flat_map(|(word, places)| places.iter().map(|(place, _)| (*word, *place)));
    let opened = OPENED.iter().flat_map(|(_, files)| files.iter().map(|file| ("open", *file)));
    let idle: Vec<_> =
        waits.chain(opened).filter(|(word, place)| !used.contains(&(*word, (*place).to_owned()))).collect();
    assert!(idle.is_empty(), "exceptions that nothing needs: {idle:?}");
}

/// Whether a line opens something by its path.
fn opens(line: &str) -> bool {
    OPENERS.iter().any(|word| {
        line.match_indices(word).any(|(at, _)| {
            // `sys::file::read(` and `refs::read(` are others.
            let before = line[..at].chars().next_back();
            before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
        })
    })
}

/// A source file up to its tests.
fn without_tests(text: &str) -> &str {
    let tests = text.find("\nmod tests {").unwrap_or(text.len());
    text[..tests]
        .trim_end_matches("#[allow(clippy::unwrap_used)]")
        .trim_end()
        .trim_end_matches("#[cfg(test)]")
}

#[test]
fn what_opens_a_path_is_recognised_and_tests_are_not_looked_at() {
    assert!(opens("let x = File::open(path)?;") && opens("    std::fs::read(path)"));
    assert!(!opens("beneath::read(root, path)") && !opens("refs::read(&dir)"));
    assert_eq!(without_tests("fn f() {}\n#[cfg(test)]\nmod tests {\n    File::open(x);\n}\n"), "fn f() {}\n");
}

/// The check has to see what it forbids, or it would pass on anything.
#[test]
fn imports_are_recognised_in_every_form() {
    assert_eq!(imported("use crate::pool::Pool;"), ["pool"]);
    assert_eq!(imported("use crate::{fault, sys};"), ["fault", "sys"]);
    assert_eq!(imported("    crate::runtime::live::read(x)"), ["runtime"]);
    assert_eq!(imported("use crate::{ops::{self, Sparks}, domain::name::Name};"), ["ops", "domain"]);
    assert!(imported("pub(crate) fn f() {}").is_empty());
    let wrapped = statements("use crate::{\n    pool::Pool,\n    sys,\n};\nfn f() {}\n");
    assert_eq!(wrapped.len(), 2);
    assert_eq!(imported(&wrapped[0].1), ["pool", "sys"]);
}

/// The first words after each `crate::` of a line.
fn imported(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in line.split("crate::").skip(1) {
        match part.strip_prefix('{') {
            None => found.push(word(part)),
            Some(list) => {
                let mut depth = 0;
                for item in list.split_inclusive([',', '{', '}']) {
                    if depth == 0 {
                        found.push(word(item.trim_start()));
                    }
                    match item.chars().last() {
                        Some('{') => depth += 1,
                        Some('}') => depth -= 1,
                        _ => {}
                    }
                }
            }
        }
    }
    found.retain(|w| !w.is_empty());
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

/// The lines of a file that are not comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(n, l)| (n + 1, l)).filter(|(_, l)| !l.trim_start().starts_with("//"))
}

/// The same with every `use` in one line, however it was wrapped.
fn statements(text: &str) -> Vec<(usize, String)> {
    let mut out: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (number, line) in code(text) {
        match out.last_mut() {
            Some((_, last)) if open => last.push_str(line.trim_start()),
            _ => out.push((number, line.to_owned())),
        }
        let start =
            out.last().is_some_and(|(_, l)| l.trim_start().trim_start_matches("pub ").starts_with("use "));
        open = start && !line.contains(';');
    }
    out
}

fn layer_of(path: &Path) -> Option<String> {
    let first = path.components().next()?.as_os_str().to_str()?;
    let layer = first.strip_suffix(".rs").unwrap_or(first);
    LAYERS.iter().any(|l| l.0 == layer).then(|| layer.to_owned())
}

fn sources() -> Vec<(PathBuf, String)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut out = Vec::new();
    let mut todo = vec![top.clone()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                out.push((path.strip_prefix(&top).unwrap().to_owned(), text));
            }
        }
    }
    assert!(out.len() > 50, "the sources were not found");
    out
}
