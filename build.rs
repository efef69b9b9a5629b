//! Builds the PID 1 of every spark, which the crate then embeds.
//!
//! It is compiled by calling rustc directly, not as a crate of its own, because it links with
//! nothing at all: no libc, no start files. Cargo's flags for the main program must not reach it.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "standard output is how a build script talks to cargo"
)]

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

const SOURCE: &str = "src/runtime/init/pid1.rs";

/// Makes a static program of one or two pages: no unwinding, no relocations, no alignment of
/// segments to pages of their own, no notes.
const FLAGS: &[&str] = &[
    "panic=abort",
    "opt-level=s",
    "codegen-units=1",
    "lto=fat",
    "debuginfo=0",
    "force-unwind-tables=no",
    "relocation-model=static",
    "strip=symbols",
    "link-arg=-nostartfiles",
    "link-arg=-nostdlib",
    "link-arg=-static",
    "link-arg=-Wl,--build-id=none",
    "link-arg=-Wl,--no-eh-frame-hdr",
    "link-arg=-Wl,-z,norelro",
    "link-arg=-Wl,-z,noseparate-code",
];

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed={SOURCE}");
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let host = variable("HOST")?.to_string_lossy().into_owned();
    let target = variable("TARGET")?.to_string_lossy().into_owned();
    let image = Path::new(&variable("OUT_DIR")?).join("pid1");

    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.args(["--edition", "2024", "--crate-type", "bin"]).args(["--crate-name", "pid1"]);
    for flag in FLAGS {
        rustc.args(["-C", flag]);
    }
    // Of the target only the architecture matters to a program without a libc, so that the host's
    // own target serves for another libc on the same machine.
    if arch(&host) != arch(&target) {
        rustc.args(["--target", &target]);
        if let Some(linker) = env::var_os("RUSTC_LINKER") {
            let mut flag = OsString::from("linker=");
            flag.push(linker);
            rustc.arg("-C").arg(flag);
        }
    }
    rustc.arg("-o").arg(image).arg(SOURCE);

    let output = rustc.output().map_err(|error| format!("{rustc:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{SOURCE} does not compile ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo has not set {name}"))
}

fn arch(triple: &str) -> &str {
    triple.split('-').next().unwrap_or(triple)
}
