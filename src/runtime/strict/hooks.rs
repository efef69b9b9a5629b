//! Hooks that run beside the container, from a process that is in a mount namespace of its own at that time.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::{Value, json};

use super::staging::path_of;
use crate::error::{Error, Result};
use crate::sys;

/// What this program is called with to become such a hook.
pub const VERB: &str = "hook";

/// Has the hooks that run in the runtime's namespaces go back to them: they are run by this program.
pub(super) fn lead_back(config: &mut Value, namespace: &OwnedFd) {
    for kind in ["prestart", "createRuntime"] {
        let list = config.pointer_mut(&format!("/hooks/{kind}")).and_then(Value::as_array_mut);
        for hook in list.into_iter().flatten() {
            let Some(path) = hook.get("path").cloned() else { continue };
            let own = hook.get("args").and_then(Value::as_array).filter(|args| !args.is_empty()).cloned();
            let mut args: Vec<Value> = sys::program::words().into_iter().map(Value::from).collect();
            args.extend([json!(VERB), json!(path_of(namespace)), path.clone()]);
            args.extend(own.unwrap_or_else(|| vec![path]));
            hook["path"] = json!(sys::program::SELF);
            hook["args"] = args.into();
        }
    }
}

/// Becomes a hook, in another mount namespace.
///
/// # Errors
/// Always: it returns only if it could not.
pub fn become_hook(namespace: &Path, program: &Path, args: &[OsString]) -> Result<()> {
    let run = || -> io::Result<()> {
        let string = |s: &OsString| CString::new(s.as_bytes());
        let argv = args.iter().map(string).collect::<Result<Vec<_>, _>>()?;
        let env = std::env::vars_os().map(|(mut key, value)| {
            key.push("=");
            key.push(value);
            string(&key)
        });
        let env = env.collect::<Result<Vec<_>, _>>()?;
        let envp: Vec<_> = env.iter().map(CString::as_c_str).collect();
        // Joining leaves it for the namespace's root.
        let directory = std::env::current_dir();
        sys::mount::join(std::fs::File::open(namespace)?)?;
        let _ = directory.and_then(std::env::set_current_dir);
        Err(sys::exec::execve(&CString::new(program.as_os_str().as_bytes())?, &argv, &envp))
    };
    run().map_err(Error::io("run the hook", program))
}
