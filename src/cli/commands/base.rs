//! `spark base`

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::args::parse_image;
use crate::cli::output::{column, optional};
use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::domain::image::{ImageRef, Named, Platform};
use crate::domain::name::{Name, SourceRef};
use crate::error::{Error, Result};
use crate::ops::base::{ContainerdRef, Export, ImportSource, PullRequest};

/// Root filesystems that sparks start from
#[derive(Debug, Args)]
pub(crate) struct BaseArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a base from a distribution's packages
    Bootstrap {
        /// What to bootstrap: a release such as `bookworm`, or `minimal`
        #[arg(value_name = "SUITE")]
        suite: String,
        /// Name of the base [default: the suite's]
        #[arg(value_name = "BASE")]
        name: Option<Name>,
    },
    /// Make a base from an archive, a directory or a container of containerd's
    Import {
        /// A tar archive, compressed or not, a directory, `-` for an archive on standard input, or
        /// `containerd://NAMESPACE/CONTAINER` for a snapshot of one that is on btrfs, running or not
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Name of the base
        #[arg(value_name = "BASE")]
        name: Name,
    },
    /// Make a base of an image, or bring one up to date
    ///
    /// REF is HOST/REPOSITORY[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME]. Layers
    /// that another image has too are not fetched again. Sparks made from the base inherit the image's environment, user
    /// and directory.
    Pull {
        /// The image
        #[arg(value_name = "REF", value_parser = parse_image)]
        image: ImageRef,
        /// Name of the base [default: after the image]
        #[arg(value_name = "BASE")]
        name: Option<Name>,
        /// Platform, where the image is for several [default: this host's]
        #[arg(long, value_name = "linux/ARCH")]
        platform: Option<Platform>,
    },
    /// Send a base to a registry
    ///
    /// One that was made from an image goes as that image's layers, and one layer more of what differs.
    Push {
        /// The base
        #[arg(value_name = "BASE")]
        name: Name,
        /// The name it gets: HOST/REPOSITORY[:TAG]
        #[arg(value_name = "REF")]
        to: Named,
    },
    /// Write a base as an image, or as a plain archive
    #[command(group = clap::ArgGroup::new("form").required(true))]
    Export {
        /// The base
        #[arg(value_name = "BASE")]
        name: Name,
        /// Into a directory in the OCI image layout, made or added to; the tag is `latest` if none is given
        #[arg(long, value_name = "DIR[:TAG]", group = "form")]
        oci_layout: Option<String>,
        /// As `docker save` writes it, `-` for standard output; the name is `localhost/BASE:latest` if none is given
        #[arg(long, value_name = "FILE[:NAME]", group = "form")]
        docker_archive: Option<String>,
        /// As a tar archive of its files, `-` for standard output
        #[arg(long, value_name = "FILE", group = "form")]
        tar: Option<PathBuf>,
    },
    /// Make a base of a spark, or of one of its snapshots
    ///
    /// Left out are the machine-id, ssh host keys, and what is in /tmp, /var/tmp and /run. Sparks made from a base that
    /// is replaced stay as they are.
    Save {
        /// The spark, or SPARK@SNAPSHOT
        #[arg(value_name = "SPARK")]
        source: SourceRef,
        /// Name of the base
        #[arg(value_name = "BASE")]
        name: Name,
        /// Put it in the place of a base of that name
        #[arg(long)]
        replace: bool,
    },
    /// List the bases
    #[command(visible_alias = "ls")]
    List,
    /// Show what is known of a base
    Info {
        /// The base
        #[arg(value_name = "BASE")]
        name: Name,
    },
    /// Delete bases; sparks made from them stay
    #[command(visible_alias = "rm")]
    Delete {
        /// Bases to delete
        #[arg(required = true, value_name = "BASE")]
        names: Vec<Name>,
    },
    /// Show or set the base that `create` takes where none is named
    Default {
        /// The new default; without it, the present one is printed
        #[arg(value_name = "BASE")]
        name: Option<Name>,
    },
}

/// Standard input as a file: without a buffer, so that it can be waited for.
pub(super) fn standard_input() -> Result<File> {
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    input.map(File::from).map_err(Error::sys("open standard input"))
}

