//! The command line as clap parses it: what is common to the verbs, and the options of a spark.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use super::commands as c;
use crate::domain::limits::{Limits, parse_cpus, parse_memory, parse_pids};
use crate::domain::name::{Name, SparkRef};
use crate::domain::options::{
    BindMount, Network, Shared, SparkOptions, parse_env, parse_env_file, parse_hostname, parse_inside,
};
use crate::error::{Error, Result};

/// The verbs by what they are for. A test holds this to the verbs that there are.
const HELP: &str = "\
{about}

{usage-heading} {usage}

Sparks:
  create      Make a spark and start it
  list        List sparks (also: ls)
  info        Show everything known of a spark
  rename      Give a spark another name
  delete      Move sparks to the trash (also: rm)
  undelete    Bring a deleted spark back
Running:
  exec        Run a command in a spark
  console     Open a login shell in a spark
  stop        End every process of a spark
  resume      Start a stopped spark, thaw a paused one
  pause       Freeze every process of a spark
  logs        Show what detached commands wrote
Sources and places:
  base        Root filesystems that sparks start from
  project     The namespaces that sparks are in
  pool        The filesystem that everything is on
Upkeep:
  doctor      Check whether this host can run sparks
  gc          Collect what crashes and expired trash left
  completion  Print a shell completion script
  man         Write the manual pages
  version     Print the version
  help        Print help for a command

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
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = 903)]
    pub(crate) verbose: u8,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Create(Box<c::create::CreateArgs>),
    #[command(visible_alias = "ls")]
    List(c::list::ListArgs),
    Info(c::info::InfoArgs),
    Exec(Box<c::exec::ExecArgs>),
    Console(Box<c::console::ConsoleArgs>),
    Stop(c::stop::StopArgs),
    Resume(c::resume::ResumeArgs),
    Pause(c::pause::PauseArgs),
    #[command(visible_alias = "rm")]
    Delete(c::delete::DeleteArgs),
    Undelete(c::undelete::UndeleteArgs),
    Rename(c::rename::RenameArgs),
    Logs(c::logs::LogsArgs),
    Gc(c::gc::GcArgs),
    Doctor(c::doctor::DoctorArgs),
    Base(c::base::BaseArgs),
    Project(c::project::ProjectArgs),
    Pool(c::pool::PoolArgs),
    Completion(c::completion::CompletionArgs),
    Man(c::man::ManArgs),
    Version(c::version::VersionArgs),
}

/// Environment, user and directory: of a spark when made, of a command when run.
#[derive(Debug, Default, Args)]
pub(crate) struct ProcessArgs {
    /// Set an environment variable; may be repeated, and the last one wins
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_env)]
    env: Vec<(String, String)>,
    /// Read environment variables from a file of KEY=VALUE lines; `-e` wins over it
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// User to run as: a name or number, with `:GROUP` if wanted [default: root]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Directory to run in [default: the user's home]
    #[arg(short, long, value_name = "DIR", value_parser = parse_inside)]
    pub(crate) workdir: Option<PathBuf>,
}

impl ProcessArgs {
    /// All variables in the order in which later ones win.
    pub(crate) fn environment(&self) -> Result<Vec<(String, String)>> {
        let mut all = Vec::new();
        for path in &self.env_file {
            all.extend(read_env_file(path)?);
        }
        all.extend(self.env.iter().cloned());
        Ok(all)
    }
}

/// Far more than an environment that execve(2) would take.
const ENV_FILE_MAX: u64 = 1 << 20;

fn read_env_file(path: &Path) -> Result<Vec<(String, String)>> {
    let file = std::fs::File::open(path).map_err(Error::io("open environment file", path))?;
    let mut text = Vec::new();
    file.take(ENV_FILE_MAX + 1).read_to_end(&mut text).map_err(Error::io("read environment file", path))?;
    if text.len() as u64 > ENV_FILE_MAX {
        return Err(Error::usage(format!("environment file {} is larger than 1 MiB", path.display())));
    }
    String::from_utf8(text)
        .map_err(|_| "it is not UTF-8".to_owned())
        .and_then(|text| parse_env_file(&text))
        .map_err(|why| Error::usage(format!("environment file {}: {why}", path.display())))
}

