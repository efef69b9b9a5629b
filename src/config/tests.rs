#![allow(clippy::unwrap_used)]

use super::*;
use crate::domain::limits::Memory;

fn parse(text: &str, level: Level) -> Result<Vec<Entry>> {
    parse::parse(text, level, Path::new("/x/file.toml"))
}

fn config(files: &[(Level, &str)]) -> Config {
    let entries = files.iter().flat_map(|(level, text)| parse(text, *level).unwrap()).collect();
    Config { entries, defaults: None }
}

#[track_caller]
fn fails(text: &str, level: Level, message: &str) -> Error {
    let e = parse(text, level).unwrap_err();
    assert_eq!(e.to_string(), message);
    e
}

const EVERYTHING: &str = r#"
base = "debian"
project = "shop"
memory = "2G"
cpus = 1.5
pids = 100
io = "20M"
disk = "10G"
idle-stop = "10m"
user = "www:www"
workdir = "/srv"
network = "host"
ports = ["127.0.0.1:8080:80"]
egress = "deny"
allow-host = true
shared = "ro"
bundle = "ours"
hardened = true
path = "first"
mounts = ["type=bind,src=/a,dst=/b,ro"]
volumes = ["v:/srv"]
trash.keep = "30d"

[env]
LANG = "C.UTF-8"
[labels]
team = "a"
[secrets]
TOKEN = "op://vault/item/field"
[secret-commands]
pass = ["pass", "show"]
"#;

#[test]
fn every_key_can_be_set_and_reaches_its_place() {
    let config = config(&[(Level::User, EVERYTHING)]);
    let mut set: Vec<_> = config.effective().iter().map(|e| e.key.name).collect();
    set.dedup();
    assert_eq!(set, KEYS.iter().map(|k| k.name).collect::<Vec<_>>());
    let s = config.settings().unwrap();
    assert_eq!(s.create.limits.memory, Some(Memory::Bytes(2 << 30)));
    assert_eq!((s.create.limits.io, s.create.limits.disk), (Some(20 << 20), Some(10 << 30)));
    assert_eq!((s.create.limits.cpus_milli, s.create.idle_stop), (Some(1500), Some(600)));
    assert_eq!(
        s.create.bundle.as_deref(),
        Some("ours"),
        "`hardened` is no reason to leave one's own template"
    );
    assert_eq!(s.create.ports.len(), 1);
    assert!(s.create.egress.is_some() && s.create.allow_host);
    assert_eq!(s.create.env, [("LANG".to_owned(), "C.UTF-8".to_owned())]);
    let (key, secret) = &s.create.secrets[0];
    assert_eq!((key.as_str(), secret.reference.as_str()), ("TOKEN", "op://vault/item/field"));
    assert_eq!(s.secret_commands["pass"], ["pass", "show"]);
    assert_eq!(s.trash_keep, Some(Duration::from_secs(30 * 86400)));
}

#[test]
fn a_mistake_is_told_with_its_line_and_the_first_of_several() {
    let e =
        fails("\n# c\nmemroy = \"1G\"\nzzz = 1\n", Level::User, "/x/file.toml:3: there is no key `memroy`");
    assert_eq!(e.hint().unwrap(), "did you mean `memory`?");
    fails("[trash]\nkep = 1", Level::User, "/x/file.toml:2: there is no key `trash.kep`");
    fails("trash = 1", Level::User, "/x/file.toml:1: there is no key `trash`");
    fails(
        "memory = []",
        Level::User,
        "/x/file.toml:1: `memory` takes a text in quotes or a number, not a list of that",
    );
    fails("env = \"A\"", Level::User, "/x/file.toml:1: `env` takes a table of texts, not a text");
    fails("[env]\n\"A=B\" = \"x\"", Level::User, "/x/file.toml:2: `env.A=B`: `A=B` is not a name");
    fails(
        "[secret-commands]\nx = \"sh -c\"",
        Level::User,
        "/x/file.toml:2: `secret-commands.x` takes a list of texts, not a text",
    );
    fails(
        "[secret-commands]\nx = []",
        Level::User,
        "/x/file.toml:2: `x` names no program: write [\"program\", \"argument\"]"
            .replace("`x` names", "`secret-commands.x`: `x` names")
            .as_str(),
    );
    let e = parse("a = 1\nroot:$6$hash:1:2\n", Level::User).unwrap_err().to_string();
    assert!(e.starts_with("/x/file.toml:2: ") && !e.contains("hash"), "{e}");
}

