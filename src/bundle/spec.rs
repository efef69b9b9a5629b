//! `config.json`: a template, filled in for one spark.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMappingBuilder, LinuxNamespaceType, Mount, MountBuilder, Spec};

use super::{etc, limits, seccomp, template};
use crate::domain::ids::IDS;
use crate::domain::limits::{Defaults, EffectiveLimits};
use crate::domain::name::Name;
use crate::domain::options::{BindMount, Network, SparkOptions};
use crate::domain::spark::Id;
use crate::domain::volume::Attached;
use crate::error::{Error, Result};
use crate::sys::block::Device;
use crate::sys::idmap::{Extent, IdMap};
use crate::sys::mount::Planned;

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
    /// The disks that the pool is on.
    pub disks: &'a [Device],
    /// What counts where neither the options nor the template set a limit.
    pub defaults: Defaults,
    /// Whether the host counts swap of control groups.
    pub counts_swap: bool,
    /// Data volumes: where each is, and where it is to be inside.
    pub volumes: &'a [(PathBuf, Attached)],
    /// What its `/etc/resolv.conf` says, where it has a network.
    pub resolv: &'a str,
}

/// A bundle, ready to be written.
#[derive(Debug)]
pub struct Bundle {
    /// The whole OCI configuration.
    pub spec: Spec,
    /// The same without [`mounts`](Bundle::mounts) and [`volumes`](Bundle::volumes).
    pub inner: Spec,
    /// What the starter mounts upon the root before the runtime library sees it.
    pub mounts: Vec<Planned>,
    /// What it mounts when the library is done: the kernel locks what is there before, so that nobody could take it away
    /// while the spark runs.
    pub volumes: Vec<Planned>,
    /// What `/etc/profile.d/spark.sh` says. None if the spark has no such file.
    pub profile: Option<String>,
    pub limits: EffectiveLimits,
}

/// Composes a spark's bundle.
pub fn compose(input: &Input<'_>) -> Result<Bundle> {
    let options = input.options;
    let mut inner = template::load(options.bundle.as_deref().unwrap_or("default"), input.templates)?;
    if options.network == Network::Host {
        let mut mounts = inner.mounts().clone().unwrap_or_default();
        bind_host_sys(&mut mounts)?;
        inner.set_mounts(Some(mounts));
    }
    inner.set_hostname(Some(hostname(options, input.name)));
    fill_process(&mut inner, options)?;
    let limits = fill_linux(&mut inner, input)?;
    inner.set_annotations(Some(
        [
            ("dev.sparks.project".to_owned(), input.project.to_string()),
            ("dev.sparks.name".to_owned(), input.name.to_string()),
            ("dev.sparks.id".to_owned(), input.id.to_string()),
        ]
        .into(),
    ));
    let profile = profile(input);
    let mounts = inner_mounts(input, profile.is_some())?;
    let volumes = volume_mounts(input);
    let mut spec = inner.clone();
    let mut all = spec.mounts().clone().unwrap_or_default();
    for mount in mounts.iter().chain(&volumes) {
        let flags: &[&str] =
            if mount.read_only { &["bind", "ro", "nosuid", "nodev"] } else { &["bind", "nosuid", "nodev"] };
        all.push(bind(&mount.source, &mount.at, flags)?);
    }
    spec.set_mounts(Some(all));
    Ok(Bundle { spec, inner, mounts, volumes, profile, limits })
}

fn inner_mounts(input: &Input<'_>, has_profile: bool) -> Result<Vec<Planned>> {
    let range = IdMap::range(input.first_id, IDS);
    let own = |file: &str, at: &str| Planned {
        source: input.dir.join("etc").join(file),
        at: Path::new(at).join(file),
        ids: None,
        is_dir: false,
        read_only: true,
        exact: false,
    };
    let mut mounts: Vec<Planned> = etc::FILES.iter().map(|file| own(file, "/etc")).collect();
    if has_profile {
        mounts.push(own(etc::PROFILE, etc::PROFILES));
    }
    let shared = input.options.shared_in_effect().mounts();
    mounts.extend(input.shared.iter().zip(shared).map(|(source, (name, read_only))| Planned {
        source: source.clone(),
        at: Path::new("/spark").join(name),
        ids: Some(range),
        is_dir: true,
        read_only: *read_only,
        exact: false,
    }));
    for wanted in &input.options.mounts {
        mounts.push(host_mount(wanted, range)?);
    }
    Ok(mounts)
}

