//! The limits of a spark: those of its options, of its bundle template, and the host's defaults, in this order.

use std::path::Path;

use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
    LinuxThrottleDeviceBuilder,
};

use super::spec::{Input, bad};
use super::template;
use crate::domain::limits::{Defaults, EffectiveLimits, LimitSource, Limits, Memory};
use crate::domain::options::SparkOptions;
use crate::error::Result;
use crate::sys::block::Device;

/// Processor time is given out anew this often, in microseconds.
const PERIOD: u64 = 100_000;

/// The limits that a spark with these options starts with.
pub fn of(options: &SparkOptions, templates: &Path, defaults: &Defaults) -> Result<EffectiveLimits> {
    let spec = template::load(options.bundle.as_deref().unwrap_or("default"), templates)?;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    Ok(effective(&options.limits, &resources, defaults))
}

/// The limits of options over those of a template, and defaults where neither has one.
pub(super) fn effective(own: &Limits, template: &LinuxResources, defaults: &Defaults) -> EffectiveLimits {
    let of_template = template.memory().as_ref().and_then(|m| m.limit()).filter(|bytes| *bytes > 0);
    let (memory, memory_from) = match (own.memory, of_template) {
        (Some(Memory::Bytes(bytes)), _) => (Some(bytes), LimitSource::Options),
        (Some(Memory::Unlimited), _) => (None, LimitSource::Options),
        (None, Some(bytes)) => (Some(bytes as u64), LimitSource::Template),
        (None, None) => (defaults.memory, LimitSource::Default),
    };
    let of_template = template.pids().as_ref().map(|pids| pids.limit());
    let (pids, pids_from) = match (own.pids, of_template) {
        (Some(pids), _) => (pids, LimitSource::Options),
        (None, Some(pids)) => (pids, LimitSource::Template),
        (None, None) => (defaults.pids, LimitSource::Default),
    };
    let of_template = template.cpu().as_ref().and_then(|cpu| {
        let quota = u64::try_from(cpu.quota()?).ok()?;
        (quota * 1000).checked_div(cpu.period().unwrap_or(PERIOD))
    });
    let cpus_milli = own.cpus_milli.or(of_template);
    EffectiveLimits { memory, memory_from, cpus_milli, pids, pids_from, io: own.io }
}

/// The resources of a template, with the limits that are not its own.
pub(super) fn fill(
    mut resources: LinuxResources,
    effective: &EffectiveLimits,
    input: &Input<'_>,
) -> Result<LinuxResources> {
    if effective.memory_from != LimitSource::Template {
        let memory = effective.memory.map(|bytes| {
            let memory = LinuxMemoryBuilder::default().limit(bytes as i64);
            // Memory and swap together. A host that does not count swap has no file for it.
            if input.counts_swap { memory.swap(bytes as i64) } else { memory }.build().map_err(bad)
        });
        resources.set_memory(memory.transpose()?);
    }
    if let Some(milli) = input.options.limits.cpus_milli {
        let quota = (milli * PERIOD / 1000) as i64;
        resources.set_cpu(Some(LinuxCpuBuilder::default().quota(quota).period(PERIOD).build().map_err(bad)?));
    }
    resources.set_pids(Some(LinuxPidsBuilder::default().limit(effective.pids).build().map_err(bad)?));
    if let Some(rate) = effective.io {
        let throttle = |disk: &Device| {
            let device = LinuxThrottleDeviceBuilder::default().major(disk.major).minor(disk.minor).rate(rate);
            device.build().map_err(bad)
        };
        let rates = input.disks.iter().map(throttle).collect::<Result<Vec<_>>>()?;
        let io = LinuxBlockIoBuilder::default()
            .throttle_read_bps_device(rates.clone())
            .throttle_write_bps_device(rates);
        resources.set_block_io(Some(io.build().map_err(bad)?));
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults = Defaults { memory: Some(16 << 20), pids: 40 };

    #[test]
    fn a_spark_starts_with_its_own_limits_then_with_those_of_its_template_then_with_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let mut small = serde_json::to_value(template::load("default", dir.path()).unwrap()).unwrap();
        small["linux"]["resources"] = serde_json::json!({
            "memory": { "limit": 1000 }, "pids": { "limit": 7 }, "cpu": { "quota": 25000, "period": 50000 }
        });
        std::fs::create_dir(dir.path().join("small")).unwrap();
        std::fs::write(dir.path().join("small/config.json"), small.to_string()).unwrap();
        let of = |bundle: &str, limits: &Limits| {
            let options =
                SparkOptions { bundle: Some(bundle.into()), limits: limits.clone(), ..Default::default() };
            super::of(&options, dir.path(), &DEFAULTS).unwrap()
        };
        let own = Limits { pids: Some(9), io: Some(3), ..Limits::default() };
        let both = EffectiveLimits {
            memory: Some(1000),
            memory_from: LimitSource::Template,
            cpus_milli: Some(500),
            pids: 9,
            pids_from: LimitSource::Options,
            io: Some(3),
        };
        assert_eq!(of("small", &own), both);
        assert_eq!((both.soft_memory(), of("small", &Limits::default()).pids), (None, 7));
        let none = of("default", &Limits::default());
        assert_eq!((none.memory, none.memory_from), (Some(16 << 20), LimitSource::Default));
        assert_eq!((none.pids, none.soft_memory()), (40, Some(15 << 20)));
        for bundle in ["small", "default"] {
            let lifted = Limits { memory: Some(Memory::Unlimited), ..Limits::default() };
            assert_eq!((of(bundle, &lifted).memory, of(bundle, &lifted).soft_memory()), (None, None));
            let chosen = Limits { memory: Some(Memory::Bytes(3000)), ..Limits::default() };
            assert_eq!((of(bundle, &chosen).memory, of(bundle, &chosen).soft_memory()), (Some(3000), None));
        }
    }
}
