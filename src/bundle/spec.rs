//! `config.json`: a template, filled in for one spark.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxIdMappingBuilder, LinuxMemoryBuilder, LinuxNamespaceType, LinuxPidsBuilder, Mount,
    MountBuilder, Spec,
};

use super::{etc, seccomp, template};
use crate::domain::limits::{DEFAULT_PIDS, Limits};
use crate::domain::name::Name;
use crate::domain::options::{BindMount, Network, Shared, SparkOptions};
use crate::domain::spark::Id;
use crate::error::{Error, Result};
use crate::sys::idmap::Extent;

/// Ids that a spark has of its own.
pub const IDS: u32 = 65_536;

/// What a bundle is made of.
#[derive(Debug)]
pub struct Input<'a> {
    pub id: &'a Id,
    pub project: &'a Name,
    pub name: &'a Name,
    pub options: &'a SparkOptions,
    /// First id of the range on the host.
    pub first_id: u32,
    /// The bundle's directory.
    pub dir: &'a Path,
    /// Where the host's own templates are.
    pub templates: &'a Path,
    /// The spark's root subvolume.
    pub root: &'a Path,
    /// `/spark/bin`, `/spark/all` and `/spark/proj`, in this order.
    pub shared: [PathBuf; 3],
}

/// A mount that the starter makes, with ids mapped, in a mount namespace of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedMount {
    pub source: PathBuf,
    /// Below the bundle's directory; the spec names it as a source.
    pub target: PathBuf,
    pub ids: Vec<Extent>,
    pub is_dir: bool,
}

/// A bundle, ready to be written.
#[derive(Debug)]
pub struct Bundle {
    /// The OCI configuration.
    pub spec: Spec,
    /// What has to be mounted before it can be run.
    pub mounts: Vec<MappedMount>,
}

/// Composes a spark's bundle.
pub fn compose(input: &Input<'_>) -> Result<Bundle> {
    let options = input.options;
    let mut spec = template::load(options.bundle.as_deref().unwrap_or("default"), input.templates)?;
    let mut mapped = vec![MappedMount {
        source: input.root.to_owned(),
        target: input.dir.join("root"),
        ids: vec![Extent { inside: 0, host: input.first_id, count: IDS }],
        is_dir: true,
    }];
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    if options.network == Network::Host {
        bind_host_sys(&mut mounts)?;
    }
    for file in etc::FILES {
        mounts.push(bind(&input.dir.join("etc").join(file), &Path::new("/etc").join(file), &["ro"])?);
    }
    add_shared(input, &mut mounts, &mut mapped)?;
    for (number, wanted) in options.mounts.iter().enumerate() {
        let made = map_host_path(input, number, wanted)?;
        let flags: &[&str] = if wanted.ro { &["ro", "nosuid", "nodev"] } else { &["nosuid", "nodev"] };
        mounts.push(bind(&made.target, &wanted.dst, flags)?);
        mapped.push(made);
    }
    spec.set_mounts(Some(mounts));
    spec.set_hostname(Some(hostname(options, input.name)));
    fill_process(&mut spec, options)?;
    fill_linux(&mut spec, input)?;
    spec.set_annotations(Some(
        [
            ("dev.sparks.project".to_owned(), input.project.to_string()),
            ("dev.sparks.name".to_owned(), input.name.to_string()),
            ("dev.sparks.id".to_owned(), input.id.to_string()),
        ]
        .into(),
    ));
    Ok(Bundle { spec, mounts: mapped })
}

/// A spark's host name: the one it was given, or its own.
pub fn hostname(options: &SparkOptions, name: &Name) -> String {
    options.hostname.clone().unwrap_or_else(|| name.to_string())
}

fn bad(e: impl std::fmt::Display) -> Error {
    Error::NotSupported { what: format!("the bundle template cannot be used: {e}"), hint: None }
}

fn bind(source: &Path, target: &Path, flags: &[&str]) -> Result<Mount> {
    let options = ["rbind", "rprivate"].iter().chain(flags).map(|f| (*f).to_owned()).collect::<Vec<_>>();
    MountBuilder::default()
        .typ("bind")
        .source(source)
        .destination(target)
        .options(options)
        .build()
        .map_err(bad)
}

/// A user namespace that does not own its network namespace cannot mount a sysfs of its own.
fn bind_host_sys(mounts: &mut [Mount]) -> Result<()> {
    for mount in mounts.iter_mut().filter(|m| m.typ().as_deref() == Some("sysfs")) {
        *mount = bind(Path::new("/sys"), mount.destination(), &["rro", "nosuid", "noexec", "nodev"])?;
    }
    Ok(())
}