pub(crate) fn base(ctx: &Ctx, args: BaseArgs) -> Result<Status> {
    match args.action {
        Action::Bootstrap { suite, name } => {
            let progress = ctx.progress(false);
            let made = ctx.sparks(&progress)?.base_bootstrap(&suite, name, &progress)?;
            drop(progress);
            print_made(ctx, &made, made.name.as_str())
        }
        Action::Import { path, name } => {
            let progress = ctx.progress(false);
            let source = match path.to_str().and_then(ContainerdRef::parse) {
                Some(container) => ImportSource::Containerd(container?),
                None if path.as_os_str() == "-" => ImportSource::Stdin(Box::new(standard_input()?)),
                None => ImportSource::Path(path),
            };
            let made = ctx.sparks(&progress)?.base_import(source, name, &progress)?;
            drop(progress);
            print_made(ctx, &made, made.name.as_str())
        }
        Action::Save { source, name, replace } => {
            let progress = ctx.progress(false);
            let sparks = ctx.having_spark(&source.spark)?;
            let made = sparks.base_save(&source, &name, replace, &progress)?;
            drop(progress);
            print_made(ctx, &made, made.name.as_str())
        }
        Action::Pull { image, name, platform } => {
            let progress = ctx.progress(false);
            let platform = platform.unwrap_or_default();
            let request = PullRequest { image, platform };
            let made = ctx.sparks(&progress)?.base_pull(&request, name.as_ref(), &progress)?;
            drop(progress);
            print_made(ctx, &made, made.name.as_str())
        }
        Action::Push { name, to } => {
            let progress = ctx.progress(false);
            let pushed = ctx.having("base", &name)?.base_push(&name, &to, &progress)?;
            drop(progress);
            print_made(ctx, &pushed, &pushed.digest.to_string())
        }
        Action::Export { name, oci_layout, docker_archive, tar } => {
            let progress = ctx.progress(false);
            let to = export_to(oci_layout, docker_archive, tar)?;
            ctx.having("base", &name)?.base_export(&name, to, &progress).map_err(output::of_stream)?;
            Ok(0)
        }
        Action::List => list(ctx),
        Action::Info { name } => {
            output::print_record(ctx.json, &ctx.having("base", &name)?.base_info(&name)?)?;
            Ok(0)
        }
        Action::Delete { names } => Ok(ctx.each(&names, |name| ctx.having("base", name)?.base_delete(name))),
        Action::Default { name } => default(ctx, name),
    }
}

fn export_to(layout: Option<String>, archive: Option<String>, tar: Option<PathBuf>) -> Result<Export> {
    // In the words of the transports, whose rules these are.
    let image = match (layout, archive) {
        (Some(dir), _) => format!("oci:{dir}").parse::<ImageRef>(),
        (None, Some(file)) => format!("docker-archive:{file}").parse::<ImageRef>(),
        (None, None) => return Ok(Export::Tar(tar.unwrap_or_default())),
    };
    match image.map_err(Error::usage)? {
        ImageRef::Layout { dir, .. } if dir.as_os_str() == "-" => Err(Error::Usage {
            message: "an image layout is a directory, and standard output is none".into(),
            hint: Some("write an archive: `--docker-archive -`".into()),
        }),
        ImageRef::Layout { dir, tag } => Ok(Export::Layout { dir, tag }),
        ImageRef::DockerArchive { file, name } => Ok(Export::DockerArchive { file, name }),
        other => Err(Error::usage(format!("`{other}` is nothing to write to"))),
    }
}

fn print_made(ctx: &Ctx, made: &impl serde::Serialize, name: &str) -> Result<Status> {
    match ctx.json {
        true => output::print_json(made)?,
        false => output::print(format!("{name}\n"))?,
    }
    Ok(0)
}

fn list(ctx: &Ctx) -> Result<Status> {
    let bases = ctx.open()?.map(|sparks| sparks.base_list()).transpose()?.unwrap_or_default();
    if bases.is_empty() {
        ctx.say("no bases yet: make one with `spark base bootstrap SUITE` or `spark base import PATH BASE`");
    }
    let columns = [
        column("NAME", "name"),
        column("DEFAULT", "default"),
        column("CREATED", "created"),
        column("ORIGIN", "origin"),
        optional("BROKEN", "broken"),
    ];
    output::print_rows(ctx.json, &columns, &bases)?;
    Ok(0)
}

fn default(ctx: &Ctx, name: Option<Name>) -> Result<Status> {
    let now = match &name {
        Some(name) => ctx.having("base", name)?.base_default(Some(name))?,
        None => ctx.open()?.map(|sparks| sparks.base_default(None)).transpose()?.flatten(),
    };
    match (ctx.json, now) {
        (true, now) => output::print_json(&serde_json::json!({ "default": now }))?,
        (false, Some(now)) if name.is_none() => output::print(format!("{now}\n"))?,
        (false, None) => ctx.say("no default base: set one with `spark base default BASE`"),
        (false, Some(_)) => {}
    }
    Ok(0)
}
