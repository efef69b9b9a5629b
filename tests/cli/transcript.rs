//! Transcripts: command lines with what they wrote to both streams and how they ended, without what differs
//! from run to run.

use std::path::PathBuf;
use std::process::Command;

use crate::common::{Machine, Output};

/// Commands on one machine, written down.
pub(crate) struct Transcript {
    pub(crate) machine: Machine,
    dir: PathBuf,
    text: String,
}

impl Transcript {
    /// On a machine with the base `minimal`.
    pub(crate) fn new() -> Transcript {
        let transcript = Transcript::on(Machine::new());
        transcript.machine.spark(&["base", "bootstrap", "minimal"]).ok();
        transcript
    }

    pub(crate) fn on(machine: Machine) -> Transcript {
        let dir = machine.work();
        Transcript { machine, dir, text: String::new() }
    }

    /// Goes to another directory below the machine's.
    pub(crate) fn cd(&mut self, dir: &str) {
        self.dir = self.machine.work().join(dir);
        std::fs::create_dir_all(&self.dir).unwrap();
    }

    /// Runs a command line, its words set apart by spaces or within single quotes, and writes it down.
    pub(crate) fn run(&mut self, line: &str) -> Output {
        self.run_with(line, |_| {})
    }

    /// The same, on a command that is changed first.
    pub(crate) fn run_with(&mut self, line: &str, change: impl FnOnce(&mut Command)) -> Output {
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.machine.command(&words);
        command.current_dir(&self.dir).env_remove("COLUMNS").env("TZ", "UTC").env("TERM", "dumb");
        change(&mut command);
        let output = Output::of(line, &mut command);
        self.text += &format!("$ spark {line}\n");
        for (mark, text) in [("", output.stdout()), ("! ", output.stderr())] {
            for part in text.split_inclusive('\n') {
                self.text += mark;
                self.text += part;
                // A line without an end is seen as such.
                if !part.ends_with('\n') {
                    self.text += "%\n";
                }
            }
        }
        self.text += &format!("= {}\n\n", output.status());
        output
    }

    /// The machine, and what was written down.
    pub(crate) fn end(self) -> (Machine, String) {
        (self.machine, self.text)
    }

    /// Compares all of it with what was accepted under this name.
    #[track_caller]
    pub(crate) fn matches(self, name: &str) {
        matches(&self.machine, &self.text, name);
    }
}

/// Compares a text with what was accepted under this name.
#[track_caller]
pub(crate) fn matches(machine: &Machine, text: &str, name: &str) {
    let place = machine.place();
    let literal = |path: &std::path::Path| regex_escape(&path.display().to_string());
    let (root, run, work) = (literal(&place.root), literal(&place.run), literal(&machine.work()));
    let home = literal(&machine.home());
    let id = "[0-9A-HJKMNP-TV-Z]{26}";
    let half = sparks::sys::host::memory() / 2 / 4096 * 4096;
    // Of the same width as what they stand for, so that tables stay aligned.
    let filters = [
        (root.as_str(), "[ROOT]"),
        (run.as_str(), "[RUN]"),
        (work.as_str(), "[WORK]"),
        (home.as_str(), "[HOME]"),
        (id, "[------------ID----------]"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[TIME]"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d", "[-----TIME-----]"),
        (r"\b20\d{6}-\d{6}\b", "[--TIME-NAME--]"),
        (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "[UUID]"),
        (r"/proc/\d+/root", "/proc/[PID]/root"),
        (
            r#"(?m)^(\s*"?(pid|first_id|allocated|free|id|cpu_usec|memory_bytes|memory_peak_bytes|read_bytes|written_bytes)"?: )[\d.]+( [KMG]?i?B)?(,?)$"#,
            "${1}[N]${4}",
        ),
        (r#"(?m)^(\s*"?(ipv4|ipv6|bridge)"?: "?)[0-9a-z.:-]+"#, "${1}[ADDRESS]"),
        // Half of the host's memory.
        (r"(?m)^(memory +)\d+\.\d [MGT]iB +(default: )", "${1}[HALF] ${2}"),
        (&*half.to_string(), "[HALF]"),
        (&*sparks::domain::limits::size(half), "[HALF]"),
        (r"\bspark-[0-9a-z]{6}([^.0-9a-z])", "spark-xxxxxx${1}"),
        (r"\bspark \d+\.\d+\.\d+", "spark [VERSION]"),
        (r#""version": "\d+\.\d+\.\d+""#, r#""version": "[VERSION]""#),
    ];
    insta::with_settings!({
        filters => filters,
        snapshot_path => "snapshots",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, { insta::assert_snapshot!(name, text) });
}

fn regex_escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| (!c.is_alphanumeric() && c != '/').then_some('\\').into_iter().chain([c]))
        .collect()
}

fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (i, part) in line.split('\'').enumerate() {
        match i % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}
