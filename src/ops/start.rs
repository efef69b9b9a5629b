//! `resume`, and the start of a container that it shares with `create`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::secrets::Given;
use super::spark::{Opened, SparkId, refuse_damaged};
use super::{Sparks, defaults, hosts, identity, network, stop};
use crate::bundle::{spec, write};
use crate::domain::name::{Name, SparkRef};
use crate::domain::place::SparkPaths;
use crate::domain::spark::{SparkRecord, State};
use crate::error::{Error, Result};
use crate::fault;
use crate::pool::index::Identity;
use crate::runtime::cgroup;
use crate::runtime::confine::{self, Confinement};
use crate::runtime::ids;
use crate::runtime::labels;
use crate::runtime::launch::{self, Launch, Starting};
use crate::runtime::live::{self, Live};
use crate::runtime::place;
use crate::runtime::youki::Handle;
use crate::sys;
use crate::sys::flock::Mode;

/// A start under way. Wait for it.
#[derive(Debug)]
pub(crate) struct Begun<'a> {
    sparks: &'a Sparks,
    starting: Starting,
    container: Handle,
    lock: BorrowedFd<'a>,
    bundle: PathBuf,
    first_id: u32,
    joined: Result<()>,
}

impl Begun<'_> {
    /// Waits until it runs. A start that failed leaves nothing in `/run`.
    pub(crate) fn wait(self) -> Result<Live> {
        let started = self.starting.wait();
        // Without its network the start fails as a consequence.
        let started = self.joined.and(started);
        started.map_err(|first| {
            let undone = sys::flock::end_heirs(self.lock)
                .map_err(Error::sys("end what the helper left"))
                .and_then(|()| self.container.remove());
            self.sparks.clear_bundle(&self.bundle, Some(self.first_id));
            match undone {
                Ok(()) => first,
                Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
            }
        })
    }
}

impl Sparks {
    /// Starts a stopped spark, thaws a paused one, and leaves a running one as it is.
    pub fn resume(&self, spark: &SparkRef) -> Result<()> {
        let spark = self.resolve(spark)?;
        self.ensure_running(&spark)
    }

    pub(crate) fn ensure_running(&self, spark: &SparkId) -> Result<()> {
        loop {
            // Before the lock: where secrets are kept, an answer may take its time.
            let given = match self.record(spark) {
                Ok(record) if self.state(&record) == State::Stopped => {
                    self.give(&spark.project, &record.options)?
                }
                _ => Given::default(),
            };
            if self.run_with(spark, given)? {
                return Ok(());
            }
        }
    }

    /// False if the values are not those that it is to start with.
    fn run_with(&self, spark: &SparkId, given: Given) -> Result<bool> {
        let opened = self.open_spark(spark, Mode::Exclusive)?;
        if live::is_stopping(&self.bundle(&opened.record)) {
            // What a stop that was killed has begun.
            self.end(&opened.record, stop::GRACE)?;
        }
        match self.state(&opened.record) {
            State::Running => Ok(true),
            State::Paused => {
                self.mend(&opened.record)?;
                // The pause was no idling, and what it was resumed for may be about to come.
                if let Some(pidfd) = self.live(&opened.record).and_then(|live| live.pidfd().ok()) {
                    let _ = live::touch(pidfd);
                }
                self.handle(&opened.record).thaw().map_err(|e| e.of_spark(spark)).map(|()| true)
            }
            State::Stopped | State::Broken => {
                if !self.is_current(&given, &spark.project, &opened.record.options)? {
                    return Ok(false);
                }
                tracing::debug!(%spark, "starting");
                self.start(&opened, given)?;
                drop(opened);
                self.run_service_again(spark).map(|()| true)
            }
        }
    }

    /// Starts a spark with the values of its secrets.
    pub(crate) fn start(&self, opened: &Opened, given: Given) -> Result<Live> {
        let _room = self.room()?;
        let identity = Identity {
            project: opened.id.project.clone(),
            name: opened.id.name.clone(),
            id: opened.record.id.clone(),
        };
        self.pool.index_spark(&opened.record.oci_id, &identity);
        self.publish_copies(&opened.id, &opened.record)?;
        let held = self.hold_volumes(&opened.id, &opened.record.options.volumes)?;
        let locks: Vec<_> = std::iter::once(opened.lock.as_fd()).chain(held.locks()).collect();
        self.launch(&opened.id, &opened.record, &locks, given)?.wait()
    }

