//! The keys: a line each, with its parser, and what of it may come from a stranger.

use super::{Settings, Value};
use crate::domain::egress::Egress;
use crate::domain::limits::{
    DEFAULT_PIDS, Defaults, MEMORY_DEFAULT, Memory, PIDS_DEFAULT, parse_cpus, parse_disk, parse_duration,
    parse_idle_stop, parse_memory, parse_pids, parse_rate, size,
};
use crate::domain::name::Name;
use crate::domain::options::{BindMount, HARDENED, parse_env, parse_inside, parse_label, parse_user};
use crate::domain::port::{Ports, Published};
use crate::domain::secret::{Secret, parse_secret};
use crate::domain::shared::Shared;

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// A text or a number.
    Quantity,
    /// `true` or `false`.
    Flag,
    /// Texts.
    List,
    /// `NAME = "text"`.
    Texts,
    /// `NAME = ["text", …]`.
    Lists,
}

/// What a repository's file may say of a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stranger {
    May,
    MayNot,
    /// Where this says nothing against it.
    If(fn(&Value) -> Result<(), String>),
    /// Where this says nothing against it, it is shown to the user, who may grant it. It sets nothing.
    Wish(fn(&Value) -> Result<(), String>),
}

type Parsed = Result<(), String>;

/// A default that is sized to the host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sized {
    /// Its looseness. None where this host has no such limit.
    pub(super) of: fn(&Defaults) -> Option<u64>,
    /// How it would be written in a file.
    pub(super) text: fn(u64) -> String,
    /// What it is.
    pub(super) why: &'static str,
}

/// One key.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// What counts where no file says anything, if that can be written in one.
    pub default: Option<&'static str>,
    /// A default that is sized to the host: its looseness, how it is written, and what it is.
    pub(super) sized: Option<Sized>,
    pub(super) stranger: Stranger,
    /// How little a value confines, where a repository's may confine more than the user's own, but not less.
    pub(super) looseness: Option<fn(&Value) -> u64>,
    /// Parses a value and puts it where it belongs. The text is the entry's name, of a table.
    pub(super) apply: fn(&mut Settings, &str, &Value) -> Parsed,
}

const fn key(name: &'static str, kind: Kind, apply: fn(&mut Settings, &str, &Value) -> Parsed) -> Key {
    Key { name, kind, default: None, sized: None, stranger: Stranger::May, looseness: None, apply }
}

impl Key {
    const fn default(self, text: &'static str) -> Key {
        Key { default: Some(text), ..self }
    }
    /// Not for a repository's file.
    const fn own(self) -> Key {
        Key { stranger: Stranger::MayNot, ..self }
    }
    const fn stranger(self, check: fn(&Value) -> Parsed) -> Key {
        Key { stranger: Stranger::If(check), ..self }
    }
    /// Shown, not set, where a repository's file says it.
    const fn wish(self, check: fn(&Value) -> Parsed) -> Key {
        Key { stranger: Stranger::Wish(check), ..self }
    }
    const fn sized(
        self,
        of: fn(&Defaults) -> Option<u64>,
        text: fn(u64) -> String,
        why: &'static str,
    ) -> Key {
        Key { sized: Some(Sized { of, text, why }), ..self }
    }
    const fn looseness(self, of: fn(&Value) -> u64) -> Key {
        Key { looseness: Some(of), ..self }
    }
}

