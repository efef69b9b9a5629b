//! Chains of others in which forwarded packets would be dropped, and our rules behind theirs. A drop is final, whatever our
//! own table accepts, and so all that the administrator refuses stays refused.

use serde_json::Value;

use super::{PREFIX, nft};
use crate::error::Result;

/// Family, table and chain.
pub(super) type Chain = [String; 3];

/// The mark on our rules.
const MARK: &str = "spark: project networks";

/// A chain that packets of sparks would not get through.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dropping {
    pub chain: Chain,
    /// The rule at the end that ends the way of everything, by its handle: ours have to come before it.
    before: Option<u64>,
    /// Whether our rules are in it.
    pub has_ours: bool,
}

/// The chains that drop what is forwarded: by their policy, or by a last rule for everything. Where there is Docker's
/// chain for the rules of others, it is that one.
pub(super) fn dropping() -> Result<Vec<Dropping>> {
    let chains = parsed(&["-j", "list", "chains"], "chain")?;
    let text = |chain: &Value, key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    let is_word =
        |w: &String| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let mut found = Vec::new();
    for chain in &chains {
        let place = [text(chain, "family"), text(chain, "table"), text(chain, "name")];
        let of_docker = |c: &Value| {
            text(c, "family") == place[0] && text(c, "table") == place[1] && text(c, "name") == "DOCKER-USER"
        };
        let is_last = text(chain, "hook") == "forward" && text(chain, "type") == "filter";
        let of_ours = place[1].starts_with("spark-") || place[1].starts_with("sparks-");
        if !["ip", "ip6", "inet"].contains(&place[0].as_str())
            || of_ours
            || !(is_last || of_docker(chain))
            || !place.iter().all(is_word)
        {
            continue;
        }
        // Gone since it was listed, perhaps.
        let rules = rules(&place).unwrap_or_default();
        let drops =
            of_docker(chain) || text(chain, "policy") == "drop" || rules.last().is_some_and(is_for_all);
        // Docker's own comes by itself.
        if drops && (of_docker(chain) || !chains.iter().any(of_docker)) {
            let before =
                rules.last().filter(|rule| is_for_all(rule)).and_then(|rule| rule["handle"].as_u64());
            found.push(Dropping { has_ours: ours(&rules).count() > 1, before, chain: place });
        }
    }
    Ok(found)
}

/// The rules of firewalld, if it runs.
pub fn rules_of_firewalld() -> Option<String> {
    nft::call(&["list", "table", "inet", "firewalld"], "").ok()
}

/// Whether a rule ends the way of every packet, as `reject` or `drop` at the end of a chain.
fn is_for_all(rule: &Value) -> bool {
    let ends = |e: &Value| {
        let ends = |name: &Value| ["REJECT", "DROP", "RETURN"].contains(&name.as_str().unwrap_or_default());
        ["drop", "reject", "return"].iter().any(|end| e.get(end).is_some())
            || e.get("xt").is_some_and(|xt| ends(&xt["name"]))
    };
    let passes = |e: &Value| e.get("counter").is_some() || e.get("log").is_some();
    let parts = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
    parts.split_last().is_some_and(|(last, rest)| ends(last) && rest.iter().all(passes))
}

/// What lets packets of sparks through a chain, once nobody else has said anything about them.
pub(super) fn entry(found: &Dropping) -> String {
    let [family, table, chain] = &found.chain;
    let at = match found.before {
        Some(handle) => format!("insert rule {family} {table} {chain} handle {handle}"),
        None => format!("add rule {family} {table} {chain}"),
    };
    format!(
        "{at} iifname \"{PREFIX}*\" accept comment \"{MARK}\"\n{at} oifname \"{PREFIX}*\" accept comment \"{MARK}\"\n"
    )
}

/// The handles of our rules in a chain of somebody else. Empty if the chain is gone.
pub(super) fn ours_in(chain: &Chain) -> Vec<u64> {
    ours(&rules(chain).unwrap_or_default()).collect()
}

fn ours(rules: &[Value]) -> impl Iterator<Item = u64> {
    rules.iter().filter(|rule| rule["comment"] == MARK).filter_map(|rule| rule["handle"].as_u64())
}

fn rules([family, table, chain]: &Chain) -> Result<Vec<Value>> {
    parsed(&["-j", "-a", "list", "chain", family, table, chain], "rule")
}

/// The items of a kind in what `nft` lists.
fn parsed(args: &[&str], kind: &str) -> Result<Vec<Value>> {
    let mut listed: Value = serde_json::from_str(&nft::call(args, "")?).unwrap_or_default();
    let items = listed["nftables"].as_array_mut().map(std::mem::take).unwrap_or_default();
    Ok(items.into_iter().filter_map(|mut item| item.get_mut(kind).map(Value::take)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_rule_ends_everything_only_without_a_match() {
        let is = |expr: &str| {
            is_for_all(&serde_json::json!({ "expr": serde_json::from_str::<Value>(expr).unwrap() }))
        };
        assert!(is(r#"[{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]"#));
        assert!(is(r#"[{"counter": {"packets": 0, "bytes": 0}}, {"drop": null}]"#));
        assert!(is(r#"[{"xt": {"type": "target", "name": "REJECT"}}]"#));
        assert!(!is(r#"[{"match": {"op": "==", "left": {}, "right": "lo"}}, {"drop": null}]"#));
        assert!(!is(r#"[{"xt": {"type": "match", "name": "x"}}, {"accept": null}]"#) && !is("[]"));
    }
}
