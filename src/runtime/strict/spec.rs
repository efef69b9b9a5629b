//! What libcontainer 0.7.0 is told in place of the bundle's configuration, so that it does what that says.

use serde_json::{Map, Value, json};

use super::priority::rename_flags;
use crate::runtime::confine::HOME;

/// The configuration for libcontainer.
///
/// - `noNewPrivileges` that is false: libcontainer asks whether it is there, and would install the filter too late.
/// - Capability lists that are missing: it leaves what the caller has.
/// - `SCMP_CMP_MASKED_EQ`: it exchanges mask and value.
/// - `cgroupsPath`: without one it makes a name that is no good path.
/// - `HOME`: without one it asks the C library, which would load what the container's `nsswitch.conf` names.
/// - Flags of `scheduler`: it has names of its own for two of them.
/// - `linux`: it insists on one.
pub(super) fn corrected(config: &Value, cgroup: &str) -> Value {
    let mut config = config.clone();
    if let Some(process) = config.get_mut("process").and_then(Value::as_object_mut) {
        correct_process(process);
    }
    if let Some(top) = config.as_object_mut() {
        let linux = top.entry("linux").or_insert_with(|| json!({}));
        linux["cgroupsPath"] = json!(cgroup);
        let rules = linux.pointer_mut("/seccomp/syscalls").and_then(Value::as_array_mut);
        for rule in rules.into_iter().flatten() {
            rule.get_mut("args").and_then(Value::as_array_mut).into_iter().flatten().for_each(exchange);
        }
    }
    config
}

fn correct_process(process: &mut Map<String, Value>) {
    rename_flags(process);
    if process.get("noNewPrivileges") == Some(&Value::Bool(false)) {
        process.remove("noNewPrivileges");
    }
    let lists = process.entry("capabilities").or_insert_with(|| json!({}));
    if lists.is_null() {
        *lists = json!({});
    }
    if let Some(lists) = lists.as_object_mut() {
        for list in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            let list = lists.entry(list).or_insert_with(|| json!([]));
            if list.is_null() {
                *list = json!([]);
            }
        }
    }
    let env = process.entry("env").or_insert_with(|| json!([]));
    if env.is_null() {
        *env = json!([]);
    }
    if let Some(env) = env.as_array_mut()
        && !has_home(env.iter().filter_map(Value::as_str))
    {
        env.push(json!(HOME));
    }
}

/// Whether an environment says where home is. An empty value says nothing.
pub(super) fn has_home<'a>(mut env: impl Iterator<Item = &'a str>) -> bool {
    env.any(|e| e.strip_prefix("HOME=").is_some_and(|home| !home.is_empty()))
}

fn exchange(arg: &mut Value) {
    if arg["op"] == "SCMP_CMP_MASKED_EQ" {
        let mask = arg["value"].take();
        arg["value"] = match arg["valueTwo"].take() {
            Value::Null => json!(0),
            value => value,
        };
        arg["valueTwo"] = mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libcontainer_gets_wrong_is_put_right_and_the_rest_is_left_alone() {
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {"noNewPrivileges": false, "env": ["A=b"], "capabilities": {"bounding": ["CAP_KILL"]}},
            "linux": {"seccomp": {"syscalls": [{"names": ["clone"], "args": [
                {"index": 0, "value": 7, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"},
                {"index": 0, "value": 7, "valueTwo": 1, "op": "SCMP_CMP_EQ"},
                {"index": 0, "value": 7, "op": "SCMP_CMP_MASKED_EQ"}]}]}},
            "unknown": [1],
        });
        let made = corrected(&config, "/x");
        assert!(made["process"].get("noNewPrivileges").is_none());
        assert_eq!(made["process"]["capabilities"]["bounding"], json!(["CAP_KILL"]));
        assert_eq!(made["process"]["capabilities"]["effective"], json!([]));
        assert_eq!(made["process"]["env"], json!(["A=b", "HOME=/"]));
        let args = &made["linux"]["seccomp"]["syscalls"][0]["args"];
        assert_eq!((&args[0]["value"], &args[0]["valueTwo"]), (&json!(1), &json!(7)));
        assert_eq!((&args[1]["value"], &args[1]["valueTwo"]), (&json!(7), &json!(1)));
        assert_eq!((&args[2]["value"], &args[2]["valueTwo"]), (&json!(0), &json!(7)));
        assert_eq!(made["linux"]["cgroupsPath"], "/x");
        assert_eq!(made["unknown"], json!([1]));
    }

    #[test]
    fn what_is_asked_for_stays() {
        let config = json!({"process": {"noNewPrivileges": true, "env": ["HOME=/h"]}});
        let made = corrected(&config, "/x");
        assert_eq!(made["process"]["noNewPrivileges"], true);
        assert_eq!(made["process"]["env"], json!(["HOME=/h"]));
        assert_eq!(made["process"]["capabilities"]["permitted"], json!([]));
    }
}
