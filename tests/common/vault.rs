//! What secrets come from in tests: a stand-in for `op`, and a Connect server on the loopback device.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{Machine, Output};

/// A directory with the stand-in for `op`, see `op.py`.
#[derive(Debug)]
pub struct Vault {
    dir: PathBuf,
}

impl Vault {
    /// Made in the machine's directory. `vaults` is vault → item → field → value.
    pub fn new(machine: &Machine, vaults: Value) -> Vault {
        let dir = machine.work().parent().unwrap().join("bin");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("op"), include_str!("op.py")).unwrap();
        std::fs::write(dir.join("op.log"), "").unwrap();
        // Who runs it may be another user: the way to it, and its log, are open to all.
        for (path, mode) in [(dir.join("op"), 0o755), (dir.join("op.log"), 0o666), (dir.clone(), 0o777)] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
        std::fs::set_permissions(dir.parent().unwrap(), PermissionsExt::from_mode(0o711)).unwrap();
        let vault = Vault { dir };
        vault.set(&json!({ "vaults": vaults }));
        vault
    }

    fn file(&self) -> PathBuf {
        self.dir.join("vault.json")
    }

    fn set(&self, state: &Value) {
        std::fs::write(self.file(), state.to_string()).unwrap();
    }

    /// Changes what is in it.
    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut state = serde_json::from_slice(&std::fs::read(self.file()).unwrap()).unwrap();
        change(&mut state);
        self.set(&state);
    }

    pub fn mode(&self, mode: &str) {
        self.change(|state| state["mode"] = mode.into());
    }

    /// What it was called with, and forgets it.
    pub fn calls(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.join("op.log")).unwrap();
        std::fs::write(self.dir.join("op.log"), "").unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What its child wrote its number to, in the mode `hang`.
    pub fn child(&self) -> Option<i32> {
        std::fs::read_to_string(self.dir.join("child.pid")).ok()?.parse().ok()
    }

    /// A command with this `op` before any other.
    pub fn command(&self, machine: &Machine, args: &[&str]) -> Command {
        let mut command = machine.command(args);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.dir.display())).env_remove("OP_CONNECT_HOST");
        command
    }

    pub fn spark(&self, machine: &Machine, args: &[&str]) -> Output {
        Output::of(&args.join(" "), &mut self.command(machine, args))
    }
}

/// A server with the documented part of Connect's REST API that reads secrets. Without TLS: it is on the loopback device.
#[derive(Debug)]
pub struct Connect {
    pub address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

pub const TOKEN: &str = "a-connect-token";

impl Connect {
    /// Serves items: (vault, title, item as Connect gives it). It ends with the test program.
    pub fn serve(items: Vec<(&'static str, &'static str, Value)>) -> Connect {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream, &items, &log);
            }
        });
        Connect { address, asked }
    }

    /// The paths that it was asked for, and forgets them.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

/// 26 letters and digits that stand for a name.
pub fn id_of(name: &str) -> String {
    let mut id: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    id.make_ascii_lowercase();
    format!("{id:x<26}")
}

fn answer(stream: TcpStream, items: &[(&str, &str, Value)], log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().replace("%20", " ").replace("%22", "\"");
    let mut authorized = false;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        authorized |= line.eq_ignore_ascii_case(&format!("authorization: Bearer {TOKEN}"));
    }
    log.lock().unwrap().push(path.clone());
    let (status, body) = if !authorized {
        ("401 Unauthorized", json!({"status": 401, "message": "Invalid token signature"}).to_string())
    } else {
        match (found(&path, items), content(&path, items)) {
            (Some(body), _) => ("200 OK", body.to_string()),
            (None, Some(content)) => ("200 OK", content),
            (None, None) => ("404 Not Found", json!({"status": 404, "message": "not found"}).to_string()),
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    (&stream).write_all(head.as_bytes())?;
    (&stream).write_all(body.as_bytes())
}

/// What is in the file of an item, which the item has as `content` here.
fn content(path: &str, items: &[(&str, &str, Value)]) -> Option<String> {
    let (item, file) = path.strip_suffix("/content")?.split_once("/files/")?;
    let item = found(item, items)?;
    let file = item["files"].as_array()?.iter().find(|f| f["id"] == file)?;
    file["content"].as_str().map(str::to_owned)
}

fn found(path: &str, items: &[(&str, &str, Value)]) -> Option<Value> {
    let named = |text: &str| text.split('"').nth(1).map(str::to_owned);
    let rest = path.strip_prefix("/v1/vaults")?;
    if rest.is_empty() {
        let names: std::collections::BTreeSet<&str> = items.iter().map(|i| i.0).collect();
        return Some(names.into_iter().map(|name| json!({"id": id_of(name), "name": name})).collect());
    }
    if let Some(filter) = rest.strip_prefix("?filter=name eq ") {
        let name = named(filter)?;
        let there = items.iter().any(|i| i.0 == name);
        return Some(if there { json!([{"id": id_of(&name), "name": name}]) } else { json!([]) });
    }
    let (vault, rest) = rest.strip_prefix('/')?.split_once('/').unwrap_or((rest.strip_prefix('/')?, ""));
    let of_vault = || items.iter().filter(|i| id_of(i.0) == vault);
    if rest.is_empty() {
        return of_vault().next().map(|i| json!({"id": vault, "name": i.0}));
    }
    if let Some(filter) = rest.strip_prefix("items?filter=title eq ") {
        let title = named(filter)?;
        let list = of_vault().filter(|i| i.1 == title).enumerate();
        return Some(list.map(|(n, i)| json!({"id": id_of(&format!("{}{}", i.1, if n > 0 { "2" } else { "" })), "title": i.1})).collect());
    }
    if rest == "items" {
        return Some(of_vault().map(|i| json!({"id": id_of(i.1), "title": i.1})).collect());
    }
    let id = rest.strip_prefix("items/")?;
    let mut item = of_vault().find(|i| id_of(i.1) == id)?.2.clone();
    item["id"] = id.into();
    Some(item)
}

/// A password store with one entry, and the keys for it.
#[derive(Debug)]
pub struct PassStore {
    home: tempfile::TempDir,
}

impl PassStore {
    pub fn new(entry: &str, content: &str) -> PassStore {
        // A short path: that of gpg's sockets has a limit.
        let store = PassStore { home: tempfile::Builder::new().prefix("gpg-").tempdir_in("/tmp").unwrap() };
        let batch = ["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""];
        let key = ["--quick-generate-key", "t@example.org", "future-default", "default", "never"];
        store.call("gpg", &[&batch[..], &key].concat());
        store.call("pass", &["init", "t@example.org"]);
        std::fs::write(store.home.path().join("content"), content).unwrap();
        let script = "pass insert -m \"$0\" < \"$GNUPGHOME/content\" >/dev/null";
        store.call("sh", &["-c", script, entry]);
        store
    }

    pub fn environment(&self, command: &mut Command) {
        command.env("GNUPGHOME", self.home.path()).env("PASSWORD_STORE_DIR", self.home.path().join("store"));
    }

    fn call(&self, program: &str, args: &[&str]) {
        let mut command = Command::new(program);
        self.environment(command.args(args));
        let output = command.output().unwrap_or_else(|e| panic!("this test needs {program}: {e}"));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for PassStore {
    fn drop(&mut self) {
        // The agent of this home, and no other.
        let mut command = Command::new("gpgconf");
        self.environment(command.args(["--kill", "all"]));
        let _ = command.status();
    }
}
