//! `spark`: the command line.

use std::process::ExitCode;

use sparks::sys::wipe::Wiping;

#[global_allocator]
static ALLOCATOR: Wiping = Wiping;

fn main() -> ExitCode {
    sparks::cli::main()
}
