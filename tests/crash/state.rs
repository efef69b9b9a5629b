//! What a pool holds, as far as somebody was told so.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// Everything that has an identity, and how it is: of each, a power cut leaves the old or the new.
pub(crate) type State = BTreeMap<String, String>;

/// Reads it from the files, so that looking changes nothing.
pub(crate) fn read(pool: &Path) -> State {
    let mut state = State::new();
    for project in entries(&pool.join("projects")) {
        for spark in entries(&project.join("sparks")) {
            read_spark(pool, &spark, &mut state);
        }
        for volume in entries(&project.join("data")) {
            let record = json(&volume.join("volume.json"));
            let of = format!("{} {}", within(pool, &volume), marker(&volume.join("fs")));
            state.insert(format!("volume {}", record["id"]), of);
            read_snapshots(&volume, &mut state);
        }
    }
    for spark in entries(&pool.join("trash")) {
        read_spark(pool, &spark, &mut state);
    }
    for base in entries(&pool.join("bases")) {
        let id = json(&base.join("base.json"))["id"].to_string();
        // By its name too: a base that is replaced is the old or the new, and there all the time.
        state.insert(within(pool, &base), "there".into());
        state.insert(format!("base {id}"), format!("{} {}", within(pool, &base), marker(&base.join("root"))));
    }
    state
}

fn read_spark(pool: &Path, dir: &Path, state: &mut State) {
    let record = json(&dir.join("spark.json"));
    let of = format!("{} {} {record}", within(pool, dir), marker(&dir.join("root")));
    state.insert(format!("spark {}", record["id"]), of);
    read_snapshots(dir, state);
}

fn read_snapshots(dir: &Path, state: &mut State) {
    for snapshot in entries(&dir.join("snapshots")) {
        let record = json(&snapshot.join("snapshot.json"));
        let name = snapshot.file_name().unwrap().to_string_lossy().into_owned();
        state.insert(
            format!("snapshot {}", record["id"]),
            format!("{name} {}", marker(&snapshot.join("root"))),
        );
    }
}

fn entries(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.sort();
    paths
}

fn within(pool: &Path, path: &Path) -> String {
    path.strip_prefix(pool).unwrap().display().to_string()
}

/// What was last copied into a root or a volume.
fn marker(root: &Path) -> String {
    match std::fs::read_to_string(root.join("marker")) {
        Ok(text) => text.trim().to_owned(),
        Err(_) if root.is_dir() => "unmarked".into(),
        Err(e) => format!("lost: {e}"),
    }
}

fn json(path: &Path) -> Value {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|e| Value::String(format!("torn: {e}"))),
        Err(e) => Value::String(e.to_string()),
    }
}

/// What of an acknowledged state is neither as it was then, nor as the command that was under way was to make it.
pub(crate) fn missing(old: &State, new: &State, found: &State) -> Vec<String> {
    let is_kept = |what: &String, how: &String| {
        let found = found.get(what);
        found == Some(how) || found == new.get(what)
    };
    let lost = old.iter().filter(|(what, how)| !is_kept(what, how));
    lost.map(|(what, how)| format!("{what}: was {how}, is {:?}", found.get(what))).collect()
}
