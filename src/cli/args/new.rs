//! Options of a new spark, and of a command: what `create`, `exec` and `console` have in common.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::Ctx;
use crate::domain::egress::Egress;
use crate::domain::host_entry::HostEntry;
use crate::domain::image::ImageRef;
use crate::domain::limits::{
    Limits, Memory, parse_cpus, parse_disk, parse_idle_stop, parse_memory, parse_pids, parse_rate,
};
use crate::domain::name::{Name, SourceRef, SparkRef};
use crate::domain::options::{
    BindMount, Changes, CloneOf, HARDENED, Network, parse_env, parse_env_file, parse_hostname, parse_inside,
    parse_label, parse_user,
};
use crate::domain::port::Ports;
use crate::domain::secret::{Key, Secret, parse_secret};
use crate::domain::shared::Shared;
use crate::domain::volume::{Attached, Data};
use crate::error::{Error, Result};
use crate::ops::base::PullRequest;
use crate::ops::create::Source;

/// Environment, user and directory: of a spark when made, of a command when run.
#[derive(Debug, Default, Args)]
pub(crate) struct ProcessArgs {
    /// Set an environment variable; may be repeated, and the last one wins
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_env)]
    env: Vec<(String, String)>,
    /// Read environment variables from a file of KEY=VALUE lines; `-e` wins over it
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Give it a secret, as a variable and a file in /run/secrets: op://VAULT/ITEM/FIELD, age://NAME, env://NAME,
    /// file:///PATH, cmd://NAME or pass://PATH; may be repeated. KEY:file or KEY:env for one of the two
    #[arg(long, value_name = "KEY=REF")]
    secret: Vec<String>,
    /// User to run as: a name or number, with `:GROUP` if wanted [default: root]
    #[arg(short, long, value_parser = parse_user)]
    pub(crate) user: Option<String>,
    /// Directory to run in [default: the user's home]
    #[arg(short, long, value_name = "DIR", value_parser = parse_inside)]
    pub(crate) workdir: Option<PathBuf>,
}

