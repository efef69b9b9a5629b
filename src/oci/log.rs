//! What goes wrong: to standard error, and where `--log` says.

use std::error::Error as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use chrono::{SecondsFormat, Utc};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::writer::OptionalWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::args::{Format, Global};
use crate::error::Error;

/// Where messages go.
#[derive(Debug)]
pub(super) struct Log {
    path: Option<PathBuf>,
    format: Format,
}

impl Log {
    pub(super) fn of(global: &Global) -> Log {
        Log { path: global.log.clone(), format: global.log_format }
    }

    fn open(&self) -> Option<File> {
        let path = self.path.as_ref()?;
        match OpenOptions::new().append(true).create(true).open(path) {
            Ok(file) => Some(file),
            Err(e) => {
                eprintln(format_args!("error: cannot open the log {}: {e}", path.display()));
                None
            }
        }
    }

    /// Writes the program's own messages there too. Those of libcontainer do not belong there unless all are wanted: who reads
    /// the log takes its last line, or all of it, for the error.
    pub(super) fn listen(&self, debug: bool) {
        let builder = tracing_subscriber::fmt().with_ansi(false).with_target(false);
        // Only a second subscriber would be refused, and this is called once.
        let _ = match (self.open(), debug) {
            (Some(file), true) if self.format == Format::Json => tracing::subscriber::set_global_default(
                builder
                    .with_max_level(Level::DEBUG)
                    .event_format(Lines { format: self.format, all: true })
                    .with_writer(Mutex::new(file))
                    .finish(),
            ),
            (Some(file), true) => tracing::subscriber::set_global_default(
                builder.with_max_level(Level::DEBUG).with_writer(Mutex::new(file)).finish(),
            ),
            (None, true) => tracing::subscriber::set_global_default(
                builder.with_max_level(Level::DEBUG).with_writer(std::io::stderr).finish(),
            ),
            (own, false) => {
                let Some(reasons) = reasons() else { return };
                tracing::subscriber::set_global_default(
                    builder
                        .with_max_level(Level::WARN)
                        .event_format(Lines { format: self.format, all: false })
                        .with_writer(Split { own, reasons })
                        .finish(),
                )
            }
        };
    }

    /// Tells of something that the caller should know, and that keeps nothing from being done.
    pub(super) fn warning(&self, text: &str) {
        self.write("warning", text);
        eprintln(format_args!("warning: {text}"));
    }

    fn write(&self, level: &str, text: &str) {
        if let Some(mut file) = self.open() {
            let _ = writeln!(file, "{}", line(self.format, level, text));
        }
    }

    /// Tells of what kept the command from being done.
    pub(super) fn error(&self, error: &Error) {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        for reason in reasons_given() {
            if !text.contains(cause_of(&reason)) {
                text = format!("{text}: {reason}");
            }
        }
        self.write("error", &text);
        let shown: String = text.chars().flat_map(escaped).collect();
        match error.hint() {
            Some(hint) => eprintln(format_args!("error: {shown}\nhint: {hint}")),
            None => eprintln(format_args!("error: {shown}")),
        }
    }
}

/// What libcontainer's processes say of why they failed, which it tells nowhere else. They are forks of this one and share
/// the file, so that a failure is told once, as one error.
static REASONS: OnceLock<File> = OnceLock::new();

/// Most of it that is read.
const REASONS_MAX: usize = 4096;

fn reasons() -> Option<File> {
    let memory = rustix::fs::memfd_create("reasons", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
    let file = File::from(memory);
    let other = file.try_clone().ok()?;
    REASONS.set(file).ok()?;
    Some(other)
}

/// The two lines that were written first: what failed, and with which error. Those after them say who was told.
fn reasons_given() -> Vec<String> {
    let mut buffer = vec![0; REASONS_MAX];
    let length = REASONS.get().and_then(|file| file.read_at(&mut buffer, 0).ok()).unwrap_or(0);
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    text.lines().take(2).map(|line| line.trim().to_owned()).collect()
}

/// What a reason comes down to. What is before that says who was doing what, and the error has said so in other words.
fn cause_of(reason: &str) -> &str {
    reason.rsplit(": ").next().unwrap_or(reason)
}

/// Whether a message is this program's, and not a library's.
fn is_own(message: &Metadata<'_>) -> bool {
    message.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"))
}

/// This program's messages go to the log, if there is one. The errors of its libraries are reasons.
struct Split {
    own: Option<File>,
    reasons: File,
}

impl<'a> MakeWriter<'a> for Split {
    type Writer = OptionalWriter<&'a File>;

    fn make_writer(&'a self) -> Self::Writer {
        OptionalWriter::some(&self.reasons)
    }

    fn make_writer_for(&'a self, message: &Metadata<'_>) -> Self::Writer {
        match &self.own {
            Some(file) if is_own(message) => OptionalWriter::some(file),
            _ if *message.level() == Level::ERROR => OptionalWriter::some(&self.reasons),
            _ => OptionalWriter::none(),
        }
    }
}

/// Messages in the format of the log. Unless `all` are, a library's message is its text alone.
struct Lines {
    format: Format,
    all: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let mut text = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut text), event)?;
        let level = match *event.metadata().level() {
            Level::WARN => "warning".to_owned(),
            level => level.as_str().to_ascii_lowercase(),
        };
        match self.all || is_own(event.metadata()) {
            true => writeln!(writer, "{}", line(self.format, &level, &text)),
            false => writeln!(writer, "{text}"),
        }
    }
}

/// A line as logrus writes it, which containerd and podman read.
fn line(format: Format, level: &str, text: &str) -> String {
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    match format {
        Format::Json => serde_json::json!({"level": level, "msg": text, "time": time}).to_string(),
        Format::Text => format!("time=\"{time}\" level={level} msg={text:?}"),
    }
}

/// A character as a terminal may see it: some of them come from inside a container.
fn escaped(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

fn eprintln(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
