//! Wrong usage: what clap found, in the words of this program.

use std::error::Error as _;
use std::num::ParseIntError;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{output, report};
use crate::domain::name::InvalidName;
use crate::error::Error;

/// Prints help where it was asked for; else tells what is wrong.
pub(crate) fn explain(error: &clap::Error) -> report::Status {
    let json = wants_json(std::env::args_os().skip(1));
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match output::print(error.render().to_string())
        {
            Ok(()) => 0,
            Err(e) => {
                report::error(&e, json);
                report::status(&e)
            }
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand if !json => {
            output::eprint(error.render().to_string().trim_end());
            report::USAGE
        }
        _ => {
            report::error(&translate(error), json);
            report::USAGE
        }
    }
}

/// Whether `--json` is among the options of a command line that could not be parsed.
fn wants_json(args: impl Iterator<Item = std::ffi::OsString>) -> bool {
    args.take_while(|a| a != "--").any(|a| a == "--json")
}

fn translate(error: &clap::Error) -> Error {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        // The likeliest is the last.
        Some(ContextValue::Strings(texts)) => texts.last().cloned(),
        _ => None,
    };
    if let Some(invalid) = error.source().and_then(|s| s.downcast_ref::<InvalidName>()) {
        let value = context(ContextKind::InvalidValue).unwrap_or_default();
        // What has no option is a name because of where it stands, and the name is enough.
        let option = context(ContextKind::InvalidArg).filter(|arg| arg.starts_with('-'));
        return Error::InvalidName(invalid.clone().given(option.as_deref().map(option_of), &value));
    }
    let near = |kind| context(kind).map(|near| format!("did you mean `{near}`?"));
    let (message, hint) = match (error.kind(), context(ContextKind::InvalidSubcommand)) {
        (ErrorKind::InvalidSubcommand, Some(verb)) => {
            (format!("there is no command `{verb}`"), near(ContextKind::SuggestedSubcommand))
        }
        (ErrorKind::UnknownArgument, _) => match context(ContextKind::InvalidArg) {
            Some(arg) if arg.starts_with("-v") && !arg.starts_with("--") => (
                format!("there is no option `{arg}` here"),
                Some("write it before the command, `spark -v …`, or write `--verbose`".into()),
            ),
            Some(_) if usage(error).is_some_and(|usage| usage.contains("spark secrets set ")) => (
                // Not repeated: it may be a value.
                "there is an argument that is none of this command's".into(),
                Some("a value is read from standard input: `spark secrets set KEY < FILE`".into()),
            ),
            Some(arg) if arg.strip_prefix('-').is_some_and(|rest| rest.parse::<f64>().is_ok()) => {
                (format!("`{arg}` is no option, and no option takes a number below 0"), None)
            }
            Some(arg) if arg.starts_with('-') => {
                (format!("there is no option `{arg}`"), near(ContextKind::SuggestedArg))
            }
            Some(arg) => (format!("`{arg}` is one argument too many"), None),
            None => (first_paragraph(error), None),
        },
        (ErrorKind::ValueValidation, _) => match (context(ContextKind::InvalidArg), error.source()) {
            (Some(arg), Some(why)) if why.is::<ParseIntError>() => {
                let value = context(ContextKind::InvalidValue).unwrap_or_default();
                let value = value.escape_default();
                (format!("{}: `{value}` is not a whole number, or is too large", option_of(&arg)), None)
            }
            // The name is enough, since the reason says what is wrong with the value.
            (Some(arg), Some(why)) => {
                // Of ranges, clap says `0 is not in 1..=9`.
                let why = why.to_string().replace(" is not in ", " is not from ").replace("..=", " to ");
                (format!("{}: {why}", option_of(&arg)), None)
            }
            _ => (first_paragraph(error), None),
        },
        (ErrorKind::MissingRequiredArgument, _) => match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::Strings(missing)) => (format!("`{}` is missing", missing.join(" ")), None),
            _ => (first_paragraph(error), None),
        },
        (ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand, _) => {
            ("a command is missing".into(), None)
        }
        _ => (first_paragraph(error), None),
    };
    let hint = hint.or_else(|| usage(error)).or_else(|| match error.kind() {
        // The message says how to write it.
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => None,
        _ => Some("list the commands with `spark help`".into()),
    });
    Error::Usage { message, hint }
}