impl ProcessArgs {
    /// The secrets by reference. Not parsed by clap, which would print what it does not take: it may be a value.
    pub(crate) fn secrets(&self) -> Result<Vec<(Key, Secret)>> {
        let parse = |text: &String| {
            parse_secret(text).map_err(|why| Error::Usage {
                message: format!("`--secret`: {why}"),
                hint: Some(
                    "a value is never an argument: put it into the store with `spark secrets set KEY < FILE`"
                        .into(),
                ),
            })
        };
        self.secret.iter().map(parse).collect()
    }

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

pub(super) fn read_env_file(path: &Path) -> Result<Vec<(String, String)>> {
    let file = std::fs::File::open(path).map_err(Error::io("open environment file", path))?;
    let mut text = Vec::new();
    file.take(ENV_FILE_MAX + 1).read_to_end(&mut text).map_err(Error::io("read environment file", path))?;
    if text.len() as u64 > ENV_FILE_MAX {
        return Err(Error::usage(format!("environment file {} is larger than 1 MiB", path.display())));
    }
    String::from_utf8(text)
        .map_err(|e| {
            let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
            format!("line {}: it is not UTF-8", before.split(|byte| *byte == b'\n').count())
        })
        .and_then(|text| parse_env_file(&text))
        .map_err(|why| Error::usage(format!("environment file {}: {why}", path.display())))
}

/// What a new spark is like, besides what its processes start with.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Options of a new spark")]
pub(crate) struct NewArgs {
    /// Base to start from [env: SPARK_BASE; default: see `spark base default`]
    #[arg(long)]
    base: Option<Name>,
    /// Spark or snapshot to start from, with its options: SPARK or SPARK@SNAPSHOT
    #[arg(long, value_name = "SPARK", conflicts_with = "base")]
    from: Option<SourceRef>,
    /// Image to start from, pulled if it was not yet: HOST/REPOSITORY:TAG, oci:DIR:TAG, docker-archive:FILE
    #[arg(long, value_name = "REF", value_parser = parse_image, conflicts_with_all = ["base", "from"])]
    image: Option<ImageRef>,
    /// Run what the image runs, now and at each resume; it writes to `spark logs`
    #[arg(long)]
    run: bool,
    /// Mount a directory or file of the host: type=bind,src=DIR,dst=DIR[,ro]; root inside is its owner; may be repeated
    #[arg(long, value_name = "MOUNT")]
    mount: Vec<BindMount>,
    /// Attach a data volume, made if it is not there: VOLUME:PATH[:ro]; may be repeated
    #[arg(short, long, value_name = "VOLUME:PATH")]
    volume: Vec<Attached>,
    /// Data volumes of the spark that it starts from: `share` them, `copy` them at the same instant, or have `none`
    /// [default: share those that other sparks have, copy the others]
    #[arg(long, value_name = "MODE")]
    data: Option<Data>,
    /// Network: `project` (that of its project), `host` (the host's own) or `none` (only loopback) [default: project]
    #[arg(long, value_name = "NETWORK")]
    network: Option<Network>,
    /// Publish a port on every address of the host, or on one: [[IP:]HOST:]SPARK[/udp], or ranges of the same length; without
    /// HOST, or with 0, a free one is chosen and printed; may be repeated
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<Ports>,
    /// Publish each port that the image exposes on a free one of 127.0.0.1: `spark port` tells which
    #[arg(long)]
    publish_exposed: bool,
    /// What it may reach beyond its project: all, deny, or allow=CIDR|NAME[:PORT],…; may be repeated [default: all]
    #[arg(long, value_name = "RULES")]
    egress: Vec<Egress>,
    /// Let it reach services of the host itself, and link-local addresses
    #[arg(long)]
    allow_host: bool,
    /// Put an address for a name into its /etc/hosts; may be repeated
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<HostEntry>,
    /// Most memory it may use, such as 512M or 2G, or `none` for no limit [default: half of the host's]
    #[arg(long, value_name = "SIZE|none", value_parser = parse_memory)]
    memory: Option<Memory>,
    /// Processors it may use, such as 1.5 [default: no limit]
    #[arg(long, value_name = "NUMBER", value_parser = parse_cpus)]
    cpus: Option<u64>,
    /// Processes and threads it may have [default: 4096, or half of what the host can run]
    #[arg(long, value_name = "NUMBER", value_parser = parse_pids)]
    pids: Option<i64>,
    /// End it when no process but its own init has been there for this long, such as 10m, or `never`; the next
    /// command resumes it [default: never]
    #[arg(long, value_name = "TIME", value_parser = parse_idle_stop)]
    idle_stop: Option<u32>,
    /// Bytes a second it may read from the pool's disk, and write to it, such as 20M [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    io: Option<u64>,
    /// Bytes it may write and keep, such as 10G, in a pool made with `--quota` [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_disk)]
    disk: Option<u64>,
    /// Host name inside [default: the spark's name]
    #[arg(long, value_name = "NAME", value_parser = parse_hostname)]
    hostname: Option<String>,
    /// Attach a label; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// Bundle template to make its container from [default: default]
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "hardened")]
    bundle: Option<Name>,
    /// Confine it further: short for `--bundle hardened`
    #[arg(long)]
    hardened: bool,
    /// How /spark/bin, /spark/all and /spark/proj are mounted: `default` (only /spark/proj is writable), `rw` (all are),
    /// `ro` or `none`
    #[arg(long, value_name = "MODE", conflicts_with = "hardened")]
    shared: Option<Shared>,
    /// Put a clone of a git repository into /work, and run there [default: that of the working directory]
    #[arg(long, value_name = "REPO", num_args = 0..=1, default_missing_value = ".")]
    clone: Option<PathBuf>,
    /// Clone uncommitted work too: changes, and new files that are not ignored
    #[arg(long, requires = "clone")]
    dirty: bool,
}

