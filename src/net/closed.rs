//! Networks that a spark reaches only with `--allow-host`: where clouds tell a machine its secrets, and what is the link's.
//!
//! A resolver of the host's among them stays of use: names are asked for by the host (docs/network.md).

use crate::domain::subnet::Cidr;

/// Each with whose it is, and where that is written.
const NETWORKS: [(&str, &str); 8] = [
    // All clouds have 169.254.169.254, and some more of this network; no machine routes it (RFC 3927, 7).
    ("169.254.0.0/16", "link-local addresses; AWS, Google, Azure, Oracle, DigitalOcean, Hetzner, OpenStack"),
    // https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    ("168.63.129.16/32", "Azure's WireServer"),
    // https://www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata
    ("100.100.100.200/32", "Alibaba Cloud"),
    // https://docs.oracle.com/en-us/iaas/Content/Compute/Tasks/gettingmetadata.htm
    ("192.0.0.192/32", "Oracle Cloud Infrastructure, Classic"),
    // https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
    ("fd00:ec2::254/128", "AWS by IPv6"),
    // https://cloud.google.com/compute/docs/metadata/overview
    ("fd20:ce::254/128", "Google Cloud by IPv6"),
    // https://www.scaleway.com/en/docs/instances/how-to/use-cloud-init/
    ("fd00:42::42/128", "Scaleway by IPv6"),
    ("fe80::/10", "link-local addresses"),
];

/// All of them.
pub(super) fn networks() -> impl Iterator<Item = Cidr> {
    NETWORKS.iter().filter_map(|(net, _)| net.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_is_one() {
        assert_eq!(networks().count(), NETWORKS.len());
    }
}