fn add_shared(input: &Input<'_>, mounts: &mut Vec<Mount>, mapped: &mut Vec<MappedMount>) -> Result<()> {
    let flags: &[&str] = match input.options.shared {
        Shared::None => return Ok(()),
        Shared::Rw => &["nosuid", "nodev"],
        Shared::Ro => &["ro", "nosuid", "nodev"],
    };
    for (source, name) in input.shared.iter().zip(["bin", "all", "proj"]) {
        let target = input.dir.join("shared").join(name);
        mounts.push(bind(&target, &Path::new("/spark").join(name), flags)?);
        let ids = vec![Extent { inside: 0, host: input.first_id, count: IDS }];
        mapped.push(MappedMount { source: source.clone(), target, ids, is_dir: true });
    }
    Ok(())
}

/// How a directory of the host looks inside. If it belongs to somebody, it belongs to root inside, and what is
/// made there is that somebody's: nothing inside can make a file of the host's root. If it is root's, ids are the
/// same on both sides.
fn map_host_path(input: &Input<'_>, number: usize, wanted: &BindMount) -> Result<MappedMount> {
    use std::os::unix::fs::MetadataExt;
    let source = std::fs::canonicalize(&wanted.src).map_err(Error::io("mount", &wanted.src))?;
    let meta = std::fs::metadata(&source).map_err(Error::io("mount", &source))?;
    let ids = match meta.uid() {
        0 => vec![Extent { inside: 0, host: input.first_id, count: IDS }],
        owner => vec![Extent { inside: owner, host: input.first_id, count: 1 }],
    };
    let target = input.dir.join("mounts").join(number.to_string());
    Ok(MappedMount { source, target, ids, is_dir: meta.is_dir() })
}

fn fill_process(spec: &mut Spec, options: &SparkOptions) -> Result<()> {
    let process = spec.process_mut().as_mut().ok_or_else(|| bad("it has no `process`"))?;
    let mut env = process.env().clone().unwrap_or_default();
    for (key, value) in &options.env {
        set_env(&mut env, key, value);
    }
    process.set_env(Some(env));
    Ok(())
}

/// Sets a variable in a list of `KEY=VALUE`.
pub fn set_env(env: &mut Vec<String>, key: &str, value: &str) {
    env.retain(|e| e.split('=').next() != Some(key));
    env.push(format!("{key}={value}"));
}

fn fill_linux(spec: &mut Spec, input: &Input<'_>) -> Result<()> {
    let linux = spec.linux_mut().as_mut().ok_or_else(|| bad("it has no `linux`"))?;
    let mapping = LinuxIdMappingBuilder::default()
        .container_id(0u32)
        .host_id(input.first_id)
        .size(IDS)
        .build()
        .map_err(bad)?;
    linux.set_uid_mappings(Some(vec![mapping]));
    linux.set_gid_mappings(Some(vec![mapping]));
    linux.set_cgroups_path(Some(cgroup(input.id)));
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    if !namespaces.iter().any(|n| n.typ() == LinuxNamespaceType::User) {
        return Err(bad("it has no user namespace, and no spark goes without"));
    }
    if input.options.network == Network::Host {
        namespaces.retain(|n| n.typ() != LinuxNamespaceType::Network);
    }
    linux.set_namespaces(Some(namespaces));
    if linux.seccomp().is_none() {
        linux.set_seccomp(Some(seccomp::profile()?));
    }
    let mut resources = linux.resources().clone().unwrap_or_default();
    let Limits { memory, cpus_milli, pids } = &input.options.limits;
    if let Some(bytes) = memory {
        let bytes = *bytes as i64;
        resources
            .set_memory(Some(LinuxMemoryBuilder::default().limit(bytes).swap(bytes).build().map_err(bad)?));
    }
    if let Some(milli) = cpus_milli {
        const PERIOD: u64 = 100_000;
        let quota = (milli * PERIOD / 1000) as i64;
        resources.set_cpu(Some(LinuxCpuBuilder::default().quota(quota).period(PERIOD).build().map_err(bad)?));
    }
    if pids.is_some() || resources.pids().is_none() {
        let limit = pids.unwrap_or(DEFAULT_PIDS);
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(limit).build().map_err(bad)?));
    }
    linux.set_resources(Some(resources));
    Ok(())
}

/// A spark's cgroup, from the top of each hierarchy.
pub fn cgroup(id: &Id) -> PathBuf {
    Path::new("/spark").join(id.as_str())
}
