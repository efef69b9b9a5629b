//! What containers use and may use.

use oci_spec::runtime::LinuxResources;
use serde_json::Value;

use super::Runtime;
use crate::error::{Error, Result};
use crate::runtime::strict::Watch;

impl Runtime {
    /// The processes of a container, as the host numbers them.
    pub fn processes(&self, id: &str) -> Result<Vec<i32>> {
        self.container(id)?.processes()
    }

    /// One line of runc's `events`.
    pub fn stats(&self, id: &str) -> Result<Value> {
        let data = self.container(id)?.stats()?;
        Ok(serde_json::json!({"type": "stats", "id": id, "data": data}))
    }

    /// Hears what happens to a container from now on.
    pub fn watch(&self, id: &str) -> Result<Watch> {
        self.container(id)?.watch()
    }

    /// Changes what a container may use. `resources` is the specification's `linux.resources`.
    ///
    /// # Errors
    /// `usage` if it is no such object.
    pub fn update(&self, id: &str, mut resources: Value) -> Result<()> {
        super::config::drop_empty(&mut resources);
        let resources: LinuxResources = serde_json::from_value(resources)
            .map_err(|e| Error::usage(format!("the resources are not as the specification has them: {e}")))?;
        self.container(id)?.update(&resources)
    }
}