    /// Begins to start a spark. The caller holds its exclusive lock, the first of `locks`, and those of its volumes.
    pub(crate) fn launch<'a>(
        &'a self,
        spark: &SparkId,
        record: &SparkRecord,
        locks: &[BorrowedFd<'a>],
        given: Given,
    ) -> Result<Begun<'a>> {
        let root = SparkPaths(&self.dir(spark)).root();
        refuse_damaged(spark, &root)?;
        refuse_linked(spark, &root)?;
        identity::give_host_key(spark, &root);
        self.pool.hold_to(&record.id, &SparkPaths(&self.dir(spark)), record.options.limits.disk)?;
        let bundle = self.bundle(record);
        let container = self.handle(record);
        // What a crash, an idle stop or a kill of PID 1 left.
        self.complete_log(&record.id);
        container.remove()?;
        self.clear_bundle(&bundle, None);
        for (dir, mode) in [
            (&self.pool.place.run, 0o711),
            (&self.pool.place.run.join("bundles"), 0o711),
            (&container.oci, 0o700),
        ] {
            sys::file::make_dirs(dir, mode).map_err(Error::io("create", dir))?;
        }
        // The bundle's directory makes the claim valid: it is there before, and gone before the claim.
        sys::file::make_dirs(&bundle, 0o711).map_err(Error::io("create", &bundle))?;
        let claimed = fault::point("start.bundle-made").and_then(|()| match ids::claim(&bundle) {
            // Sparks that ended by themselves keep theirs until somebody looks.
            Err(Error::Host { .. }) => self.collect_ended().and_then(|()| ids::claim(&bundle)),
            claimed => claimed,
        });
        let first_id = claimed.inspect_err(|_| self.clear_bundle(&bundle, None))?;
        let begun = fault::point("start.claimed").and_then(|()| self.prepare(spark, record, first_id));
        let begun = begun.and_then(|launch| {
            fault::point("start.prepared")?;
            let secrets = (!given.is_empty()).then(|| given.filling(&root, &record.options)).transpose()?;
            let wire = self.wire(spark, record)?;
            let member = wire.as_ref().map(|wire| wire.here.member());
            hosts::write(spark, &root, &hosts::section(spark, &record.options, member));
            let (network, wiring) = wire.map(|w| (w.here, w.helper)).unzip();
            let locks = locks.iter().map(AsRawFd::as_raw_fd).collect();
            Ok((network, Launch { secrets, locks, wiring, ..launch }.spawn()?))
        });
        match begun {
            Ok((network, starting)) => {
                // While the helper makes the container.
                let joined = network.map_or(Ok(()), network::Here::join);
                Ok(Begun { sparks: self, starting, container, lock: locks[0], bundle, first_id, joined })
            }
            Err(e) => {
                self.clear_bundle(&bundle, Some(first_id));
                Err(e)
            }
        }
    }

    fn prepare(&self, spark: &SparkId, record: &SparkRecord, first_id: u32) -> Result<Launch> {
        let dir = self.bundle(record);
        let root = SparkPaths(&self.dir(spark)).root();
        let volumes = self.volumes_of(spark, &record.options.volumes)?;
        let disks = self.disks(&record.options.limits)?;
        let resolv = network::resolv_conf(record.options.network, &spark.project);
        let input = spec::Input {
            id: &record.id,
            project: &spark.project,
            name: &spark.name,
            options: &record.options,
            first_id,
            dir: &dir,
            templates: &self.context.templates,
            root: &root,
            shared: self.shared_dirs(&spark.project),
            disks: &disks,
            defaults: defaults::of_host(),
            counts_swap: cgroup::counts_swap(),
            volumes: &volumes,
            resolv: &resolv,
        };
        let bundle = spec::compose(&input)?;
        labels::check_mounts(&bundle.spec)?;
        let mut inner = confine::without(&bundle.inner);
        launch::join_user_namespace(&mut inner, &dir);
        let filter = write::write(&bundle, &mut inner, &input)?;
        let process =
            bundle.spec.process().as_ref().ok_or_else(|| Error::corrupt(&dir, "it has no process"))?;
        let resources = bundle.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        Ok(Launch {
            spark: spark.to_string(),
            container: self.handle(record),
            secrets: None,
            confinement: Confinement::of(process, filter, defaults::open_files())?,
            bundle: dir,
            root,
            mounts: bundle.mounts,
            volumes: bundle.volumes,
            first_id,
            idle_stop: record.options.idle_stop.unwrap_or(0),
            devices: resources.and_then(|r| r.devices().clone()).unwrap_or_default(),
            limited: resources.is_some_and(|r| r.memory().is_some()),
            soft_memory: bundle.limits.soft_memory(),
            wiring: None,
            locks: Vec::new(),
        })
    }

    /// Removes a bundle and gives its ids back.
    pub(crate) fn clear_bundle(&self, bundle: &Path, first_id: Option<u32>) {
        if let Err(e) = sys::file::remove_all(bundle) {
            tracing::warn!("cannot remove {}: {e}", bundle.display());
        }
        if let Some(first) = first_id {
            ids::release(first, bundle);
        }
        let id = bundle.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        if let Some(id) = id
            && let Err(e) = self.nets().leave(&id)
        {
            // The next command of any kind tries again.
            tracing::warn!("cannot remove the network of {id}: {e}");
        }
    }

    /// `/spark/bin`, `/spark/all` and `/spark/proj` of a project.
    pub(crate) fn shared_dirs(&self, project: &Name) -> [PathBuf; 3] {
        let system = self.pool.paths.system();
        [system.join("bin"), system.join("all"), self.pool.paths.shared(project)]
    }
}

/// Fails where the runtime library would follow a link of the root's to the host.
fn refuse_linked(spark: &SparkId, root: &Path) -> Result<()> {
    match place::linked(root).map_err(Error::io("look into", root))? {
        None => Ok(()),
        Some(path) => {
            let path = Path::new("/").join(path);
            Err(Error::in_root(spark.name.as_str(), &path, "a symbolic link", root))
        }
    }
}
