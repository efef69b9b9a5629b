//! Bundle templates: embedded, and overridable by the host's administrator.

use std::fs::File;
use std::io;
use std::path::Path;

use oci_spec::runtime::Spec;

use crate::domain::name::Name;
use crate::error::{Error, Result};
use crate::sys;

const EMBEDDED: [(&str, &str); 2] = [
    ("default", include_str!("../../bundles/default/config.json")),
    ("hardened", include_str!("../../bundles/hardened/config.json")),
];

/// Loads a template: `DIR/NAME/config.json` if the host has one, else the embedded one.
pub fn load(name: &str, dir: &Path) -> Result<Spec> {
    // A name, so that it stays below `dir`.
    let name: Name = name.parse()?;
    let path = dir.join(&name).join("config.json");
    let text = match File::open(&path) {
        Ok(file) => sys::file::read_bounded(file, 1 << 20).map_err(Error::io("read", &path))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => match EMBEDDED.iter().find(|t| t.0 == name.as_str())
        {
            Some((_, text)) => text.as_bytes().to_vec(),
            None => {
                let near = EMBEDDED.iter().map(|t| t.0.to_owned());
                return Err(Error::NotFound {
                    kind: "bundle template",
                    name: name.to_string(),
                    in_project: None,
                    near: near.collect(),
                });
            }
        },
        Err(e) => return Err(Error::io("open", &path)(e)),
    };
    serde_json::from_slice(&text).map_err(|e| Error::corrupt(&path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_can_override_a_template_and_a_damaged_one_names_its_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load("default", dir.path()).unwrap().process().is_some());
        assert!(load("nope", dir.path()).is_err());
        assert!(load("../default", dir.path()).is_err());
        std::fs::create_dir(dir.path().join("default")).unwrap();
        std::fs::write(dir.path().join("default/config.json"), "{").unwrap();
        let e = load("default", dir.path()).unwrap_err();
        assert!(e.to_string().contains("default/config.json"), "{e}");
    }
}
