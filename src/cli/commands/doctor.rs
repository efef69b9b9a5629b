//! `spark doctor`

use std::fmt::Write;

use clap::Args;
use serde_json::Value;

use crate::cli::report::{FAILED, Status};
use crate::cli::{Ctx, output};
use crate::error::Result;

/// Check whether this host can run sparks
///
/// Says what to type where it cannot. The exit status is 1 if something needed is missing.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Repair what can be repaired
    #[arg(long)]
    fix: bool,
}

pub(crate) fn doctor(ctx: &Ctx, args: DoctorArgs) -> Result<Status> {
    let checks = output::value(&crate::ops::doctor::doctor(&ctx.context, args.fix)?)?;
    let list = checks.as_array().map(Vec::as_slice).unwrap_or_default();
    match ctx.json {
        true => output::print_json(&checks)?,
        false => output::print(text(list))?,
    }
    let failed = list.iter().any(|check| verdict(check) == "FAIL");
    Ok(if failed { FAILED } else { 0 })
}

fn verdict(check: &Value) -> &'static str {
    match (check["ok"].as_bool(), check["severity"].as_str()) {
        (Some(true), _) => "ok",
        (_, Some("recommended")) => "warn",
        _ => "FAIL",
    }
}

fn text(checks: &[Value]) -> String {
    let word = |check: &Value, field| output::escape(check[field].as_str().unwrap_or_default()).into_owned();
    let width = checks.iter().map(|c| word(c, "name").chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for check in checks {
        let _ =
            writeln!(out, "{:4}  {:width$}  {}", verdict(check), word(check, "name"), word(check, "found"));
        let remedy = word(check, "remedy");
        if verdict(check) != "ok" && !remedy.is_empty() {
            let _ = writeln!(out, "      {:width$}  hint: {remedy}", "");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::doctor::Severity;
    use serde_json::json;

    #[test]
    fn only_what_is_required_fails() {
        for (severity, expected) in [(Severity::Required, "FAIL"), (Severity::Recommended, "warn")] {
            assert_eq!(verdict(&json!({"ok": false, "severity": severity})), expected);
            assert_eq!(verdict(&json!({"ok": true, "severity": severity})), "ok");
        }
    }

    #[test]
    fn a_failed_check_says_what_to_type() {
        let checks = [
            json!({"name": "kernel", "ok": true, "severity": "required", "found": "6.18", "remedy": null}),
            json!({"name": "tools", "ok": false, "severity": "required", "found": "no mkfs", "remedy": "apt install x"}),
            json!({"name": "pool", "ok": false, "severity": "recommended", "found": "a loop", "remedy": "y"}),
        ];
        let expected = "ok    kernel  6.18\nFAIL  tools   no mkfs\n              hint: apt install x\n\
                        warn  pool    a loop\n              hint: y\n";
        assert_eq!(text(&checks), expected);
    }
}
