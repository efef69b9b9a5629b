//! What running sparks lack after somebody flushed rules, read settings anew or killed a process, and how it comes back.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::router::Router;
use super::{Member, Nets, Used, host, ids_in, nft};
use crate::domain::spark::Id;
use crate::error::{Error, Result};
use crate::sys;

/// The file of the state of the packet filter's rules when they were last looked at.
const RULES: &str = "rules";

/// Something that sparks need and that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// The router, or a part of it.
    Router,
    /// The way from the host to sparks.
    Way,
    /// Our rules of the packet filter, on the host or in the router.
    Rules,
    /// Our rules in a chain of somebody else, which drops what sparks send without them.
    Passage,
    /// The process that answers questions for names.
    Names,
}

impl Lack {
    /// What `gc` calls it, and whose it is.
    pub fn item(self) -> (&'static str, &'static str) {
        match self {
            Lack::Router => ("router that was taken away", "project networks"),
            Lack::Way => ("way from the host that was taken away", "project networks"),
            Lack::Rules => ("packet filter that was flushed", "project networks"),
            Lack::Passage => ("chain of the packet filter that drops what sparks send", "somebody else"),
            Lack::Names => ("process that answers questions for names", "project networks"),
        }
    }

    /// What sparks cannot do without it.
    pub fn effect(self) -> &'static str {
        match self {
            Lack::Router => "the router of sparks is gone: they reach nothing",
            Lack::Way => "the host has no way to sparks any more: they reach only their project",
            Lack::Rules => {
                "rules of the packet filter were flushed: sparks reach only their project, and published ports refuse"
            }
            Lack::Passage => "a chain of the packet filter drops what sparks send to beyond the host",
            Lack::Names => "the process that answers questions for names has ended: sparks find no names",
        }
    }
}

impl Nets {
    /// Mends what a spark that runs needs: rules that somebody has flushed, and the process that answers questions for names, if
    /// that was killed. Does nothing if there is no router.
    pub fn look_after(&self, program: Option<&Path>) -> Result<()> {
        let seen = std::fs::read_to_string(self.dir.join(RULES)).unwrap_or_default();
        let now = sys::nft::generation().ok().map(|now| now.to_string());
        // That of the router's namespace, which nobody comes to by chance, is looked at with it.
        let has_rules = now.as_deref() == seen.split(' ').next();
        if has_rules && self.names().is_current() {
            return Ok(());
        }
        let Some(router) = self.router() else { return Ok(()) };
        if !has_rules {
            let _lock = self.lock()?;
            self.mend(&router)?;
        }
        self.answer_names(&router, program);
        Ok(())
    }

    /// Has questions for names answered. If that fails, sparks run without names: the next command tries again.
    pub(super) fn answer_names(&self, router: &Router, program: Option<&Path>) {
        let answered = match program {
            Some(program) => self.names().ensure_runs(router.namespace(), program).map_err(|e| e.to_string()),
            None => Err("nothing says where the program is that answers".to_owned()),
        };
        if let Err(why) = answered {
            tracing::warn!("names of sparks are not found until another `spark` command succeeds: {why}");
        }
    }

    /// What the sparks that run lack. Takes no lock.
    pub fn lacks(&self) -> Result<Vec<Lack>> {
        let Some(member) = self.any_member() else { return Ok(Vec::new()) };
        let Some(router) = self.router() else { return Ok(vec![Lack::Router]) };
        let mut lacks: Vec<Lack> = router.is_severed(&member).then_some(Lack::Way).into_iter().collect();
        if !self.has_rules_as_seen(&router) {
            lacks.extend(self.missing_rules(&router)?);
        }
        lacks.extend((!self.names().runs()).then_some(Lack::Names));
        Ok(lacks)
    }

    /// Makes anew what the sparks that run lack. Returns what that was. `used` and `inside` are those of [`Nets::reserve`].
    pub fn mend_all(
        &self,
        program: Option<&Path>,
        used: Used<'_>,
        inside: impl Fn(&Id) -> Option<OwnedFd>,
    ) -> Result<Vec<Lack>> {
        if self.any_member().is_none() {
            return Ok(Vec::new());
        }
        let lock = self.lock()?;
        let lacks = self.lacks()?;
        let router = self.router_for(used, inside)?;
        self.mend(&router)?;
        drop(lock);
        self.answer_names(&router, program);
        Ok(lacks)
    }

    /// Makes the way and the rules anew that are not as they were left. The caller holds the lock.
    pub(super) fn mend(&self, router: &Router) -> Result<()> {
        if self.any_member().is_some_and(|member| router.is_severed(&member)) {
            let _host = host::lock()?;
            router.reconnect(&self.projects())?;
        }
        if self.has_rules_as_seen(router) {
            return Ok(());
        }
        router.barrier.let_leave_by(&host::cards()?)?;
        let missing = self.missing_rules(router)?;
        if missing.contains(&Lack::Rules) {
            if !nft::there(&self.table) {
                self.rebuild(router, &self.members())?;
            }
            if !router.inside(|| Ok(nft::there("spark")))? {
                router.inside(|| nft::run(&nft::of_router(&router.transit)))?;
            }
        }
        if missing.contains(&Lack::Passage) || !host::forwards_for(&router.uplink) {
            let _host = host::lock()?;
            host::acquire(&router.uplink)?;
        }
        let Some(now) = generations(router) else { return Ok(()) };
        let seen = self.dir.join(RULES);
        sys::file::replace_volatile(&seen, now.as_bytes()).map_err(Error::io("write", &seen))
    }

    /// A spark that has addresses: another has not come as far, or its command was killed before.
    fn any_member(&self) -> Option<Member> {
        let placed = |id: Id| self.member(&id).filter(|member| !member.v4.is_unspecified());
        ids_in(&self.dir_of_members()).find_map(placed)
    }

    /// Whether nobody has changed a rule of the packet filter since somebody looked.
    fn has_rules_as_seen(&self, router: &Router) -> bool {
        let now = generations(router);
        now.is_some() && std::fs::read_to_string(self.dir.join(RULES)).ok() == now
    }

    fn missing_rules(&self, router: &Router) -> Result<Vec<Lack>> {
        let flushed = !nft::there(&self.table) || !router.inside(|| Ok(nft::there("spark")))?;
        let cut = host::is_cut()?;
        Ok(flushed.then_some(Lack::Rules).into_iter().chain(cut.then_some(Lack::Passage)).collect())
    }
}

/// The states of the rules in the host's namespace and in the router's.
fn generations(router: &Router) -> Option<String> {
    let inside = router.inside(|| Ok(sys::nft::generation().ok())).ok()??;
    Some(format!("{} {inside}", sys::nft::generation().ok()?))
}