/// All keys. To add one, add a line.
pub static KEYS: &[Key] = &[
    key("base", Kind::Text, |s, _, v| set(&mut s.base, v.parse())),
    key("project", Kind::Text, |s, _, v| set(&mut s.project, v.parse())).own(),
    key("env", Kind::Texts, |s, k, v| push(&mut s.create.env, pair(k, v, parse_env))),
    key("labels", Kind::Texts, |s, k, v| {
        pair(k, v, parse_label).map(|(k, v)| _ = s.create.labels.insert(k, v))
    }),
    key("memory", Kind::Quantity, |s, _, v| set(&mut s.create.limits.memory, v.with(parse_memory)))
        .looseness(|v| limit(v.with(parse_memory).map(memory)))
        .sized(|defaults| defaults.memory, size, MEMORY_DEFAULT),
    key("cpus", Kind::Quantity, |s, _, v| set(&mut s.create.limits.cpus_milli, v.with(parse_cpus)))
        .looseness(|v| limit(v.with(parse_cpus))),
    key("pids", Kind::Quantity, |s, _, v| set(&mut s.create.limits.pids, v.with(parse_pids)))
        .stranger(few_pids)
        .looseness(|v| limit(v.with(parse_pids).map(|pids| pids as u64)))
        .sized(|defaults| u64::try_from(defaults.pids).ok(), |pids| pids.to_string(), PIDS_DEFAULT),
    key("io", Kind::Quantity, |s, _, v| set(&mut s.create.limits.io, v.with(parse_rate)))
        .looseness(|v| limit(v.with(parse_rate))),
    key("disk", Kind::Quantity, |s, _, v| set(&mut s.create.limits.disk, v.with(parse_disk)))
        .looseness(|v| limit(v.with(parse_disk))),
    key("idle-stop", Kind::Quantity, |s, _, v| set(&mut s.create.idle_stop, v.with(parse_idle_stop)))
        .default("never"),
    key("user", Kind::Text, |s, _, v| set(&mut s.create.user, v.with(parse_user))).default("root"),
    key("workdir", Kind::Text, |s, _, v| set(&mut s.create.workdir, v.with(parse_inside))),
    key("network", Kind::Text, |s, _, v| set(&mut s.create.network, v.parse()))
        .stranger(not_the_hosts)
        .looseness(|v| rank(v, &["none", "project"])),
    key("ports", Kind::List, |s, _, v| v.each(|text| push_ports(&mut s.create.ports, text)))
        .wish(on_loopback),
    key("egress", Kind::Text, |s, _, v| set(&mut s.create.egress, v.parse())).looseness(egress_rank),
    key("allow-host", Kind::Flag, |s, _, v| {
        s.create.allow_host = *v == Value::Flag(true);
        Ok(())
    })
    .own()
    .default("false"),
    key("shared", Kind::Text, |s, _, v| set(&mut s.create.shared, v.parse()))
        .stranger(not_writable)
        .looseness(|v| rank(v, &["none", "ro", "default"])),
    key("bundle", Kind::Text, |s, _, v| set(&mut s.create.bundle, v.parse::<Name>().map(String::from)))
        .own()
        .default("default"),
    // After `bundle`: a template of the user's own is not exchanged for ours.
    key("hardened", Kind::Flag, |s, _, v| {
        let ours = s.create.bundle.as_deref().is_none_or(|b| b == "default");
        if *v == Value::Flag(true) && ours {
            s.create.bundle = Some(HARDENED.into());
        }
        Ok(())
    })
    .stranger(only_true)
    .looseness(|v| u64::from(*v == Value::Flag(false))),
    key("path", Kind::Text, |s, _, v| set(&mut s.create.path, v.parse())).own().default("last"),
    key("mounts", Kind::List, |s, _, v| v.each(|text| push(&mut s.create.mounts, mount(text)))).own(),
    key("volumes", Kind::List, |s, _, v| v.each(|text| push(&mut s.create.volumes, parse(text)))).own(),
    key("trash.keep", Kind::Quantity, |s, _, v| set(&mut s.trash_keep, v.with(parse_duration)))
        .own()
        .default("24h"),
    key("secrets", Kind::Texts, |s, k, v| push(&mut s.create.secrets, secret(k, v))).own(),
    key("secret-commands", Kind::Lists, |s, k, v| {
        argv(k, v).map(|argv| _ = s.secret_commands.insert(k.to_owned(), argv))
    })
    .own(),
];

impl Value {
    fn with<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, String> {
        match self {
            Value::Text(text) => parse(text),
            _ => Err("it is not a text".into()),
        }
    }

    fn parse<T: std::str::FromStr<Err: ToString>>(&self) -> Result<T, String> {
        self.with(parse)
    }

    fn each(&self, mut apply: impl FnMut(&str) -> Parsed) -> Parsed {
        match self {
            Value::List(texts) => texts.iter().try_for_each(|text| apply(text)),
            _ => Err("it is not a list".into()),
        }
    }
}