/// What a new spark is like, besides what its processes start with.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Options of a new spark")]
pub(crate) struct NewArgs {
    /// Base to start from [env: SPARK_BASE; default: see `spark base default`]
    #[arg(long)]
    pub(crate) base: Option<Name>,
    /// Mount a directory or file of the host: type=bind,src=DIR,dst=DIR[,ro]; may be repeated
    #[arg(long, value_name = "MOUNT")]
    mount: Vec<BindMount>,
    /// Network: `host` (the host's own) or `none` (only loopback) [default: host]
    #[arg(long, value_name = "NETWORK")]
    network: Option<Network>,
    /// Most memory it may use, such as 512M or 2G [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<u64>,
    /// Processors it may use, such as 1.5 [default: no limit]
    #[arg(long, value_name = "NUMBER", value_parser = parse_cpus)]
    cpus: Option<u64>,
    /// Processes and threads it may have [default: 4096]
    #[arg(long, value_name = "NUMBER", value_parser = parse_pids)]
    pids: Option<i64>,
    /// Host name inside [default: the spark's name]
    #[arg(long, value_name = "NAME", value_parser = parse_hostname)]
    hostname: Option<String>,
    /// Attach a label; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// Bundle template to make its container from [default: default]
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "hardened")]
    bundle: Option<String>,
    /// Confine it further: short for `--bundle hardened`
    #[arg(long)]
    hardened: bool,
    /// How /spark/bin, /spark/all and /spark/proj are mounted: rw, ro or none [default: rw]
    #[arg(long, value_name = "MODE")]
    shared: Option<Shared>,
}

impl NewArgs {
    /// The first option that was given, by its name on the command line.
    pub(crate) fn given(&self) -> Option<&'static str> {
        [
            (self.base.is_some(), "--base"),
            (!self.mount.is_empty(), "--mount"),
            (self.network.is_some(), "--network"),
            (self.memory.is_some(), "--memory"),
            (self.cpus.is_some(), "--cpus"),
            (self.pids.is_some(), "--pids"),
            (self.hostname.is_some(), "--hostname"),
            (!self.label.is_empty(), "--label"),
            (self.bundle.is_some(), "--bundle"),
            (self.hardened, "--hardened"),
            (self.shared.is_some(), "--shared"),
        ]
        .into_iter()
        .find_map(|(given, name)| given.then_some(name))
    }

    /// Refuses these options for a spark that is there already.
    pub(crate) fn refuse_for(&self, spark: &SparkRef) -> Result<()> {
        match self.given() {
            None => Ok(()),
            Some(option) => Err(Error::Usage {
                message: format!("`{option}` is only for a new spark, and `{spark}` is named"),
                hint: Some("give it to `spark create`, or run the command in a spark of its own, `-`".into()),
            }),
        }
    }

    /// As the record keeps them. Paths of the host become absolute here, where the working directory has meaning.
    pub(crate) fn options(&self, process: &ProcessArgs) -> Result<SparkOptions> {
        let mounts = self.mount.iter().map(absolute).collect::<Result<_>>()?;
        Ok(SparkOptions {
            env: process.environment()?.into_iter().collect(),
            mounts,
            network: self.network.unwrap_or_default(),
            limits: Limits { memory: self.memory, cpus_milli: self.cpus, pids: self.pids },
            user: process.user.clone(),
            workdir: process.workdir.clone(),
            hostname: self.hostname.clone(),
            labels: self.label.iter().cloned().collect(),
            bundle: if self.hardened { Some("hardened".into()) } else { self.bundle.clone() },
            shared: self.shared.unwrap_or_default(),
        })
    }
}