impl NewArgs {
    /// The first option that was given, by its name on the command line.
    pub(crate) fn given(&self) -> Option<&'static str> {
        [
            (self.base.is_some(), "--base"),
            (self.from.is_some(), "--from"),
            (self.image.is_some(), "--image"),
            (self.run, "--run"),
            (!self.mount.is_empty(), "--mount"),
            (!self.volume.is_empty(), "--volume"),
            (self.data.is_some(), "--data"),
            (self.network.is_some(), "--network"),
            (!self.publish.is_empty(), "--publish"),
            (self.publish_exposed, "--publish-exposed"),
            (!self.egress.is_empty(), "--egress"),
            (self.allow_host, "--allow-host"),
            (!self.add_host.is_empty(), "--add-host"),
            (self.memory.is_some(), "--memory"),
            (self.cpus.is_some(), "--cpus"),
            (self.pids.is_some(), "--pids"),
            (self.idle_stop.is_some(), "--idle-stop"),
            (self.io.is_some(), "--io"),
            (self.disk.is_some(), "--disk"),
            (self.hostname.is_some(), "--hostname"),
            (!self.label.is_empty(), "--label"),
            (self.bundle.is_some(), "--bundle"),
            (self.hardened, "--hardened"),
            (self.shared.is_some(), "--shared"),
            (self.clone.is_some(), "--clone"),
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

    /// Refuses what says where to start from, where that is said otherwise.
    pub(crate) fn refuse_source(&self) -> Result<()> {
        let given = [
            (self.base.is_some(), "--base"),
            (self.from.is_some(), "--from"),
            (self.image.is_some(), "--image"),
            (self.clone.is_some(), "--clone"),
        ];
        match given.iter().find(|(given, _)| *given) {
            None => Ok(()),
            Some((_, option)) => Err(Error::usage(format!("`{option}` has no meaning here: SOURCE says it"))),
        }
    }

    /// What a new spark starts from, and what it is like: as it was given, over what is configured. A spark that starts
    /// from another is like that one.
    pub(crate) fn wanted(&self, ctx: &Ctx, process: &ProcessArgs) -> Result<(Source, Changes)> {
        let (source, changes) = (self.source(), self.changes(process)?);
        if self.from.is_some() {
            return Ok((source, changes));
        }
        let configured = ctx.settings()?;
        let source = match source {
            Source::Base(None) if !ctx.has_base() => Source::Base(configured.base),
            source => source,
        };
        let mut changes = changes.under(configured.create);
        if self.shared.is_none() && changes.bundle.as_deref() == Some(HARDENED) {
            // What is configured for all sparks is no wish for this one.
            changes.shared = None;
        }
        Ok((source, changes))
    }

    /// The ports that the repository asks for, with the command that publishes them. None if the user has chosen ports.
    /// `spark` is the new spark, unless it is ephemeral.
    pub(crate) fn wish(&self, ctx: &Ctx, spark: Option<&SparkRef>) -> Result<Option<String>> {
        if self.from.is_some() || !self.publish.is_empty() {
            return Ok(None);
        }
        let ports = ctx.settings()?.wished_ports.join(" ");
        if ports.is_empty() {
            return Ok(None);
        }
        let how = match spark {
            Some(spark) => format!("`spark port open {spark} {ports}`"),
            None => format!("`-p {}`", ports.replace(' ', " -p ")),
        };
        Ok(Some(format!("the repository asks for published ports: publish them with {how}")))
    }

    /// What a new spark starts from.
    fn source(&self) -> Source {
        match (&self.from, &self.image) {
            (Some(spark), _) => Source::Spark(spark.clone()),
            (None, Some(image)) => Source::Image(PullRequest::of(image.clone())),
            (None, None) => Source::Base(self.base.clone()),
        }
    }

    /// As they were given. Paths of the host become absolute here, where the working directory has meaning.
    pub(crate) fn changes(&self, process: &ProcessArgs) -> Result<Changes> {
        Ok(Changes {
            env: process.environment()?,
            secrets: process.secrets()?,
            mounts: self.mount.iter().map(absolute).collect::<Result<_>>()?,
            volumes: self.volume.clone(),
            data: self.data,
            network: self.network,
            ports: self.publish.iter().flat_map(|ports| ports.0.clone()).collect(),
            chosen_ports: Vec::new(),
            egress: self.egress.iter().cloned().reduce(Egress::and),
            allow_host: self.allow_host,
            add_host: self.add_host.clone(),
            limits: Limits {
                memory: self.memory,
                cpus_milli: self.cpus,
                pids: self.pids,
                io: self.io,
                disk: self.disk,
            },
            user: process.user.clone(),
            workdir: process.workdir.clone(),
            hostname: self.hostname.clone(),
            labels: self.label.iter().cloned().collect(),
            bundle: if self.hardened { Some(HARDENED.into()) } else { self.bundle.clone().map(String::from) },
            shared: self.shared,
            clone: self.clone.as_ref().map(|repo| self.clone_of(repo)).transpose()?,
            idle_stop: self.idle_stop,
            path: None,
            run: self.run,
            publish_exposed: self.publish_exposed,
        })
    }

    fn clone_of(&self, repo: &Path) -> Result<CloneOf> {
        if repo.to_str().is_some_and(|r| r.contains("://")) {
            return Err(Error::Usage {
                message: format!("`--clone` takes a repository of this host, not {}", repo.display()),
                hint: Some("clone from elsewhere inside: `spark exec NAME -- git clone URL`".into()),
            });
        }
        let source = std::path::absolute(repo).map_err(Error::io("find", repo))?;
        Ok(CloneOf { source, repository: PathBuf::new(), path: PathBuf::new(), dirty: self.dirty })
    }
}

fn absolute(mount: &BindMount) -> Result<BindMount> {
    let src = std::path::absolute(&mount.src).map_err(Error::io("find", &mount.src))?;
    Ok(BindMount { src, ..mount.clone() })
}

/// Parses an image's name. Paths of the host become absolute here, where the working directory has meaning: an image
/// is known by its name.
pub(crate) fn parse_image(text: &str) -> Result<ImageRef, String> {
    let mut image: ImageRef = text.parse()?;
    if image.is_stream() {
        return Ok(image);
    }
    match &mut image {
        ImageRef::Registry(_) => {}
        ImageRef::Layout { dir: path, .. }
        | ImageRef::LayoutArchive { file: path, .. }
        | ImageRef::DockerArchive { file: path, .. } => {
            *path = std::path::absolute(&path).map_err(|e| e.to_string())?;
        }
    }
    Ok(image)
}
