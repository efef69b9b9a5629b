//! The files in `examples/kubernetes`: manifests by Kubernetes' own types, configurations by containerd.
//!
//! Needs Debian's python3-yaml, and containerd.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::{apps, core, node};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

#[test]
fn every_manifest_is_what_kubernetes_takes() {
    let mut kinds = Vec::new();
    for file in examples("yaml") {
        for document in documents(&file) {
            let kind = document["kind"].as_str().unwrap().to_owned();
            let unknown = unknown_fields(&document);
            assert!(unknown.is_empty(), "{}: {kind} has no {unknown:?}", file.display());
            kinds.push(kind);
        }
    }
    kinds.sort();
    assert_eq!(kinds, ["Pod", "RuntimeClass", "Service", "StatefulSet"]);
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_found() {
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
        "spec": {"runtimeClass": "spark", "containers": [{"name": "a", "comand": ["x"]}]},
    });
    assert_eq!(unknown_fields(&pod), ["/spec/containers/0/comand", "/spec/runtimeClass"]);
}

#[test]
fn pods_name_the_class_and_the_class_names_the_runtime_of_every_configuration() {
    let of = |kind: &str| {
        let all = examples("yaml").iter().flat_map(|f| documents(f)).collect::<Vec<_>>();
        all.into_iter().find(|d| d["kind"] == kind).unwrap()
    };
    let class = of("RuntimeClass");
    assert_eq!(of("Pod")["spec"]["runtimeClassName"], class["metadata"]["name"]);
    assert_eq!(of("StatefulSet")["spec"]["template"]["spec"]["runtimeClassName"], class["metadata"]["name"]);
    for (file, plugin) in [
        ("containerd-1.7.toml", "io.containerd.grpc.v1.cri"),
        ("containerd-2.toml", "io.containerd.cri.v1.runtime"),
    ] {
        let text = std::fs::read_to_string(directory().join(file)).unwrap();
        let config: toml::Table = toml::from_str(&text).unwrap();
        let handler = class["handler"].as_str().unwrap();
        let runtime = &config["plugins"][plugin]["containerd"]["runtimes"][handler];
        assert_eq!(runtime["runtime_type"].as_str(), Some("io.containerd.spark.v1"), "{file}");
    }
}

#[test]
fn containerd_takes_the_configuration_of_its_version() {
    let dumped = Command::new("containerd")
        .arg("--config")
        .arg(directory().join("containerd-1.7.toml"))
        .args(["config", "dump"])
        .output()
        .expect("containerd is not installed");
    let text = String::from_utf8_lossy(&dumped.stdout);
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    assert!(text.contains(r#"runtime_type = "io.containerd.spark.v1""#), "{text}");
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/kubernetes")
}

fn examples(extension: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}

/// The documents of a YAML file, by the parser that Debian has.
fn documents(file: &Path) -> Vec<Value> {
    let program =
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)";
    let output = Command::new("/usr/bin/python3").args(["-c", program]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The paths in a document that its type has no place for. Kubernetes' types pass over them in silence: so what
/// they keep is compared with what they were given.
fn unknown_fields(document: &Value) -> Vec<String> {
    let kept = match document["kind"].as_str().unwrap() {
        "Pod" => kept::<core::v1::Pod>(document),
        "Service" => kept::<core::v1::Service>(document),
        "StatefulSet" => kept::<apps::v1::StatefulSet>(document),
        "RuntimeClass" => kept::<node::v1::RuntimeClass>(document),
        other => panic!("there is no check for {other}"),
    };
    let mut lost = Vec::new();
    compare(document, &kept, String::new(), &mut lost);
    lost.sort();
    lost
}

fn kept<T: DeserializeOwned + Serialize>(document: &Value) -> Value {
    let typed: T = serde_json::from_value(document.clone()).unwrap();
    serde_json::to_value(typed).unwrap()
}

fn compare(given: &Value, kept: &Value, path: String, lost: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given {
                match kept.get(key) {
                    Some(kept) => compare(value, kept, format!("{path}/{key}"), lost),
                    None => lost.push(format!("{path}/{key}")),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => {
            for (n, (given, kept)) in given.iter().zip(kept).enumerate() {
                compare(given, kept, format!("{path}/{n}"), lost);
            }
        }
        _ if given == kept => {}
        _ => lost.push(path),
    }
}