/// What login shells are told of `PATH`, where the root has a place for it and `/spark/bin` is mounted.
fn profile(input: &Input<'_>) -> Option<String> {
    let root = crate::sys::file::open_dir(input.root).ok()?;
    crate::sys::beneath::open_dir(&root, Path::new(etc::PROFILES)).ok()?;
    let is_mounted = !input.options.shared_in_effect().mounts().is_empty();
    is_mounted.then(|| etc::profile(input.options.path)).flatten()
}

fn volume_mounts(input: &Input<'_>) -> Vec<Planned> {
    let mut mounts: Vec<Planned> =
        input.volumes.iter().map(|(fs, at)| volume_mount(fs, at, input.first_id)).collect();
    // What is to be below another has to come after it.
    mounts.sort_by_key(|mount| mount.at.components().count());
    mounts
}

/// How a data volume looks inside: as on disk, whatever ids the spark has.
pub fn volume_mount(fs: &Path, at: &Attached, first_id: u32) -> Planned {
    Planned {
        source: fs.to_owned(),
        at: at.path.clone(),
        ids: Some(IdMap::range(first_id, IDS)),
        is_dir: true,
        read_only: at.ro,
        exact: false,
    }
}

/// A spark's host name: the one it was given, or its own.
pub fn hostname(options: &SparkOptions, name: &Name) -> String {
    options.hostname.clone().unwrap_or_else(|| name.to_string())
}

pub(super) fn bad(e: impl std::fmt::Display) -> Error {
    Error::NotSupported { what: format!("the bundle template cannot be used: {e}"), hint: None }
}

fn bind(source: &Path, target: &Path, flags: &[&str]) -> Result<Mount> {
    let options = ["rprivate"].iter().chain(flags).map(|f| (*f).to_owned()).collect::<Vec<_>>();
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
        *mount =
            bind(Path::new("/sys"), mount.destination(), &["rbind", "rro", "nosuid", "noexec", "nodev"])?;
    }
    Ok(())
}

/// How a directory of the host looks inside. If it belongs to somebody, it belongs to root inside, and what is
/// made there is that somebody's: nothing inside can make a file of the host's root. If it is root's, ids are the
/// same on both sides.
fn host_mount(wanted: &BindMount, range: IdMap) -> Result<Planned> {
    use std::os::unix::fs::MetadataExt;
    let source = std::fs::canonicalize(&wanted.src).map_err(Error::io("mount", &wanted.src))?;
    if source != wanted.src {
        return Err(Error::Host {
            what: format!(
                "{} is not what it was: it leads to {} now",
                wanted.src.display(),
                source.display()
            ),
            hint: "make a spark with the new path, if that is what you want".into(),
            source: None,
        });
    }
    let meta = std::fs::metadata(&source).map_err(Error::io("mount", &source))?;
    let ids = match meta.uid() {
        0 => range,
        owner => {
            let to_root = |inside| Extent { inside, host: range.users.host, count: 1 };
            IdMap { users: to_root(owner), groups: to_root(meta.gid()) }
        }
    };
    let at = wanted.dst.clone();
    Ok(Planned { source, at, ids: Some(ids), is_dir: meta.is_dir(), read_only: wanted.ro, exact: true })
}

fn fill_process(spec: &mut Spec, options: &SparkOptions) -> Result<()> {
    let process = spec.process_mut().as_mut().ok_or_else(|| bad("it has no `process`"))?;
    let mut env = process.env().clone().unwrap_or_default();
    let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).map(str::to_owned);
    if let (Some(order), Some(path)) = (options.path, path) {
        set_env(&mut env, "PATH", &order.apply(&path));
    }
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

fn fill_linux(spec: &mut Spec, input: &Input<'_>) -> Result<EffectiveLimits> {
    let options = input.options;
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
    if options.network == Network::Host {
        namespaces.retain(|n| n.typ() != LinuxNamespaceType::Network);
    }
    linux.set_namespaces(Some(namespaces));
    if linux.seccomp().is_none() {
        linux.set_seccomp(Some(seccomp::profile()?));
    }
    let resources = linux.resources().clone().unwrap_or_default();
    let limits = limits::effective(&options.limits, &resources, &input.defaults);
    linux.set_resources(Some(limits::fill(resources, &limits, input)?));
    Ok(limits)
}

/// A spark's cgroup, from the top of each hierarchy.
pub fn cgroup(id: &Id) -> PathBuf {
    Path::new("/spark").join(id.as_str())
}
