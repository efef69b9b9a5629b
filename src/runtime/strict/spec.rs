//! What libcontainer 0.7.0 is told in place of the bundle's configuration, so that it does what that says.

use serde_json::{Map, Value, json};

use super::priority::rename_flags;
use crate::runtime::confine::HOME;

/// The configuration for libcontainer.
///
/// - `noNewPrivileges`, capabilities and the filter are not there: the first process confines itself as one that joins
///   does (`runtime::confine`). libcontainer exchanges mask and value of `SCMP_CMP_MASKED_EQ`, refuses two conditions on one
///   argument, and leaves what the caller has where a list is missing.
/// - `maskedPaths` and `readonlyPaths` are not there: see `paths`.
/// - `cgroupsPath`: without one it makes a name that is no good path.
/// - `HOME`: without one it asks the C library, which would load what the container's `nsswitch.conf` names.
/// - Flags of `scheduler`: it has names of its own for two of them.
/// - `linux`: it insists on one.
/// - `linux.resources.network` that asks for nothing: it insists on a controller for it.
pub(super) fn corrected(config: &Value, cgroup: &str) -> Value {
    let mut config = config.clone();
    if let Some(process) = config.get_mut("process").and_then(Value::as_object_mut) {
        correct_process(process);
    }
    if let Some(top) = config.as_object_mut() {
        let linux = top.entry("linux").or_insert_with(|| json!({}));
        linux["cgroupsPath"] = json!(cgroup);
        if let Some(linux) = linux.as_object_mut() {
            for ours in ["seccomp", "maskedPaths", "readonlyPaths"] {
                linux.remove(ours);
            }
            drop_idle_network(linux);
        }
    }
    config
}

fn correct_process(process: &mut Map<String, Value>) {
    rename_flags(process);
    for ours in ["noNewPrivileges", "capabilities"] {
        process.remove(ours);
    }
    let env = process.entry("env").or_insert_with(|| json!([]));
    if let Some(env) = env.as_array_mut()
        && !has_home(env.iter().filter_map(Value::as_str))
    {
        env.push(json!(HOME));
    }
}

fn drop_idle_network(linux: &mut Map<String, Value>) {
    let Some(resources) = linux.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let asks = |network: &Value| {
        let has_priorities = network["priorities"].as_array().is_some_and(|list| !list.is_empty());
        has_priorities || network.get("classID").is_some()
    };
    if resources.get("network").is_some_and(|network| !asks(network)) {
        resources.remove("network");
    }
}

/// Whether an environment says where home is. An empty value says nothing.
pub(super) fn has_home<'a>(mut env: impl Iterator<Item = &'a str>) -> bool {
    env.any(|e| e.strip_prefix("HOME=").is_some_and(|home| !home.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libcontainer_gets_wrong_is_kept_from_it_and_the_rest_is_left_alone() {
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {"noNewPrivileges": true, "env": ["A=b"], "capabilities": {"bounding": ["CAP_KILL"]}},
            "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}, "maskedPaths": ["/a"], "readonlyPaths": ["/b"]},
            "unknown": [1],
        });
        let made = corrected(&config, "/x");
        assert_eq!(made["process"], json!({"env": ["A=b", "HOME=/"]}));
        assert_eq!(made["linux"], json!({"cgroupsPath": "/x"}));
        assert_eq!(made["unknown"], json!([1]));
        let made = corrected(&json!({"process": {"env": ["HOME=/h"]}}), "/x");
        assert_eq!(made["process"]["env"], json!(["HOME=/h"]));
    }
}
