//! The command line as clap parses it: runc's words and options, those that do nothing here among them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::domain::limits::parse_duration;
use crate::ops::oci::{Capability, HOOK, parse_capability};

/// Runs containers of OCI bundles, doing what their config.json says
#[derive(Debug, Parser)]
#[command(name = "spark-oci", version, disable_version_flag = true, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    /// Print the version
    #[arg(short = 'v', long = "version", action = clap::ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

/// Options before the command.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Directory of the containers [default: /run/spark/containers]
    #[arg(long, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// Append what goes wrong to a file
    #[arg(long, value_name = "FILE")]
    pub(super) log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(super) log_format: Format,
    /// Log more
    #[arg(long)]
    pub(super) debug: bool,
    /// Have systemd make the cgroups
    #[arg(long)]
    pub(super) systemd_cgroup: bool,
    /// Taken for runc's sake: root is needed in any case
    #[arg(long, hide = true, value_name = "BOOL")]
    rootless: Option<String>,
    /// Taken for runc's sake
    #[arg(long, hide = true, value_name = "PATH")]
    criu: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Create(CreateArgs),
    /// Start the program of a container that was created
    Start(One),
    /// Print what a container is doing
    State(One),
    Kill(KillArgs),
    Delete(DeleteArgs),
    /// Freeze every process of a container
    Pause(One),
    /// Thaw every process of a container
    Resume(One),
    Exec(Box<ExecArgs>),
    Run(RunArgs),
    List(ListArgs),
    Ps(PsArgs),
    Events(EventsArgs),
    Update(Box<UpdateArgs>),
    /// Print what bundles may ask for
    Features,
    Spec(SpecArgs),
    #[command(name = HOOK, hide = true)]
    Hook(HookArgs),
}

/// A container.
#[derive(Debug, Args)]
pub(super) struct One {
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: String,
}

/// What `create` and `run` have in common.
#[derive(Debug, Args)]
pub(super) struct BundleArgs {
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(super) bundle: PathBuf,
    /// Socket that gets the other side of the terminal
    #[arg(long, value_name = "PATH")]
    pub(super) console_socket: Option<PathBuf>,
    /// File for the pid of the first process
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// Socket that gets a pidfd of the first process
    #[arg(long, value_name = "PATH")]
    pub(super) pidfd_socket: Option<PathBuf>,
    /// Pass this many descriptors on, from 3
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) preserve_fds: u32,
    /// Move the root instead of pivoting to it, as on a ramdisk
    #[arg(long)]
    pub(super) no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub(super) no_new_keyring: bool,
    /// Taken for runc's sake: a mount is as its options say, or fails
    #[arg(long, hide = true)]
    no_mount_fallback: bool,
}

/// Make a container of a bundle; its program waits for `start`
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    pub(super) of: BundleArgs,
    /// Name of the new container
    #[arg(value_name = "ID")]
    pub(super) id: String,
}

/// Create, start and, unless detached, stand by a container until it ends
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) of: BundleArgs,
    /// Do not wait for its end
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Keep it when it has ended
    #[arg(long)]
    pub(super) keep: bool,
    /// Leave reparented processes to the next subreaper
    #[arg(long)]
    pub(super) no_subreaper: bool,
    /// Name of the new container
    #[arg(value_name = "ID")]
    pub(super) id: String,
}

/// Signal a container
#[derive(Debug, Args)]
pub(super) struct KillArgs {
    /// Every process of it
    #[arg(short, long)]
    pub(super) all: bool,
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: String,
    /// The signal, by name or number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM", allow_hyphen_values = false)]
    pub(super) signal: String,
}

/// Remove what is left of a container
#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    /// End it first if it runs; one that is not there is no error
    #[arg(short, long)]
    pub(super) force: bool,
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: String,
}

/// Run another process in a container
#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Socket that gets the other side of the terminal
    #[arg(long, value_name = "PATH")]
    pub(super) console_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub(super) cwd: Option<PathBuf>,
    /// Environment variable
    #[arg(short, long, value_name = "K=V", value_parser = variable)]
    pub(super) env: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// User, and group
    #[arg(short, long, value_name = "UID[:GID]")]
    pub(super) user: Option<Ids>,
    /// Another group
    #[arg(short = 'g', long, value_name = "GID")]
    pub(super) additional_gids: Vec<u32>,
    /// File with the whole `process` object
    #[arg(short, long, value_name = "FILE")]
    pub(super) process: Option<PathBuf>,
    /// Do not wait for its end
    #[arg(short, long)]
    pub(super) detach: bool,
    /// File for its pid
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// Socket that gets a pidfd of it
    #[arg(long, value_name = "PATH")]
    pub(super) pidfd_socket: Option<PathBuf>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    pub(super) process_label: Option<String>,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub(super) apparmor: Option<String>,
    /// Forbid gaining privileges by executing
    #[arg(long)]
    pub(super) no_new_privs: bool,
    /// Add a capability
    #[arg(short, long, value_name = "CAP", value_parser = parse_capability)]
    pub(super) cap: Vec<Capability>,
    /// Pass this many descriptors on, from 3
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) preserve_fds: u32,
    /// Also in a paused container
    #[arg(long)]
    pub(super) ignore_paused: bool,
    /// In a cgroup below the container's, of all controllers or of some; any number of times
    #[arg(long, value_name = "[CONTROLLER,...:]PATH")]
    pub(super) cgroup: Vec<String>,
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: String,
    /// The command
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
}

/// A user, and a group if one is named.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) gid: Option<u32>,
}