fn parse<T: std::str::FromStr<Err: ToString>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: T::Err| e.to_string())
}

fn set<T>(place: &mut Option<T>, value: Result<T, String>) -> Parsed {
    value.map(|value| *place = Some(value))
}

fn push<T>(place: &mut Vec<T>, value: Result<T, String>) -> Parsed {
    value.map(|value| place.push(value))
}

type Pair = (String, String);

/// An entry of a table, by the parser of `KEY=VALUE`. A name that holds the sign would move it.
fn pair(name: &str, value: &Value, parse: fn(&str) -> Result<Pair, String>) -> Result<Pair, String> {
    let (key, value) = value.with(|text| parse(&format!("{name}={text}")))?;
    if key == name { Ok((key, value)) } else { Err(format!("`{}` is not a name", name.escape_default())) }
}

/// What it is called inside, and where it is. What stands there instead of a reference may be a value: it is not told.
fn secret(name: &str, value: &Value) -> Result<(crate::domain::secret::Key, Secret), String> {
    value.with(|reference| parse_secret(&format!("{name}={reference}")))
}

fn argv(name: &str, value: &Value) -> Result<Vec<String>, String> {
    crate::domain::name::Name::nearest(name)
        .filter(|n| n.as_str() == name)
        .ok_or_else(|| format!("`{}` is not a name", name.escape_default()))?;
    match value {
        Value::List(argv) if argv.first().is_some_and(|program| !program.is_empty()) => Ok(argv.clone()),
        _ => Err(format!("`{name}` names no program: write [\"program\", \"argument\"]")),
    }
}

/// A path of the host means the same wherever a command runs.
fn mount(text: &str) -> Result<BindMount, String> {
    let mount: BindMount = text.parse()?;
    match mount.src.is_absolute() {
        true => Ok(mount),
        false => Err(format!("src `{}` has to be an absolute path", mount.src.display())),
    }
}

fn rank(value: &Value, strictest_first: &[&str]) -> u64 {
    let place = strictest_first.iter().position(|word| *value == Value::Text((*word).to_owned()));
    place.unwrap_or(strictest_first.len()) as u64
}

/// A lower limit confines more.
fn limit(value: Result<u64, String>) -> u64 {
    value.unwrap_or(u64::MAX)
}

fn memory(memory: Memory) -> u64 {
    match memory {
        Memory::Bytes(bytes) => bytes,
        Memory::Unlimited => u64::MAX,
    }
}

fn few_pids(value: &Value) -> Parsed {
    match value.with(parse_pids)? > DEFAULT_PIDS {
        true => Err(format!("more than {DEFAULT_PIDS} processes")),
        false => Ok(()),
    }
}

fn not_the_hosts(value: &Value) -> Parsed {
    match value {
        Value::Text(text) if text == "host" => Err("the host's network".into()),
        _ => Ok(()),
    }
}

/// One project would write what others run.
fn not_writable(value: &Value) -> Parsed {
    match value.parse::<Shared>()? {
        Shared::Rw => Err("shared directories that are writable".into()),
        Shared::Default | Shared::Ro | Shared::None => Ok(()),
    }
}

fn push_ports(place: &mut Vec<Published>, text: &str) -> Parsed {
    parse::<Ports>(text).map(|ports| place.extend(ports.0))
}

/// On every other address, they would be open to the network that the host is in.
fn on_loopback(value: &Value) -> Parsed {
    let mut all = Vec::new();
    value.each(|text| push_ports(&mut all, text))?;
    match all.iter().all(|port| port.ip.is_some_and(|ip| ip.is_loopback())) {
        true => Ok(()),
        false => Err("ports that are not on 127.0.0.1 or [::1]".into()),
    }
}

/// A stranger's list may be as good as none, beside the user's own.
fn egress_rank(value: &Value) -> u64 {
    match value.parse::<Egress>() {
        Ok(Egress::Only(list)) if list.is_empty() => 0,
        Ok(Egress::Only(_)) => 1,
        _ => 2,
    }
}

fn only_true(value: &Value) -> Parsed {
    match value {
        Value::Flag(true) => Ok(()),
        _ => Err("less confinement".into()),
    }
}
