//! Builds the small programs that the crate embeds: the PID 1 of every spark, the keeper of logs, and what the kernel runs
//! at network devices.
//!
//! The first two are compiled by calling rustc directly, not as crates of their own, because they link with
//! nothing at all: no libc, no start files. Cargo's flags for the main program must not reach them.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "standard output is how a build script talks to cargo"
)]

use std::env;
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::process::{Command, ExitCode};

/// The name of each program, and its source.
const PROGRAMS: [(&str, &str); 2] =
    [("pid1", "src/runtime/init/pid1.rs"), ("keeper", "src/runtime/init/keeper.rs")];
/// What they share.
const SHARED: [&str; 2] = ["src/runtime/init/kernel.rs", "src/runtime/log/bounded.rs"];

/// The programs at network devices, and what they include.
const BARRIER: [&str; 2] = ["src/net/barrier/barrier.c", "src/net/barrier/helpers.h"];

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
    for source in PROGRAMS.map(|(_, source)| source).iter().chain(&SHARED) {
        println!("cargo:rerun-if-changed={source}");
    }
    for source in BARRIER {
        println!("cargo:rerun-if-changed={source}");
    }
    match PROGRAMS.iter().try_for_each(|(name, source)| build(name, source)).and_then(|()| build_barrier()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn build(name: &str, source: &str) -> Result<(), String> {
    let host = variable("HOST")?.to_string_lossy().into_owned();
    let target = variable("TARGET")?.to_string_lossy().into_owned();
    let image = Path::new(&variable("OUT_DIR")?).join(name);

    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.args(["--edition", "2024", "--crate-type", "bin"]).args(["--crate-name", name]);
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
    rustc.arg("-o").arg(image).arg(source);

    let output = rustc.output().map_err(|error| format!("{rustc:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{source} does not compile ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// Compiles what the kernel runs, to its own instructions: the same for every machine.
fn build_barrier() -> Result<(), String> {
    let mut clang = Command::new("clang");
    clang.args(["-target", "bpf", "-mcpu=v2", "-O2", "-g", "-Wall", "-Werror"]);
    // Debian has the kernel's <asm/types.h> in a directory of the architecture.
    clang.arg(format!("-I/usr/include/{}-linux-gnu", arch(&variable("TARGET")?.to_string_lossy())));
    let object = Path::new(&variable("OUT_DIR")?).join("barrier.o");
    clang.args(["-c", BARRIER[0], "-o"]).arg(&object);
    let output = clang.output().map_err(|error| format!("{clang:?}: {error} (is clang installed?)"))?;
    if !output.status.success() {
        return Err(format!("{} does not compile:\n{}", BARRIER[0], String::from_utf8_lossy(&output.stderr)));
    }
    // Which programs these are, so that no command has to look at all of them.
    let mut hasher = DefaultHasher::new();
    std::fs::read(&object).map_err(|error| format!("{}: {error}", object.display()))?.hash(&mut hasher);
    println!("cargo:rustc-env=BARRIER_VERSION={:016x}", hasher.finish());
    Ok(())
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo has not set {name}"))
}

fn arch(triple: &str) -> &str {
    triple.split('-').next().unwrap_or(triple)
}
