//! An address for a name, in `/etc/hosts` of a spark: `NAME:IP`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::egress::dns_name;

/// A line of `/etc/hosts` that the user asked for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostEntry {
    /// In lower case.
    pub name: String,
    pub address: IpAddr,
}

impl FromStr for HostEntry {
    type Err = String;

    fn from_str(text: &str) -> Result<HostEntry, String> {
        let shown = text.escape_default();
        let wrong = || format!("`{shown}` is not understood: write NAME:ADDRESS, such as db.lan:192.0.2.7");
        let (name, address) = text.split_once(':').ok_or_else(wrong)?;
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        let name = dns_name(name).ok_or_else(wrong)?;
        if bare == "host-gateway" {
            return Err(format!(
                "`{shown}`: give the spark `--allow-host`, and use the name host.spark in it"
            ));
        }
        let address = bare.parse().map_err(|_| wrong())?;
        if name.split('.').next_back() == Some("localhost") || name.starts_with("localhost") {
            return Err(format!("`{shown}`: programs take `{name}` for the machine that they run on"));
        }
        Ok(HostEntry { name, address })
    }
}

impl fmt::Display for HostEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.address)
    }
}

impl From<HostEntry> for String {
    fn from(entry: HostEntry) -> String {
        entry.to_string()
    }
}

impl TryFrom<String> for HostEntry {
    type Error = String;
    fn try_from(text: String) -> Result<HostEntry, String> {
        text.parse()
    }
}

/// Checks a name that has an entry. Returns it in lower case.
pub fn parse_name(text: &str) -> Result<String, String> {
    dns_name(text).ok_or_else(|| format!("`{}` is not the name of a host", text.escape_default()))
}

/// Lays entries over others: a name that is in `new` has no address of `old` any more.
pub fn over(new: Vec<HostEntry>, mut old: Vec<HostEntry>) -> Vec<HostEntry> {
    old.retain(|had| new.iter().all(|entry| entry.name != had.name));
    old.extend(new);
    old
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_name_and_an_address_of_either_kind() {
        let of = |text: &str| text.parse::<HostEntry>().map(|entry| entry.to_string());
        assert_eq!(of("Db.lan:192.0.2.7").unwrap(), "db.lan:192.0.2.7");
        assert_eq!(of("db:2001:db8::7").unwrap(), "db:2001:db8::7");
        assert_eq!(of("db:[2001:db8::7]").unwrap(), "db:2001:db8::7");
        for bad in
            ["db", "db:", ":1.2.3.4", "db:1.2.3", "a b:1.2.3.4", "db:1.2.3.4 x", "-db:1.2.3.4", "db:[1.2.3.4"]
        {
            assert!(of(bad).unwrap_err().contains("write NAME:ADDRESS"), "{bad}");
        }
        for local in [
            "localhost:1.2.3.4",
            "x.localhost:1.2.3.4",
            "localhost4:1.2.3.4",
            "localhost.localdomain:1.2.3.4",
        ] {
            assert!(of(local).unwrap_err().contains("the machine that they run on"), "{local}");
        }
        assert!(of("db:host-gateway").unwrap_err().contains("host.spark"));
    }

    #[test]
    fn a_name_that_is_given_anew_loses_its_old_addresses() {
        let list =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<HostEntry>>();
        let laid = over(list(&["a:1.1.1.1", "a:::1"]), list(&["a:2.2.2.2", "b:3.3.3.3"]));
        assert_eq!(laid, list(&["b:3.3.3.3", "a:1.1.1.1", "a:::1"]));
    }
}
