//! A 1Password Connect server, asked over its REST API: vaults and items by name or id, each item once. As with `op`,
//! upper and lower case make no difference in names.
//!
//! It is asked in a process of its own, which ends with all that its buffers hold.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use serde_json::Value;

use super::{Asked, Host, Secret, failed, transport};
use crate::domain::secret::{MAX_ALL, MAX_VALUE, Reference};
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::job::Limits;
use crate::sys::process::Ended;

/// Larger than any item, and than a list of ten thousand.
const RESPONSE: u64 = 32 << 20;

/// Which server, and the right to ask it.
pub(super) struct Server {
    host: String,
    token: age::secrecy::SecretString,
}

impl Server {
    /// The one of the caller's environment.
    pub(super) fn configured() -> Option<Server> {
        let of = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let host = of("OP_CONNECT_HOST")?;
        Some(Server { host: host.trim_end_matches('/').to_owned(), token: of("OP_CONNECT_TOKEN")?.into() })
    }
}

/// What went wrong: of which reference, in words, and what to do.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Failure {
    which: usize,
    why: String,
    hint: String,
}

pub(super) type Found<T> = std::result::Result<T, (String, &'static str)>;

pub(super) fn resolve(host: &Host, server: &Server, wanted: &[&Reference]) -> Result<Vec<Secret>> {
    let ids = host.caller.is_another().then_some(&host.caller.ids);
    let limits = Limits { ids, timeout: host.settings.timeout, most: MAX_ALL + 8 * wanted.len() };
    let timeout = host.settings.timeout;
    let outcome = sys::job::fork(|to| report(fetch(server, wanted, timeout), &mut File::from(to)), &limits)
        .map_err(Error::sys("ask the Connect server"))?;
    let asked = Asked { program: "the Connect server", reference: wanted[0], most: limits.most };
    let done = host.done(outcome, &asked)?;
    let unknown = || failed(wanted[0], "the Connect server could not be asked", "see `spark -v …`");
    if done.ended != Ended::Exited(0) {
        let failure: Failure = serde_json::from_slice(&done.errors).map_err(|_| unknown())?;
        let reference = wanted.get(failure.which).ok_or_else(unknown)?;
        return Err(failed(reference, failure.why, failure.hint));
    }
    let mut rest = done.output.bytes();
    let mut values = Vec::with_capacity(wanted.len());
    for _ in wanted {
        let (length, after) = rest.split_first_chunk().ok_or_else(unknown)?;
        let length = u32::from_le_bytes(*length) as usize;
        values.push(super::secret(after.get(..length).ok_or_else(unknown)?)?);
        rest = &after[length..];
    }
    Ok(values)
}

/// In the process that asks: the values with their lengths on its output, or what went wrong on standard error.
fn report(fetched: std::result::Result<Vec<Vec<u8>>, Failure>, to: &mut File) -> i32 {
    let written = match fetched {
        Ok(values) => values.iter().try_for_each(|value| {
            to.write_all(&(value.len() as u32).to_le_bytes())?;
            to.write_all(value)
        }),
        Err(failure) => {
            let _ = serde_json::to_writer(std::io::stderr(), &failure);
            return 1;
        }
    };
    if written.is_ok() { 0 } else { 2 }
}

fn fetch(
    server: &Server,
    wanted: &[&Reference],
    timeout: Duration,
) -> std::result::Result<Vec<Vec<u8>>, Failure> {
    let fails = |which| move |(why, hint): (String, &str)| Failure { which, why, hint: hint.into() };
    let mut client = Client::new(server, timeout).map_err(fails(0))?;
    wanted
        .iter()
        .enumerate()
        .map(|(which, reference)| client.value(reference).map_err(fails(which)))
        .collect()
}

struct Client<'a> {
    agent: ureq::Agent,
    server: &'a Server,
    /// Ids by name.
    vaults: BTreeMap<String, String>,
    /// Items by vault id and name.
    items: BTreeMap<(String, String), Value>,
}

