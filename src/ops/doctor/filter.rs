//! Packet filters beside nftables, which project networks cannot look into.

use std::process::Command;

use super::{Check, Probe};

/// Tool, and where the kernel tells which of its tables are in use.
const LEGACY: [(&str, &str); 2] =
    [("iptables-legacy", "net/ip_tables_names"), ("ip6tables-legacy", "net/ip6_tables_names")];

pub(super) fn checks(probe: &Probe) -> Vec<Check> {
    LEGACY.iter().map(|(tool, names)| legacy(probe, tool, names)).collect()
}

fn legacy(probe: &Probe, tool: &'static str, names: &str) -> Check {
    let names = probe.text(probe.proc.join(names)).unwrap_or_default();
    // Not asked otherwise: asking makes the table.
    if !names.lines().any(|name| name == "filter") {
        return Check::recommended(tool, true, "not in use");
    }
    let program = probe.program(tool);
    let asked = program.and_then(|program| Command::new(program).args(["-S", "FORWARD"]).output().ok());
    let rules = asked.filter(|asked| asked.status.success());
    judged(tool, rules.map(|rules| String::from_utf8_lossy(&rules.stdout).into_owned()).as_deref())
}

/// Judges the rules that a tool lists, if it does.
fn judged(tool: &'static str, rules: Option<&str>) -> Check {
    let remedy = format!(
        "{tool} -I FORWARD -i spk-+ -j ACCEPT && {tool} -I FORWARD -o spk-+ -j ACCEPT  # after each restart of the firewall"
    );
    let Some(rules) = rules else {
        return Check::recommended(
            tool,
            false,
            "in use, and cannot be asked whether it lets project networks pass",
        )
        .or(remedy);
    };
    let is = |rule: &str, beginning: &str| rule.split(" --").next() == Some(beginning);
    let drops = ["-P FORWARD DROP", "-A FORWARD -j DROP", "-A FORWARD -j REJECT"];
    let drops = rules.lines().any(|rule| drops.iter().any(|beginning| is(rule, beginning)));
    let ours = ["-A FORWARD -i spk-+ -j ACCEPT", "-A FORWARD -o spk-+ -j ACCEPT"];
    if !drops || ours.iter().all(|ours| rules.lines().any(|rule| rule == *ours)) {
        return Check::recommended(tool, true, "in use, and lets project networks pass");
    }
    Check::recommended(tool, false, "in use, and drops what project networks send beyond the host").or(remedy)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Bare;
    use super::*;

    #[test]
    fn rules_of_iptables_legacy_are_told_where_they_drop_everything() {
        let bare = Bare::new();
        let check = || checks(&bare.probe).remove(0);
        assert!(check().ok);
        bare.write("proc/net/ip_tables_names", "nat\n");
        assert!(check().ok);
        bare.write("proc/net/ip_tables_names", "nat\nfilter\n");
        assert!(check().found.contains("cannot be asked"));

        let says = |rules: &[&str]| judged("iptables-legacy", Some(&rules.join("\n")));
        assert!(says(&["-P FORWARD ACCEPT", "-A FORWARD -s 10.0.0.0/8 -j DROP"]).ok);
        assert!(!says(&["-P FORWARD ACCEPT", "-A FORWARD -j REJECT --reject-with icmp-host-prohibited"]).ok);
        let ours = ["-A FORWARD -o spk-+ -j ACCEPT", "-A FORWARD -i spk-+ -j ACCEPT"];
        assert!(says(&["-P FORWARD DROP", ours[0], ours[1]]).ok);
        let half = says(&["-P FORWARD DROP", ours[0]]);
        assert!(!half.ok && half.remedy.unwrap().contains("-i spk-+"));
    }
}
