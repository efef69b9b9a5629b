//! Errors as the user reads them, and as exit status.

use std::error::Error as _;
use std::io;

use super::output;
use crate::error::{Code, Error};

/// An exit status.
pub(crate) type Status = u8;

/// It failed.
pub(crate) const FAILED: Status = 1;
/// Wrong usage.
pub(crate) const USAGE: Status = 2;
/// The reader of standard output has gone: what a shell says of a program that `SIGPIPE` ended.
const PIPE: Status = 128 + 13;

/// Tells of an error on standard error.
pub(crate) fn error(error: &Error, json: bool) {
    if !is_closed_pipe(error) {
        output::eprint(if json { as_json(error) } else { as_text(error) });
    }
}

/// The exit status for an error.
pub(crate) fn status(error: &Error) -> Status {
    match error.code() {
        _ if is_closed_pipe(error) => PIPE,
        Code::Usage | Code::InvalidName => USAGE,
        _ => FAILED,
    }
}

/// The exit status for an error of `exec` and `console`, where 1 is the command's own.
pub(crate) fn exec_status(error: &Error) -> Status {
    match error {
        Error::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
        Error::Exec { .. } => 126,
        other => match status(other) {
            FAILED => 125,
            status => status,
        },
    }
}

/// Whether an error only says that nobody reads our output any more.
fn is_closed_pipe(error: &Error) -> bool {
    matches!(error, Error::Sys { action, source }
        if *action == output::WRITE && source.kind() == io::ErrorKind::BrokenPipe)
}

/// What to do about it, in the installation that the environment names.
fn hint(error: &Error) -> Option<String> {
    error.hint_at(&super::place().unwrap_or_default())
}

/// What an error was caused by, without what the line before says already.
fn causes(error: &Error) -> Vec<String> {
    let mut said = error.to_string();
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !said.contains(&text) {
            causes.push(text.clone());
            said = text;
        }
        next = cause.source();
    }
    causes
}

fn as_text(error: &Error) -> String {
    let mut text = format!("error: {}", lines(&error.to_string()));
    for cause in causes(error) {
        text += &format!("\ncaused by: {}", lines(&cause));
    }
    if let Some(hint) = hint(error) {
        text += &format!("\nhint: {}", lines(&hint));
    }
    text
}

/// A text that may have several lines, such as what a program wrote: all but the first indented.
fn lines(text: &str) -> String {
    output::escape_but(text.trim_end(), &['\n', '\t']).replace('\n', "\n    ")
}

fn as_json(error: &Error) -> String {
    let document = serde_json::json!({ "error": {
        "code": error.code().as_str(),
        "message": error.to_string(),
        "causes": causes(error),
        "hint": hint(error),
    }});
    output::escape_json(&document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn missing() -> Error {
        Error::NotFound { kind: "spark", name: "web".into(), in_project: Some("shop".into()), near: vec![] }
    }

    #[test]
    fn an_error_is_a_sentence_with_its_causes_and_a_hint() {
        assert_eq!(
            as_text(&missing()),
            "error: spark `web` does not exist in project `shop`\nhint: list this project's sparks with `spark list`"
        );
        let path = crate::domain::place::Place::default().pool().join("x");
        let e = Error::io("write", &path)(io::Error::from_raw_os_error(28));
        let text = as_text(&e);
        let path = path.display();
        assert!(text.starts_with(&format!("error: cannot write {path}\ncaused by: No space left")), "{text}");
        assert!(text.contains("\nhint: "), "{text}");
    }

    #[test]
    fn a_cause_that_the_message_holds_is_not_repeated() {
        let source = io::Error::from_raw_os_error(2);
        let e = Error::Exec { command: "nope".into(), spark: "web".into(), source, hint: None };
        assert!(!as_text(&e).contains("caused by"), "{}", as_text(&e));
    }

    #[test]
    fn as_json_an_error_has_a_stable_code() {
        let value: Value = serde_json::from_str(&as_json(&missing())).unwrap();
        assert_eq!(value["error"]["code"], "not_found");
        assert_eq!(value["error"]["message"], "spark `web` does not exist in project `shop`");
        assert_eq!(value["error"]["hint"], "list this project's sparks with `spark list`");
    }

    #[test]
    fn what_a_program_wrote_is_indented_and_escaped() {
        let e = Error::Program { program: "tar".into(), detail: "one\x1b[2J\ntwo\n".into() };
        assert_eq!(as_text(&e), "error: tar failed: one\\u{1b}[2J\n    two");
    }

    #[test]
    fn exec_keeps_1_for_the_command() {
        let exec = |errno| Error::Exec {
            command: "x".into(),
            spark: "web".into(),
            source: io::Error::from_raw_os_error(errno),
            hint: None,
        };
        assert_eq!(exec_status(&exec(2)), 127);
        assert_eq!(exec_status(&exec(13)), 126);
        assert_eq!(exec_status(&missing()), 125);
        assert_eq!(exec_status(&Error::usage("x")), 2);
        assert_eq!(status(&missing()), 1);
    }

    #[test]
    fn a_reader_that_left_is_no_error_to_tell_of() {
        let e = Error::sys(output::WRITE)(io::ErrorKind::BrokenPipe.into());
        assert_eq!(status(&e), 141);
        assert!(is_closed_pipe(&e));
    }
}
