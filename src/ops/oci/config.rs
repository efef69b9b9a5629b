//! `config.json` and its parts, read as runc's decoder reads them.

use std::fs::File;
use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, Process};
use serde_json::{Value, json};

use crate::bundle::seccomp;
use crate::error::{Error, Result};
use crate::runtime::confine::{Confinement, Filter};
use crate::runtime::strict::process_of;
use crate::sys;

/// Larger than any real one.
const MAX: u64 = 16 << 20;

/// Reads `config.json` of a bundle.
pub(super) fn read(bundle: &Path) -> Result<Value> {
    let path = bundle.join("config.json");
    let mut config = read_json(&path)?;
    // Without one it would be no object below.
    if let Some(process) = config.get_mut("process") {
        add_user(process);
    }
    Ok(config)
}

/// Reads a `process` object.
pub fn read_process(path: &Path) -> Result<Process> {
    let mut process = read_json(path)?;
    add_user(&mut process);
    process_of(process).map_err(|e| Error::corrupt(path, e))
}

fn read_json(path: &Path) -> Result<Value> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let content = sys::file::read_bounded(file, MAX).map_err(Error::io("read", path))?;
    let mut value = serde_json::from_slice(&content).map_err(|e| Error::corrupt(path, e))?;
    drop_empty(&mut value);
    Ok(value)
}

/// Members whose own members have names that the specification does not give.
const MAPS: [&str; 3] = ["annotations", "sysctl", "unified"];

/// Removes members that are null or an empty text: to runc, whose decoder is Go's, that is what a member has which is not
/// there.
pub(super) fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null() && member.as_str() != Some(""));
            for (name, member) in members {
                match member {
                    Value::Object(map) if MAPS.contains(&name.as_str()) => {
                        map.values_mut().filter(|value| value.is_null()).for_each(|value| *value = json!(""));
                    }
                    member => drop_empty(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty),
        _ => {}
    }
}

/// The specification lets a process be without a user; the crate that reads it does not.
fn add_user(process: &mut Value) {
    if let Some(process) = process.as_object_mut() {
        process.entry("user").or_insert_with(|| json!({"uid": 0, "gid": 0}));
    }
}

/// How the first process of a bundle is confined.
pub(super) fn confinement(bundle: &Path, config: &Value) -> Result<Confinement> {
    let process = process_of(config["process"].clone())
        .map_err(|e| Error::corrupt(&bundle.join("config.json"), format!("process: {e}")))?;
    Confinement::strict(&process, filter(config)?)
}

/// The system call filter of a container, compiled.
pub(super) fn filter(config: &Value) -> Result<Option<Filter>> {
    let Some(profile) = config.pointer("/linux/seccomp") else { return Ok(None) };
    let profile: LinuxSeccomp = serde_json::from_value(profile.clone()).map_err(|e| Error::NotSupported {
        what: format!("the container's system call filter is not understood: {e}"),
        hint: None,
    })?;
    Ok(Some(Filter::new(seccomp::compile(&profile)?, seccomp::flags(&profile))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_are_empty_are_not_there_and_items_and_values_of_maps_are() {
        let mut value = json!({"a": null, "b": {"c": "", "d": [{"e": null}, null, 0, ""]}, "annotations": {"x": "", "y": null}});
        drop_empty(&mut value);
        assert_eq!(value, json!({"b": {"d": [{}, null, 0, ""]}, "annotations": {"x": "", "y": ""}}));
    }
}
