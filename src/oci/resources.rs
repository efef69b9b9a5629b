//! `update`, `events`, `ps`: what containers may use, use, and run.

use std::io::Read as _;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::{EventsArgs, Layout, PsArgs, UpdateArgs};
use super::print;
use crate::error::{Error, Result};
use crate::ops::oci::{Heard, Runtime};

/// Larger than any real object of resources.
const MAX: u64 = 1 << 20;

pub(super) fn update(runtime: &Runtime, args: &UpdateArgs) -> Result<u8> {
    let resources = match args.resources.as_deref() {
        None => of_options(args),
        Some(path) => {
            let mut text = String::new();
            let read = match path.to_str() {
                Some("-") => std::io::stdin().take(MAX).read_to_string(&mut text),
                _ => std::fs::File::open(path).and_then(|f| f.take(MAX).read_to_string(&mut text)),
            };
            read.map_err(Error::io("read", path))?;
            serde_json::from_str(&text).map_err(|e| Error::corrupt(path, e))?
        }
    };
    runtime.update(&args.id, resources).map(|()| 0)
}

/// The specification's `linux.resources` of what the options say.
fn of_options(args: &UpdateArgs) -> Value {
    let mut made = json!({});
    let mut set = |group: &str, key: &str, value: Option<Value>| {
        if let Some(value) = value {
            made[group][key] = value;
        }
    };
    set("cpu", "period", args.cpu_period.map(Value::from));
    set("cpu", "quota", args.cpu_quota.map(Value::from));
    set("cpu", "burst", args.cpu_burst.map(Value::from));
    set("cpu", "realtimePeriod", args.cpu_rt_period.map(Value::from));
    set("cpu", "realtimeRuntime", args.cpu_rt_runtime.map(Value::from));
    set("cpu", "shares", args.cpu_share.map(Value::from));
    set("cpu", "idle", args.cpu_idle.map(Value::from));
    set("cpu", "cpus", args.cpuset_cpus.clone().map(Value::from));
    set("cpu", "mems", args.cpuset_mems.clone().map(Value::from));
    set("memory", "limit", args.memory.map(Value::from));
    set("memory", "reservation", args.memory_reservation.map(Value::from));
    set("memory", "swap", args.memory_swap.map(Value::from));
    set("pids", "limit", args.pids_limit.map(Value::from));
    set("blockIO", "weight", args.blkio_weight.map(Value::from));
    made
}

pub(super) fn events(runtime: &Runtime, args: &EventsArgs) -> Result<u8> {
    if args.stats {
        return print::json(&runtime.stats(&args.id)?, false);
    }
    let pause = args.interval.max(Duration::from_secs(1));
    // Before anything is printed: who reads it may take that for the beginning.
    let mut watch = runtime.watch(&args.id)?;
    loop {
        match runtime.stats(&args.id) {
            Ok(stats) => print::json(&stats, false)?,
            // It has ended meanwhile, and what it ended of is told still.
            Err(Error::WrongState { .. } | Error::NotFound { .. }) => 0,
            Err(e) => return Err(e),
        };
        let until = Instant::now() + pause;
        loop {
            match watch.next(until)? {
                Heard::Oom => print::json(&json!({"type": "oom", "id": args.id}), false)?,
                Heard::End => return Ok(0),
                Heard::Nothing => break,
            };
        }
    }
}

pub(super) fn ps(runtime: &Runtime, args: &PsArgs) -> Result<u8> {
    let pids = runtime.processes(&args.id)?;
    if args.format == Layout::Json {
        return print::json(&pids, false);
    }
    let options = if args.options.is_empty() { vec!["-ef".to_owned()] } else { args.options.clone() };
    let out = Command::new("ps").args(options).output().map_err(Error::io("run", "ps"))?;
    if !out.status.success() {
        let detail = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        return Err(Error::Program { program: "ps".into(), detail });
    }
    let text = String::from_utf8_lossy(&out.stdout);
    let title = text.lines().next().unwrap_or_default();
    let column = title.split_whitespace().position(|word| word == "PID");
    let column = column.ok_or_else(|| Error::usage("these options of ps show no PID"))?;
    let of_it = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    let lines = std::iter::once(title).chain(text.lines().skip(1).filter(of_it));
    print::text(&lines.map(|line| format!("{line}\n")).collect::<String>())
}
