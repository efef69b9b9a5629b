//! Standard output.

use std::io::Write as _;

use crate::error::{Error, Result};

pub(super) fn text(text: &str) -> Result<u8> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Error::sys("write to standard output"))?;
    Ok(0)
}

/// One JSON document: over several lines, or in one.
pub(super) fn json(value: &impl serde::Serialize, pretty: bool) -> Result<u8> {
    let made = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    text(&(made.map_err(|e| Error::sys("write JSON")(e.into()))? + "\n"))
}
