//! `spark`: the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    sparks::cli::main()
}
