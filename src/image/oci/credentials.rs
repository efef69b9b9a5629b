//! Who one is to a registry: what `docker login` and `podman login` left, and credential helpers.
//!
//! Files are read, and helpers run, as the user who called, and never as the root that this may run as.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::json;
use crate::error::{Code, Error, Result};
use crate::sys;
use crate::sys::caller::Caller;

/// Most bytes of a file with credentials, and of a helper's answer.
const MOST: u64 = 1 << 20;

/// What helpers, and docker's files, call `docker.io`.
const DOCKERS_OWN: &str = "https://index.docker.io/v1/";

/// A user's name and password.
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: Zeroizing<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: HashMap<String, Entry>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Finds what the caller has for a registry. Nothing is no failure: much can be had by anybody.
///
/// # Errors
/// `denied` for a file that is damaged and a helper that fails: silently being nobody would look like a wrong name.
pub(super) fn find(registry: &str, repository: &str) -> Result<Option<Login>> {
    let caller = Caller::find().map_err(Error::sys("find who calls"))?;
    let server = if registry == "docker.io" { DOCKERS_OWN } else { registry };
    for path in places(&caller) {
        let Some(text) = read(&path, &caller)? else { continue };
        let file: File = json::read(text.as_bytes()).map_err(|e| broken(&path, &e))?;
        let helper = file.cred_helpers.get(registry).or_else(|| file.cred_helpers.get(server));
        if let Some(helper) = helper
            && let Some(login) = ask(helper, server, &caller)?
        {
            return Ok(Some(login));
        }
        if let Some(entry) = entry(&file, registry, repository)
            && let Some(login) = decode(entry).map_err(|why| broken(&path, &why))?
        {
            return Ok(Some(login));
        }
        if let Some(store) = file.creds_store.filter(|_| helper.is_none())
            && let Some(login) = ask(&store, server, &caller)?
        {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

fn denied(why: String, hint: &str) -> Error {
    Error::Registry {
        action: "find",
        what: "the credentials of a registry".into(),
        why,
        code: Code::Denied,
        hint: Some(hint.into()),
    }
}

fn broken(path: &Path, why: &str) -> Error {
    denied(format!("{} is damaged: {why}", path.display()), "log in again, which writes it anew")
}

/// The files that may have them, the likeliest first: what the environment names, podman's, docker's.
fn places(caller: &Caller) -> Vec<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut all: Vec<PathBuf> = of("REGISTRY_AUTH_FILE").into_iter().collect();
    all.extend(of("DOCKER_CONFIG").map(|dir| dir.join("config.json")));
    match of("XDG_RUNTIME_DIR").filter(|_| !caller.is_another()) {
        Some(dir) => all.push(dir.join("containers/auth.json")),
        // `sudo` keeps none of its user's, and these are where they always are.
        None if caller.ids.uid != 0 => {
            all.push(format!("/run/user/{}/containers/auth.json", caller.ids.uid).into());
        }
        None => all.push("/run/containers/0/auth.json".into()),
    }
    all.push(caller.home.join(".config/containers/auth.json"));
    all.push(caller.home.join(".docker/config.json"));
    all
}

fn read(path: &Path, caller: &Caller) -> Result<Option<Zeroizing<String>>> {
    let open = || -> io::Result<Zeroizing<String>> {
        let mut text = Zeroizing::new(String::new());
        let file = std::fs::File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        file.take(MOST).read_to_string(&mut text)?;
        Ok(text)
    };
    match caller.act(open) {
        Ok(text) => Ok(Some(text)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

/// The entry that says most: of the repository, of a namespace around it, of the registry.
fn entry<'a>(file: &'a File, registry: &str, repository: &str) -> Option<&'a Entry> {
    let mut key = format!("{registry}/{repository}");
    loop {
        if let Some(entry) = file.auths.get(&key) {
            return Some(entry);
        }
        match key.rfind('/') {
            Some(slash) => key.truncate(slash),
            None => break,
        }
    }
    // Docker wrote whole addresses once, and does for its own registry still.
    let registry = if registry == "docker.io" { "index.docker.io" } else { registry };
    let host = |key: &str| {
        let rest = key.strip_prefix("https://").or(key.strip_prefix("http://"));
        rest.is_some_and(|rest| rest.split('/').next() == Some(registry))
    };
    file.auths.iter().find(|(key, _)| host(key)).map(|(_, entry)| entry)
}

fn decode(entry: &Entry) -> std::result::Result<Option<Login>, String> {
    if entry.identitytoken.as_ref().is_some_and(|t| !t.is_empty()) {
        return Err("it has an identity token, which is not supported: log in with a password".into());
    }
    let Some(auth) = entry.auth.as_ref().filter(|auth| !auth.is_empty()) else { return Ok(None) };
    let bytes = Zeroizing::new(STANDARD.decode(auth.trim()).map_err(|_| "an `auth` is not base64")?);
    let text = std::str::from_utf8(&bytes).map_err(|_| "an `auth` is not text")?;
    let (user, password) = text.split_once(':').ok_or("an `auth` has no password")?;
    let password = Zeroizing::new(password.trim_end_matches('\0').to_owned());
    Ok(Some(Login { user: user.to_owned(), password }))
}

/// Asks `docker-credential-NAME get`, as docker does.
fn ask(helper: &str, registry: &str, caller: &Caller) -> Result<Option<Login>> {
    let program = format!("docker-credential-{helper}");
    let failed = |why: String| denied(format!("{program}: {why}"), "try it by hand: it has to answer `get`");
    // A path would be a program of whoever wrote the file.
    if helper.is_empty() || helper.contains('/') {
        return Err(failed("it is not a helper's name".into()));
    }
    let mut command = Command::new(&program);
    // Root's environment may hold what the caller is not to see; a helper finds its own store by these.
    let kept =
        ["PATH", "LANG", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "GNUPGHOME", "PASSWORD_STORE_DIR"];
    let kept = kept.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.arg("get").env_clear().envs(kept).env("HOME", &caller.home).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if caller.is_another() {
        sys::run::as_plain_user(&mut command, &caller.ids);
    }
    let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
    let written = child.stdin.take().map(|mut to| to.write_all(registry.as_bytes()));
    let mut answer = Zeroizing::new(Vec::new());
    let read = child.stdout.take().map(|from| from.take(MOST).read_to_end(&mut answer));
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&answer);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        let said = if said.trim().is_empty() { String::from_utf8_lossy(&output.stderr) } else { said };
        let said: String = said.trim().chars().take(200).flat_map(char::escape_default).collect();
        return Err(failed(if said.is_empty() { output.status.to_string() } else { said }));
    }
    if let Some(Err(e)) = written {
        tracing::debug!("{program} did not read the registry's name: {e}");
    }
    if let Some(Err(e)) = read {
        return Err(failed(e.to_string()));
    }
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| failed("its answer is damaged".into()))?;
    if answer.username == "<token>" {
        return Err(failed("it has an identity token, which is not supported".into()));
    }
    Ok(Some(Login { user: answer.username, password: Zeroizing::new(answer.secret) }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_entry_wins_and_old_addresses_count() {
        let text = r#"{"auths":{"h.x":{"auth":"YTpi"},"h.x/team":{"auth":"YzpkOmU="},"https://o.x/v1/":{"auth":"YTpi"},
            "https://index.docker.io/v1/":{"auth":"YTpi"},
            "i.x":{"identitytoken":"t"},"e.x":{},"n.x":null,"a.x":{"auth":null}},"credHelpers":null}"#;
        let file: File = json::read(text.as_bytes()).unwrap();
        let login = |registry: &str, repository: &str| {
            decode(entry(&file, registry, repository).unwrap())
                .map(|l| l.map(|l| (l.user, l.password.to_string())))
        };
        assert_eq!(login("h.x", "app").unwrap(), Some(("a".into(), "b".into())));
        assert_eq!(login("h.x", "team/app").unwrap(), Some(("c".into(), "d:e".into())));
        assert_eq!(login("docker.io", "library/app").unwrap(), Some(("a".into(), "b".into())));
        assert_eq!(login("o.x", "app").unwrap(), Some(("a".into(), "b".into())));
        assert!(login("i.x", "app").is_err() && login("e.x", "app").unwrap().is_none());
        assert!(login("a.x", "app").unwrap().is_none(), "null is absent");
        assert!(entry(&file, "n.x", "app").is_none() && entry(&file, "other", "app").is_none());
        let none: File = json::read(br#"{"auths":null}"#).unwrap();
        assert!(none.auths.is_empty());
    }
}