#[test]
fn a_repository_sets_what_is_safe_and_nothing_else() {
    let refused: Vec<&str> = KEYS
        .iter()
        .map(|key| key.name)
        .filter(|name| {
            let lines = EVERYTHING.lines().filter(|l| l.starts_with(name));
            let table = format!("[{name}]");
            let text: String = EVERYTHING
                .split_once(&table)
                .map(|(_, rest)| format!("{table}\n{}\n", rest.trim_start().lines().next().unwrap()))
                .unwrap_or_else(|| lines.collect());
            matches!(parse(&text, Level::Repository), Err(Error::Denied { .. }))
        })
        .collect();
    let expected = [
        "project",
        "network",
        "allow-host",
        "bundle",
        "path",
        "mounts",
        "volumes",
        "trash.keep",
        "secrets",
        "secret-commands",
    ];
    assert_eq!(refused, expected);
    fails(
        "pids = 5000",
        Level::Repository,
        "/x/file.toml:1: a repository's file may not set `pids` to more than 4096 processes",
    );
    fails(
        "ports = [\"127.0.0.1:80:80\", \"8080:80\"]",
        Level::Repository,
        "/x/file.toml:1: a repository's file may not set `ports` to ports that are not on 127.0.0.1 or [::1]",
    );
    fails(
        "shared = \"rw\"",
        Level::Repository,
        "/x/file.toml:1: a repository's file may not set `shared` to shared directories that are writable",
    );
    fails(
        "hardened = false",
        Level::Repository,
        "/x/file.toml:1: a repository's file may not set `hardened` to less confinement",
    );
}

#[test]
fn ports_of_a_repository_are_wishes_and_hide_no_port_of_the_user() {
    let repository = (Level::Repository, "ports = [\"127.0.0.1:8080:80\", \"127.0.0.1:9090-9091:90-91\"]");
    let settings = config(&[repository]).settings().unwrap();
    assert_eq!(settings.create.ports, []);
    assert_eq!(settings.wished_ports, ["127.0.0.1:8080:80", "127.0.0.1:9090-9091:90-91"]);
    let settings = config(&[repository, (Level::User, "ports = [\"81:81\"]")]).settings().unwrap();
    assert_eq!((settings.create.ports.len(), settings.wished_ports.len()), (1, 2));
}

#[test]
fn the_first_file_wins_by_key_and_by_entry() {
    let config = config(&[
        (Level::System, "memory = \"1G\"\ncpus = 1\n[env]\nA = \"system\"\nB = \"system\""),
        (Level::Repository, "memory = \"3G\"\n[env]\nA = \"repository\""),
        (Level::User, "memory = \"2G\"\ncpus = 2\n[env]\nA = \"user\"\nC = \"user\""),
    ]);
    let s = config.settings().unwrap();
    // A repository lowers a limit, and raises none.
    assert_eq!(
        (s.create.limits.memory, s.create.limits.cpus_milli),
        (Some(Memory::Bytes(2 << 30)), Some(2000))
    );
    let env: Vec<String> = s.create.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(env, ["A=repository", "B=system", "C=user"]);
}

#[test]
fn a_repository_confines_more_than_the_user_wants_and_never_less() {
    let shared = |own: &str, repository: &str| {
        let texts = [own, repository].map(|word| format!("shared = \"{word}\""));
        let config = config(&[(Level::System, &texts[0]), (Level::Repository, &texts[1])]);
        serde_json::to_value(config.settings().unwrap().create.shared).unwrap()
    };
    assert_eq!((shared("rw", "ro"), shared("ro", "default")), ("ro".into(), "ro".into()));
    assert_eq!((shared("rw", "default"), shared("default", "ro")), ("default".into(), "ro".into()));
    assert_eq!((shared("none", "ro"), shared("ro", "none")), ("none".into(), "none".into()));
    let limits = |own: &str, repository: &str| {
        let config = config(&[(Level::User, own), (Level::Repository, repository)]);
        config.settings().unwrap().create.limits
    };
    let (all, more) = (
        "memory = \"1G\"\ncpus = 1\npids = 100\nio = \"1M\"\ndisk = \"1G\"",
        "memory = \"2G\"\ncpus = 2\npids = 200\nio = \"2M\"\ndisk = \"2G\"",
    );
    assert_eq!(limits(all, more), limits(all, ""));
    assert_eq!(limits(more, all), limits(all, ""));
    // Where neither the user nor the host says anything, the default is the bound.
    let over_default = |repository: &str| {
        let defaults = || Defaults { memory: Some(1 << 30), pids: 50 };
        let config = Config { defaults: Some(defaults), ..config(&[(Level::Repository, repository)]) };
        config.settings().unwrap().create.limits
    };
    assert_eq!(over_default(all).memory, None, "as much as the default");
    assert_eq!(
        (over_default(more), over_default("memory = \"none\"").memory),
        (over_default("cpus = 2\nio = \"2M\"\ndisk = \"2G\""), None)
    );
    assert_eq!(over_default("memory = \"1T\"").memory, None);
    let less = over_default("memory = \"512M\"\npids = 40");
    assert_eq!((less.memory, less.pids), (Some(Memory::Bytes(512 << 20)), Some(40)));
    let own = config(&[(Level::User, "bundle = \"ours\""), (Level::Repository, "hardened = true")]);
    assert_eq!(own.settings().unwrap().create.bundle.as_deref(), Some("ours"));
}