impl Client<'_> {
    fn new(server: &Server, timeout: Duration) -> Found<Client<'_>> {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            // The token is for this server and no other.
            .max_redirects(0);
        let config = match transport::is_encrypted(&server.host)? {
            true => config.tls_config(transport::tls()?),
            // A proxy would have all of it in the clear.
            false => config.proxy(None),
        };
        let (vaults, items) = Default::default();
        Ok(Client { agent: config.build().new_agent(), server, vaults, items })
    }

    fn value(&mut self, reference: &Reference) -> Found<Vec<u8>> {
        let (path, query) = reference.rest().split_once('?').unwrap_or((reference.rest(), ""));
        let parts: Vec<&str> = path.split('/').collect();
        let (section, field) = match parts[2..] {
            [field] => (None, field),
            [section, field] => (Some(section), field),
            _ => return Err(("it is no reference".into(), "write op://vault/item/field")),
        };
        let vault = self.vault(parts[0])?;
        let name = match query {
            "" => "value",
            "attribute=otp" | "attribute=totp" => "totp",
            _ => return Err((format!("Connect cannot give `?{query}`"), "use `op` for it")),
        };
        let (value, file) = match part_of(self.item(&vault, parts[1])?, section, field)? {
            Part::Field(found) => (found.get(name).and_then(Value::as_str).unwrap_or_default().into(), None),
            Part::File(path) => (Vec::new(), Some(format!("/v1/vaults/{vault}/items/{path}"))),
        };
        let value = file.map_or(Ok(value), |path| self.content(&path))?;
        match value.len() {
            ..=MAX_VALUE => Ok(value),
            _ => Err((
                format!("it is larger than {} KiB", MAX_VALUE >> 10),
                "keep large files in a data volume, or mount them with `--mount`",
            )),
        }
    }

    /// What is in a file that is attached to an item.
    fn content(&self, path: &str) -> Found<Vec<u8>> {
        self.bytes(path, MAX_VALUE as u64 + 1)?
            .ok_or_else(|| ("the file is gone".into(), "see the files of the item in 1Password"))
    }

    fn vault(&mut self, name: &str) -> Found<String> {
        if let Some(id) = self.vaults.get(name) {
            return Ok(id.clone());
        }
        let named = self.list("/v1/vaults", "name", name)?;
        let id = match (only(&named), named.len()) {
            (Some(id), _) => id,
            (None, 0) if is_id(name) => match self.get(&format!("/v1/vaults/{name}"))? {
                Some(_) => name.to_owned(),
                None => return Err(no_vault()),
            },
            (None, 0) => return Err(no_vault()),
            _ => {
                return Err((
                    "more than one vault matches".into(),
                    "write the vault's id instead of its name",
                ));
            }
        };
        self.vaults.insert(name.to_owned(), id.clone());
        Ok(id)
    }

    fn item(&mut self, vault: &str, name: &str) -> Found<&Value> {
        let key = (vault.to_owned(), name.to_owned());
        if !self.items.contains_key(&key) {
            let named = self.list(&format!("/v1/vaults/{vault}/items"), "title", name)?;
            let id = match (only(&named), named.len()) {
                (Some(id), _) => id,
                (None, 0) if is_id(name) => name.to_owned(),
                (None, 0) => return Err(no_item()),
                _ => {
                    return Err((
                        "more than one item matches".into(),
                        "write the item's id instead of its name",
                    ));
                }
            };
            let item = self.get(&format!("/v1/vaults/{vault}/items/{id}"))?.ok_or_else(no_item)?;
            self.items.insert(key.clone(), item);
        }
        self.items.get(&key).ok_or_else(no_item)
    }

    /// Those whose `attribute` is `name`; if there are none, those that have it in other cases. A server may tell cases
    /// apart, or not.
    fn list(&self, path: &str, attribute: &str, name: &str) -> Found<Vec<Value>> {
        let filter = encoded(&format!("{attribute} eq \"{name}\""));
        let ask = |path: &str| match self.get(path)? {
            Some(Value::Array(list)) => Ok(list),
            _ => Err(not_connect()),
        };
        let found = ask(&format!("{path}?filter={filter}"))?;
        let all = if found.is_empty() && !is_id(name) { ask(path)? } else { found };
        let of = |value: &&Value| value.get(attribute).and_then(Value::as_str).map(str::to_owned);
        Ok(best(&all, |value| rank(of(&value).as_deref(), name)).into_iter().cloned().collect())
    }

    /// `None` for what is not there.
    fn get(&self, path: &str) -> Found<Option<Value>> {
        let Some(body) = self.bytes(path, RESPONSE)? else { return Ok(None) };
        serde_json::from_slice(&body).map(Some).map_err(|_| not_connect())
    }

    /// At most `most` bytes of what a path gives.
    fn bytes(&self, path: &str, most: u64) -> Found<Option<Vec<u8>>> {
        use age::secrecy::ExposeSecret;
        let url = format!("{}{path}", self.server.host);
        let token = format!("Bearer {}", self.server.token.expose_secret());
        let asked =
            self.agent.get(url).header("Authorization", token).header("Accept", "application/json").call();
        let mut response = asked.map_err(transport::unreached)?;
        match response.status().as_u16() {
            200 => {}
            404 => return Ok(None),
            401 | 403 => {
                let hint = "see whether OP_CONNECT_TOKEN is right, and may read this vault";
                return Err(("the Connect server refuses the token".into(), hint));
            }
            429 => return Err(("the Connect server's rate limit is reached".into(), "wait, and try again")),
            status => {
                return Err((format!("the Connect server answered with status {status}"), "look at its log"));
            }
        }
        let mut body = Vec::new();
        let read = response.body_mut().as_reader().take(most).read_to_end(&mut body);
        read.map_err(|e| (format!("the Connect server's answer was cut: {e}"), "try again"))?;
        Ok(Some(body))
    }
}

fn no_vault() -> (String, &'static str) {
    ("there is no such vault that the token may read".into(), "see which vaults the token was made for")
}

fn no_item() -> (String, &'static str) {
    ("there is no such item in the vault".into(), "see the items of the vault in 1Password")
}

fn not_connect() -> (String, &'static str) {
    ("what answered is no Connect server".into(), "see whether OP_CONNECT_HOST is right")
}