fn absolute(mount: &BindMount) -> Result<BindMount> {
    let src = std::path::absolute(&mount.src).map_err(Error::io("find", &mount.src))?;
    Ok(BindMount { src, ..mount.clone() })
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

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !text.chars().any(char::is_control) => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err(format!("`{}` is not a label: write KEY=VALUE", text.escape_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent_and_its_help_names_every_verb() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for verb in command.get_subcommands() {
            assert!(HELP.contains(&format!("\n  {} ", verb.get_name())), "{}", verb.get_name());
            assert!(verb.get_about().is_some() || verb.get_name() == "help", "{}", verb.get_name());
            for arg in verb.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", verb.get_name(), arg.get_id());
            }
        }
        assert!(command.render_help().to_string().lines().count() <= 45);
    }

    #[test]
    fn every_verb_parses() {
        for line in [
            "spark create web --base b -e A=1 --env-file /x --mount src=/a,dst=/b,ro --network none --memory 2G",
            "spark create web --cpus 1.5 --pids 64 --user u:g --workdir /w --hostname h --label a=b --bundle t",
            "spark create web --hardened --shared ro --no-start --dry-run -q",
            "spark create",
            "spark list -a -q",
            "spark ls --deleted",
            "spark info shop/web",
            "spark exec web -e A=1 -w /x -u u -t --timeout 30s -- ls -l",
            "spark exec - --base b --memory 1G ls",
            "spark exec web -d sleep 1",
            "spark console web -- bash -l",
            "spark console -",
            "spark stop a b -t 3",
            "spark resume a b",
            "spark pause a b",
            "spark delete a b -f --now",
            "spark rm a",
            "spark undelete a --as b",
            "spark rename a b",
            "spark logs a -f",
            "spark logs a --tail 5",
            "spark gc --dry-run",
            "spark doctor --fix",
            "spark base bootstrap bookworm b",
            "spark base import - b",
            "spark base list",
            "spark base info b",
            "spark base delete b",
            "spark base default",
            "spark project list",
            "spark project info p",
            "spark project delete p",
            "spark pool init --size 10G",
            "spark pool info",
            "spark pool grow 20G",
            "spark completion bash",
            "spark man /x",
            "spark version",
            "spark -P shop --json -vv list",
            "spark list -P shop --json -v",
        ] {
            if let Err(e) = parse(line) {
                panic!("{line}: {e}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for line in [
            "spark",
            "spark lst",
            "spark create Web",
            "spark create a b",
            "spark create a --bundle x --hardened",
            "spark create a --memory 1",
            "spark create a --network project",
            "spark create a --workdir rel",
            "spark create a -e NOVALUE",
            "spark exec web",
            "spark exec web --nonsense ls",
            "spark exec web -d --timeout 3s ls",
            "spark stop",
            "spark list --deleted --nonsense",
            "spark logs a -f --tail x",
            "spark pool init --size 1G --device /dev/x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn what_follows_the_command_is_the_commands_own() {
        for (line, expected) in [
            ("spark exec web ls -l -t --json", vec!["ls", "-l", "-t", "--json"]),
            ("spark exec web -- ls -- -x", vec!["ls", "--", "-x"]),
            ("spark exec web -T sh -c x", vec!["sh", "-c", "x"]),
        ] {
            let cli = parse(line).unwrap();
            assert!(!cli.global.json);
            let Verb::Exec(args) = cli.verb else { panic!("{line}") };
            assert_eq!(args.command, expected, "{line}");
        }
    }

    #[test]
    fn a_variable_given_later_wins_and_options_over_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "A=file\nB=file\n").unwrap();
        let line = format!("spark create web -e A=1 -e A=2 --env-file {}", file.path().display());
        let Verb::Create(args) = parse(&line).unwrap().verb else { panic!() };
        let options = args.new.options(&args.process).unwrap();
        assert_eq!(options.env["A"], "2");
        assert_eq!(options.env["B"], "file");
    }

    #[test]
    fn an_environment_file_is_bounded_and_its_errors_name_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![b'#'; 2 << 20]).unwrap();
        assert!(read_env_file(file.path()).unwrap_err().to_string().contains("larger than 1 MiB"));
        std::fs::write(file.path(), "A=1\nnope\n").unwrap();
        assert!(read_env_file(file.path()).unwrap_err().to_string().contains("line 2:"));
    }

    #[test]
    fn options_of_a_new_spark_are_refused_with_a_name() {
        let Verb::Exec(args) = parse("spark exec web --pids 64 ls").unwrap().verb else { panic!() };
        let e = args.new.refuse_for(&"web".parse().unwrap()).unwrap_err();
        assert!(e.to_string().contains("`--pids`"), "{e}");
        assert!(NewArgs::default().given().is_none());
    }

    #[test]
    fn of_t_and_no_t_the_last_one_counts() {
        let wanted = |line: &str| {
            let Verb::Exec(args) = parse(line).unwrap().verb else { panic!() };
            args.terminal.wanted()
        };
        assert!(wanted("spark exec web -T -t ls"));
        assert!(!wanted("spark exec web -t -T ls"));
    }
}