/// `--size`, of what clap calls `--size <SIZE>`. What has no option stays `<SIZE>`.
fn option_of(arg: &str) -> &str {
    arg.split([' ', '=', '[']).next().filter(|name| name.starts_with('-')).unwrap_or(arg)
}

/// What clap says, on one line and without its prefix.
fn first_paragraph(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let line = paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

fn usage(error: &clap::Error) -> Option<String> {
    let text = error.render().to_string();
    let usage = text.lines().find_map(|line| line.trim().strip_prefix("Usage: "))?;
    Some(format!("it is used as `{}`", usage.trim()))
}

#[cfg(test)]
mod tests {
    use super::super::args::Cli;
    use super::*;
    use crate::error::Code;
    use crate::wrong_values;
    use clap::{CommandFactory, Parser};

    fn wrong(line: &str) -> Error {
        translate(&Cli::try_parse_from(line.split(' ')).unwrap_err())
    }

    /// Options whose values say nothing to a parser: paths, text of people, and what may be a secret.
    const ANY_TEXT: [&str; 11] = [
        "--clone",
        "--device",
        "--docker-archive",
        "--env-file",
        "--install",
        "--label",
        "--oci-layout",
        "--secret",
        "--tar",
        "--unlabel",
        "--user",
    ];

    #[test]
    fn a_wrong_value_is_told_with_its_option() {
        let told = |line: &[String]| {
            let e = translate(&Cli::try_parse_from(line).err()?);
            assert!(e.hint().is_some() || e.to_string().contains(':'), "{line:?}: {e}");
            Some(e.to_string())
        };
        assert_eq!(wrong_values::taken(Cli::command(), told), ANY_TEXT);
    }

    #[test]
    fn an_unknown_verb_suggests_a_near_one() {
        let e = wrong("spark lsit");
        assert_eq!((e.to_string().as_str(), e.code()), ("there is no command `lsit`", Code::Usage));
        assert_eq!(e.hint().unwrap(), "did you mean `list`?");
        assert!(wrong("spark qqqqqq").hint().unwrap().contains("spark"));
    }

    #[test]
    fn an_unknown_option_suggests_a_near_one() {
        let e = wrong("spark create web --memroy 2G");
        assert_eq!(e.to_string(), "there is no option `--memroy`");
        assert_eq!(e.hint().unwrap(), "did you mean `--memory`?");
    }

    #[test]
    fn a_v_that_stands_too_late_is_told_where_to_stand() {
        assert!(wrong("spark list -v").hint().unwrap().contains("before the command"));
    }

    #[test]
    fn an_invalid_name_has_its_own_code_and_advice() {
        let e = wrong("spark create My_Web");
        assert_eq!(e.code(), Code::InvalidName);
        assert!(e.hint().unwrap().contains("try `my-web`"));
        assert_eq!(wrong("spark list -P Shop").code(), Code::InvalidName);
    }

    #[test]
    fn what_is_missing_comes_with_the_usage() {
        let e = wrong("spark stop");
        assert!(e.to_string().contains("<SPARK>"), "{e}");
        assert!(e.hint().unwrap().contains("spark stop"), "{:?}", e.hint());
        let e = wrong("spark create web --memory lots");
        assert!(e.to_string().contains("write it like 512M"), "{e}");
        assert!(!e.to_string().contains('\n') && !e.to_string().starts_with("error"));
    }

    #[test]
    fn json_is_seen_only_among_our_own_options() {
        let args =
            |line: &str| line.split(' ').map(Into::into).collect::<Vec<std::ffi::OsString>>().into_iter();
        assert!(wants_json(args("lst --json")));
        assert!(!wants_json(args("exec web -- x --json")));
    }
}