/// The id of the only one.
fn only(list: &[Value]) -> Option<String> {
    match list {
        [one] => one.get("id").and_then(Value::as_str).filter(|id| is_id(id)).map(str::to_owned),
        _ => None,
    }
}

/// 26 letters and digits.
fn is_id(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// How well a name fits: as it is, or but for upper and lower case.
fn rank(name: Option<&str>, wanted: &str) -> Option<u8> {
    match name? {
        name if name == wanted => Some(0),
        name if name.to_lowercase() == wanted.to_lowercase() => Some(1),
        _ => None,
    }
}

/// Those that fit best.
fn best<T>(all: &[T], rank: impl Fn(&T) -> Option<u8>) -> Vec<&T> {
    let lowest = all.iter().filter_map(&rank).min();
    all.iter().filter(|one| lowest.is_some() && rank(one) == lowest).collect()
}

/// What of an item a reference names.
enum Part<'a> {
    Field(&'a Value),
    /// Where the content of an attached file is, below the items of a vault.
    File(String),
}

/// The field of an item that has an id or a label, else the file that has an id or a name; in a section that has one, if
/// that is named.
fn part_of<'a>(item: &'a Value, section: Option<&str>, field: &str) -> Found<Part<'a>> {
    let none = |what: &str| (format!("the item has no such {what}"), "see its fields and files in 1Password");
    let list = |name: &str| item.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let fits = |value: &Value, name: &str| {
        ["id", "label", "name"].iter().filter_map(|key| rank(value[*key].as_str(), name)).min()
    };
    let wanted = match section {
        None => None,
        Some(name) => {
            let found = best(list("sections"), |section| fits(section, name));
            let found = found.first().ok_or_else(|| none("section"))?;
            Some(found["id"].as_str().unwrap_or_default())
        }
    };
    let within = |of: &Value| wanted.is_none_or(|id| of["section"]["id"].as_str() == Some(id));
    let one = |kind: &str| {
        let found = best(list(kind), |of| fits(of, field).filter(|_| within(of)));
        // One that is in no section is what is meant where none is named.
        let lone: Vec<&Value> = found.iter().copied().filter(|f| f.get("section").is_none()).collect();
        match (&found[..], &lone[..]) {
            ([], _) => Ok(None),
            ([one], _) | (_, [one]) => Ok(Some(*one)),
            _ => Err((
                "more than one field or file matches".into(),
                "name its section, op://vault/item/section/field, or its id",
            )),
        }
    };
    if let Some(field) = one("fields")? {
        return Ok(Part::Field(field));
    }
    let id = |of: &Value| of["id"].as_str().filter(|id| is_id(id)).map(str::to_owned);
    let file = one("files")?.ok_or_else(|| none("field or file"))?;
    let (item, file) = id(item).zip(id(file)).ok_or_else(not_connect)?;
    Ok(Part::File(format!("{item}/files/{file}/content")))
}

/// Percent-encoded for a query: RFC 3986's unreserved characters stay.
fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_field_is_found_by_label_or_id_and_by_its_section() {
        let item = json!({
            "sections": [{"id": "s1", "label": "db"}],
            "fields": [
                {"id": "password", "label": "password", "value": "top"},
                {"id": "f1", "label": "password", "value": "inner", "section": {"id": "s1"}},
                {"id": "f2", "label": "host", "section": {"id": "s1"}},
            ],
        });
        let value = |section, name| match part_of(&item, section, name) {
            Ok(Part::Field(field)) => field["value"].as_str(),
            _ => None,
        };
        assert_eq!(value(None, "password"), Some("top"));
        assert_eq!(value(Some("db"), "password"), Some("inner"));
        assert_eq!(value(Some("DB"), "Password"), Some("inner"));
        assert_eq!(value(Some("s1"), "f1"), Some("inner"));
        assert!(part_of(&item, Some("x"), "password").is_err() && part_of(&item, None, "nope").is_err());
    }

    #[test]
    fn case_makes_no_difference_unless_it_has_to() {
        let item = json!({
            "id": "i".repeat(26),
            "fields": [
                {"id": "1", "label": "Key", "value": "upper"},
                {"id": "2", "label": "key", "value": "lower"},
                {"id": "3", "label": "Straße", "value": "street"},
            ],
            "files": [{"id": "f".repeat(26), "name": "Cert.PEM"}, {"id": "../x", "name": "bad"}],
        });
        let value = |name| match part_of(&item, None, name) {
            Ok(Part::Field(field)) => field["value"].as_str().unwrap().to_owned(),
            Ok(Part::File(path)) => path,
            Err((why, _)) => why,
        };
        assert_eq!(
            (value("Key"), value("key"), value("STRAßE")),
            ("upper".into(), "lower".into(), "street".into())
        );
        assert_eq!(value("KEY"), "more than one field or file matches");
        assert_eq!(value("cert.pem"), format!("{}/files/{}/content", "i".repeat(26), "f".repeat(26)));
        assert_eq!(value("bad"), "what answered is no Connect server");
    }

    #[test]
    fn a_filter_is_encoded() {
        assert_eq!(encoded("name eq \"a b\""), "name%20eq%20%22a%20b%22");
    }
}
