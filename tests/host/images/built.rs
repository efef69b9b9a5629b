//! Images built here, honest ones and others.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use sparks::domain::image::Digest;
use sparks::image::oci::digest_of;
use tar::{EntryType, Header};

/// A layer's archive.
#[derive(Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(super) fn entry(mut self, name: &str, kind: EntryType, link: &str, content: &[u8]) -> Tar {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, name: &str, content: &[u8]) -> Tar {
        self.entry(name, EntryType::Regular, "", content)
    }

    pub(super) fn dir(self, name: &str) -> Tar {
        self.entry(name, EntryType::Directory, "", b"")
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Tar {
        self.entry(name, EntryType::Symlink, target, b"")
    }

    pub(super) fn hard(self, name: &str, target: &str) -> Tar {
        self.entry(name, EntryType::Link, target, b"")
    }

    /// The finished layer, plain.
    pub(crate) fn layer(mut self) -> Layer {
        self.0.resize(self.0.len() + 1024, 0);
        let diff_id = digest_of(&self.0);
        Layer { digest: diff_id.clone(), size: self.0.len(), blob: self.0, diff_id, suffix: "" }
    }
}

/// A layer, with what is said of it.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(super) blob: Vec<u8>,
    pub(super) diff_id: Digest,
    pub(super) digest: Digest,
    pub(super) size: usize,
    pub(super) suffix: &'static str,
}

impl Layer {
    pub(super) fn gzip(self) -> Layer {
        let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        to.write_all(&self.blob).unwrap();
        self.compressed(to.finish().unwrap(), "+gzip")
    }

    pub(super) fn zstd(self) -> Layer {
        let blob = zstd::encode_all(&self.blob[..], 1).unwrap();
        self.compressed(blob, "+zstd")
    }

    fn compressed(self, blob: Vec<u8>, suffix: &'static str) -> Layer {
        Layer { digest: digest_of(&blob), size: blob.len(), blob, diff_id: self.diff_id, suffix }
    }
}

/// Busybox under the names that tests use.
pub(crate) fn busybox() -> Tar {
    let program = std::fs::read("/bin/busybox").expect("these tests need busybox-static");
    let mut tar = Tar::default().dir("bin").dir("etc").dir("tmp").file("bin/busybox", &program);
    // Executable, as its header does not say yet.
    let at = 512 * 3;
    let mut header = Header::new_gnu();
    header.as_mut_bytes().copy_from_slice(&tar.0[at..at + 512]);
    header.set_mode(0o755);
    header.set_cksum();
    tar.0[at..at + 512].copy_from_slice(header.as_bytes());
    for applet in
        ["sh", "cat", "echo", "env", "id", "ls", "mkdir", "mv", "pwd", "rm", "sleep", "touch", "true"]
    {
        tar = tar.symlink(&format!("bin/{applet}"), "busybox");
    }
    tar.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/srv:/bin/sh\n").dir("srv")
}

fn put(dir: &Path, bytes: &[u8]) -> Value {
    let digest = digest_of(bytes);
    std::fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    json!({ "digest": digest, "size": bytes.len() })
}

/// Adds an image to a layout, which is made if it is not there. Returns the layout's directory.
pub(crate) fn layout(dir: &Path, tag: &str, layers: &[Layer], run: Value) -> PathBuf {
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    for layer in layers {
        std::fs::write(dir.join("blobs/sha256").join(layer.digest.hex()), &layer.blob).unwrap();
    }
    let diff_ids: Vec<_> = layers.iter().map(|l| &l.diff_id).collect();
    let config = json!({ "architecture": "amd64", "os": "linux", "config": run,
        "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let mut config = put(dir, &serde_json::to_vec(&config).unwrap());
    config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    let blobs: Vec<_> = layers
        .iter()
        .map(|l| {
            let kind = format!("application/vnd.oci.image.layer.v1.tar{}", l.suffix);
            json!({ "mediaType": kind, "digest": l.digest, "size": l.size })
        })
        .collect();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": blobs });
    add(dir, tag, put(dir, &serde_json::to_vec(&manifest).unwrap()), kind);
    dir.to_owned()
}

/// Adds something to a layout's index.
pub(super) fn add(dir: &Path, tag: &str, mut descriptor: Value, kind: &str) {
    let path = dir.join("index.json");
    let mut index: Value = match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).unwrap(),
        Err(_) => json!({ "schemaVersion": 2, "manifests": [] }),
    };
    descriptor["mediaType"] = json!(kind);
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    index["manifests"].as_array_mut().unwrap().push(descriptor);
    std::fs::write(path, serde_json::to_vec(&index).unwrap()).unwrap();
}

/// Puts the images of a layout, by tags and architectures, under one more tag.
pub(super) fn index(dir: &Path, tag: &str, of: &[(&str, &str)]) {
    let text = std::fs::read(dir.join("index.json")).unwrap();
    let all: Value = serde_json::from_slice(&text).unwrap();
    let find = |tag: &str| {
        let has = |m: &&Value| m["annotations"]["org.opencontainers.image.ref.name"] == tag;
        all["manifests"].as_array().unwrap().iter().find(has).unwrap().clone()
    };
    let manifests: Vec<Value> = of
        .iter()
        .map(|(tag, architecture)| {
            let mut one = find(tag);
            one["platform"] = json!({ "os": "linux", "architecture": architecture });
            one
        })
        .collect();
    let kind = "application/vnd.oci.image.index.v1+json";
    let bytes = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": manifests });
    add(dir, tag, put(dir, &serde_json::to_vec(&bytes).unwrap()), kind);
}

/// Runs another program, which has to succeed.
pub(super) fn run(command: &mut Command) -> Output {
    let name = format!("{command:?}");
    let output = command.output().unwrap_or_else(|e| panic!("these tests need {name}: {e}"));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs a line of shell in a directory.
pub(super) fn sh(dir: &Path, line: &str) -> String {
    let output = run(Command::new("sh").args(["-ec", line]).current_dir(dir));
    String::from_utf8(output.stdout).unwrap()
}