impl FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> Result<Ids, String> {
        let number = |id: &str| {
            id.parse().map_err(|_| format!("`{}` is not the number of a user or group", id.escape_default()))
        };
        let (uid, gid) = text.split_once(':').map_or((text, None), |(uid, gid)| (uid, Some(gid)));
        Ok(Ids { uid: number(uid)?, gid: gid.map(number).transpose()? })
    }
}

/// Checks a variable.
fn variable(text: &str) -> Result<String, String> {
    match text.contains('=') {
        true => Ok(text.to_owned()),
        false => Err(format!("`{}` has no value: write K=V", text.escape_default())),
    }
}

/// Parses bytes as runc takes them: a number, with `k`, `m`, `g` or `t` for powers of 1024; -1 is no limit.
fn bytes(text: &str) -> Result<i64, String> {
    let wrong = || {
        format!(
            "`{}` is not a number of bytes: write it like 512M, or -1 for no limit",
            text.escape_default()
        )
    };
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, shift) = match digits.chars().last() {
        Some('k') => (&digits[..digits.len() - 1], 10),
        Some('m') => (&digits[..digits.len() - 1], 20),
        Some('g') => (&digits[..digits.len() - 1], 30),
        Some('t') => (&digits[..digits.len() - 1], 40),
        _ => (digits, 0),
    };
    let number: i64 = digits.parse().map_err(|_| wrong())?;
    if number < -1 {
        return Err(wrong());
    }
    number.checked_mul(if number < 0 { 1 } else { 1 << shift }).ok_or_else(wrong)
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Layout {
    Table,
    Json,
}

/// List containers
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) format: Layout,
    /// Print ids only
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// Show the processes of a container
#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) format: Layout,
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: String,
    /// Options of ps
    #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) options: Vec<String>,
}

/// Print what a container uses, again and again, and each time that it runs out of memory
#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Time in between
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub(super) interval: Duration,
    /// Once
    #[arg(long)]
    pub(super) stats: bool,
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: String,
}

/// Change what a container may use
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct UpdateArgs {
    /// File with the `resources` object, or -; other options do not count then
    #[arg(short, long, value_name = "FILE", allow_hyphen_values = true)]
    pub(super) resources: Option<PathBuf>,
    #[arg(long, value_name = "N")]
    pub(super) blkio_weight: Option<u16>,
    #[arg(long, value_name = "µS")]
    pub(super) cpu_period: Option<u64>,
    #[arg(long, value_name = "µS")]
    pub(super) cpu_quota: Option<i64>,
    #[arg(long, value_name = "µS")]
    pub(super) cpu_burst: Option<u64>,
    #[arg(long, value_name = "µS")]
    pub(super) cpu_rt_period: Option<u64>,
    #[arg(long, value_name = "µS")]
    pub(super) cpu_rt_runtime: Option<i64>,
    #[arg(long, value_name = "N")]
    pub(super) cpu_share: Option<u64>,
    /// 1: run only when nobody else wants to
    #[arg(long, value_name = "0|1")]
    pub(super) cpu_idle: Option<i64>,
    #[arg(long, value_name = "LIST")]
    pub(super) cpuset_cpus: Option<String>,
    #[arg(long, value_name = "LIST")]
    pub(super) cpuset_mems: Option<String>,
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(super) memory: Option<i64>,
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(super) memory_reservation: Option<i64>,
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(super) memory_swap: Option<i64>,
    #[arg(long, value_name = "N")]
    pub(super) pids_limit: Option<i64>,
    /// Taken for runc's sake: the kernel has no such limit any more
    #[arg(long, hide = true, value_name = "BYTES")]
    kernel_memory: Option<String>,
    /// The same
    #[arg(long, hide = true, value_name = "BYTES")]
    kernel_memory_tcp: Option<String>,
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: String,
}

/// Run a hook in the mount namespace that the runtime was called in
#[derive(Debug, Args)]
pub(super) struct HookArgs {
    #[arg(value_name = "NAMESPACE")]
    pub(super) namespace: PathBuf,
    #[arg(value_name = "PROGRAM")]
    pub(super) program: PathBuf,
    #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) args: Vec<OsString>,
}

/// Write a config.json to start from
#[derive(Debug, Args)]
pub(super) struct SpecArgs {
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(super) bundle: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::wrong_values;

    #[test]
    fn bytes_have_units_and_may_be_without_limit() {
        for (text, expected) in
            [("1024", 1024), ("-1", -1), ("1k", 1024), ("2M", 2 << 20), ("1GiB", 1 << 30), ("3mb", 3 << 20)]
        {
            assert_eq!(bytes(text).unwrap(), expected, "{text}");
        }
        for text in ["", "x", "-2", "1.5g", "9999999999t"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    /// Options whose values say nothing to a parser: they are checked where they are used.
    const ANY_TEXT: [&str; 18] = [
        "--apparmor",
        "--bundle",
        "--cgroup",
        "--console-socket",
        "--cpuset-cpus",
        "--cpuset-mems",
        "--criu",
        "--cwd",
        "--kernel-memory",
        "--kernel-memory-tcp",
        "--log",
        "--pid-file",
        "--pidfd-socket",
        "--process",
        "--process-label",
        "--resources",
        "--root",
        "--rootless",
    ];

    #[test]
    fn a_wrong_value_is_told_with_its_option() {
        let told = |line: &[String]| Some(Cli::try_parse_from(line).err()?.to_string());
        assert_eq!(wrong_values::taken(Cli::command(), told), ANY_TEXT);
    }
}
