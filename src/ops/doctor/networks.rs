//! Networks of sparks that run: what they have lost, and what of the host is in their way.

use super::super::network;
use super::{Check, Probe};
use crate::net::Nets;
use crate::pool::index::Identity;

/// What lets packets of sparks through firewalld, as docs/network.md explains it.
const POLICY: &str = "firewall-cmd --permanent --new-zone=sparks && \
     firewall-cmd --permanent --zone=sparks --add-interface=spk-+ && \
     firewall-cmd --permanent --new-policy=sparks-out && \
     firewall-cmd --permanent --policy=sparks-out --add-ingress-zone=sparks && \
     firewall-cmd --permanent --policy=sparks-out --add-egress-zone=ANY && \
     firewall-cmd --permanent --policy=sparks-out --set-target=ACCEPT && \
     firewall-cmd --reload";

pub(super) fn checks(probe: &Probe) -> Vec<Check> {
    let nets = Nets::of(&probe.place.run);
    vec![whole(&nets), current(probe, &nets), firewalld()]
}

/// Whether running sparks have all that their networks need.
fn whole(nets: &Nets) -> Check {
    let name = "networks";
    if nets.ids().is_empty() {
        return Check::recommended(name, true, "no spark runs in one");
    }
    let problem = match nets.lacks() {
        Ok(lacks) => network::told(&lacks),
        Err(e) => Some(format!("cannot be looked at: {e}")),
    };
    let found = problem.clone().unwrap_or_else(|| "whole".into());
    Check::recommended(name, problem.is_none(), found).or("spark gc")
}

/// Whether all running sparks are in the networks of this version.
fn current(probe: &Probe, nets: &Nets) -> Check {
    let name = "old networks";
    let left: Vec<String> = nets.on_old_bridges().iter().map(|id| reference(probe, id.as_str())).collect();
    let found = match left.is_empty() {
        true => "no spark is in one".to_owned(),
        false => {
            format!("started by an earlier version, and reach no spark started since: {}", left.join(", "))
        }
    };
    let all = left.join(" ");
    Check::recommended(name, left.is_empty(), found).or(format!("spark stop {all} && spark resume {all}"))
}

/// `PROJECT/NAME` of a spark, or its id if nothing says more.
fn reference(probe: &Probe, id: &str) -> String {
    let entry = probe.text(probe.place.index().join(id));
    let identity = entry.and_then(|text| serde_json::from_str::<Identity>(&text).ok());
    identity.map_or_else(|| id.to_owned(), |found| format!("{}/{}", found.project, found.name))
}

/// firewalld refuses what no policy of its own lets pass, before rules of others count.
fn firewalld() -> Check {
    judged(crate::net::rules_of_firewalld().as_deref())
}

/// Judges the rules of firewalld, if there are any.
fn judged(rules: Option<&str>) -> Check {
    let name = "firewalld";
    let Some(rules) = rules else { return Check::recommended(name, true, "does not run") };
    // A zone alone has rules for these devices too, in chains of the zone.
    let lets_pass = rules.lines().any(|rule| rule.contains("iifname \"spk-") && rule.contains("policy_"));
    let found = match lets_pass {
        true => "runs, and has a policy for project networks",
        false => "runs without a policy for project networks, and refuses what they send beyond the host",
    };
    Check::recommended(name, lets_pass, found).or(POLICY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firewalld_needs_a_policy_and_not_only_a_zone() {
        assert!(judged(None).ok);
        let zone = "chain filter_FORWARD_ZONES {\n iifname \"spk-*\" goto filter_FWD_sparks\n}";
        let check = judged(Some(zone));
        assert!(!check.ok && check.remedy.unwrap().contains("--set-target=ACCEPT"));
        let policy =
            "chain filter_FORWARD_POLICIES_pre {\n iifname \"spk-*\" jump filter_FWD_policy_sparks-out\n}";
        assert!(judged(Some(policy)).ok);
    }
}
