//! What goes wrong: to standard error, and where `--log` says.

use std::error::Error as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use chrono::{SecondsFormat, Utc};
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
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

    /// Writes the program's own messages there too, if many are wanted.
    pub(super) fn listen(&self, debug: bool) {
        let level = if debug { tracing::Level::DEBUG } else { tracing::Level::WARN };
        let builder = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_target(false);
        // Only a second subscriber would be refused, and this is called once.
        let _ = match (self.open(), debug) {
            (Some(file), _) if self.format == Format::Json => tracing::subscriber::set_global_default(
                builder.event_format(Json).with_writer(Mutex::new(file)).finish(),
            ),
            (Some(file), _) => {
                tracing::subscriber::set_global_default(builder.with_writer(Mutex::new(file)).finish())
            }
            (None, true) => {
                tracing::subscriber::set_global_default(builder.with_writer(std::io::stderr).finish())
            }
            (None, false) => {
                let Some(file) = reasons() else { return };
                let builder = builder.with_max_level(tracing::Level::ERROR).without_time().with_level(false);
                tracing::subscriber::set_global_default(builder.with_writer(Mutex::new(file)).finish())
            }
        };
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
            if !text.contains(&reason) {
                text = format!("{text}: {reason}");
            }
        }
        if let Some(mut file) = self.open() {
            let line = match self.format {
                Format::Json => line("error", &text),
                Format::Text => {
                    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
                    format!("time=\"{time}\" level=error msg={text:?}")
                }
            };
            let _ = writeln!(file, "{line}");
        }
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

/// A message as logrus writes it, which containerd and podman read.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
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
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        writeln!(writer, "{}", line(&level, &text))
    }
}

fn line(level: &str, text: &str) -> String {
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    serde_json::json!({"level": level, "msg": text, "time": time}).to_string()
}

/// A character as a terminal may see it: some of them come from inside a container.
fn escaped(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

fn eprintln(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
