//! The command line as clap parses it: what is common to the verbs, and the options of a spark.

use clap::{Args, Parser, Subcommand};

use super::commands as c;
use crate::domain::name::Name;

mod new;
#[cfg(test)]
mod tests;

pub(crate) use new::{NewArgs, ProcessArgs, parse_image};

/// The verbs by what they are for. A test holds this to the verbs that there are.
const HELP: &str = "\
{about}

{usage-heading} {usage}

Sparks:
  create         Make a spark and start it
  list           List sparks (also: ls)
  info           Show everything known of a spark
  port           Show and change which ports of the host lead to a spark
  pull           Fetch the branches of the clone in a spark
  rename         Give a spark another name
  set            Change limits and labels of sparks
  fork           Make new sparks from one, whatever it is doing
  delete         Move sparks to the trash (also: rm)
  undelete       Bring a deleted spark back
Running:
  exec           Run a command in a spark
  console        Open a login shell in a spark
  stop           End every process of a spark
  resume         Start a stopped spark, thaw a paused one
  up-on-connect  Start a spark when somebody connects to a port of it
  pause          Freeze every process of a spark
  logs           Show what detached commands wrote
  top            Show what the sparks are doing, live
  du             Show how much of the disk only one spark holds
  cp             Copy files into, out of and between sparks
States:
  snapshot       Keep states of a spark's files, and go back to them
  undo           Go back to the state before the last restore
  pick           Put a fork in the place of the spark it was forked from
  diff           Show what differs between sparks, snapshots and bases
  tree           Show which spark, snapshot and base came from which
  send           Write a spark as a stream, for another host or another name
  receive        Make a spark of a stream, or bring one up to date
Sources and places:
  base           Root filesystems that sparks start from
  data           Volumes that outlive sparks and can be shared
  secrets        References to secrets, delivered when a spark starts
  project        The namespaces that sparks are in
  pool           The filesystem that everything is on
Upkeep:
  config         Show every effective setting and where it came from
  doctor         Check whether this host can run sparks
  gc             Collect what crashes and expired trash left
  completion     Print a shell completion script
  man            Write the manual pages
  version        Print the version
  help           Print help for a command

Options:
{options}{after-help}";

/// Instant sandboxes with persistent filesystems
#[derive(Debug, Parser)]
#[command(name = "spark", version, help_template = HELP)]
#[command(after_help = "Options of a command: `spark help COMMAND`.\n\
                        First steps: `spark doctor`, then `spark exec - -- uname -a`.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    /// The same as `--verbose`, before the command: behind `create` it is a volume
    #[arg(short, action = clap::ArgAction::Count, display_order = 904)]
    pub(crate) v: u8,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Project to work in [env: SPARK_PROJECT; default: that of the repository]
    #[arg(short = 'P', long, global = true, value_name = "NAME", display_order = 901)]
    pub(crate) project: Option<Name>,
    /// Print one JSON document instead of text; errors too
    #[arg(long, global = true, display_order = 902)]
    pub(crate) json: bool,
    /// Log to standard error; twice for more [env: SPARK_LOG, a filter]
    #[arg(long, global = true, action = clap::ArgAction::Count, display_order = 903)]
    pub(crate) verbose: u8,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Create(Box<c::create::CreateArgs>),
    #[command(visible_alias = "ls")]
    List(c::list::ListArgs),
    Info(c::info::InfoArgs),
    Port(c::port::PortArgs),
    Pull(c::pull::PullArgs),
    Exec(Box<c::exec::ExecArgs>),
    Console(Box<c::console::ConsoleArgs>),
    Stop(c::stop::StopArgs),
    Resume(c::resume::ResumeArgs),
    Pause(c::pause::PauseArgs),
    #[command(visible_alias = "rm")]
    Delete(c::delete::DeleteArgs),
    Undelete(c::undelete::UndeleteArgs),
    Diff(c::diff::DiffArgs),
    Rename(c::rename::RenameArgs),
    Set(c::set::SetArgs),
    Fork(Box<c::fork::ForkArgs>),
    Snapshot(c::snapshot::SnapshotArgs),
    Undo(c::snapshot::UndoArgs),
    Pick(c::pick::PickArgs),
    Top(c::top::TopArgs),
    Du(c::du::DuArgs),
    Tree(c::tree::TreeArgs),
    Send(c::send::SendArgs),
    Receive(c::receive::ReceiveArgs),
    Logs(c::logs::LogsArgs),
    Cp(c::cp::CpArgs),
    Config(c::config::ConfigArgs),
    Gc(c::gc::GcArgs),
    Doctor(c::doctor::DoctorArgs),
    Base(c::base::BaseArgs),
    Data(c::data::DataArgs),
    Secrets(c::secrets::SecretsArgs),
    Project(c::project::ProjectArgs),
    Pool(c::pool::PoolArgs),
    Completion(c::completion::CompletionArgs),
    Man(c::man::ManArgs),
    UpOnConnect(c::up_on_connect::UpOnConnectArgs),
    Version(c::version::VersionArgs),
}

/// Whether a command gets a terminal.
#[derive(Debug, Default, Args)]
pub(crate) struct TerminalArgs {
    /// Give it a terminal [default: if standard input and output are terminals]
    #[arg(short, long, overrides_with = "no_tty")]
    tty: bool,
    /// Give it no terminal
    #[arg(short = 'T', long, overrides_with = "tty")]
    no_tty: bool,
}

impl TerminalArgs {
    /// Whether one is to be made.
    pub(crate) fn wanted(&self) -> bool {
        use std::io::IsTerminal;
        let both = || std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        !self.no_tty && (self.tty || both())
    }
}
