//! Resource limits and the notations they are given in.

/// Processes a spark may have unless told otherwise, on a host that can run twice as many.
pub const DEFAULT_PIDS: i64 = 4096;
/// Files that one process may have open unless told otherwise, on a host that allows eight times as many in all.
const DEFAULT_FILES: u64 = 524_288;

/// What the default limits are, for those who ask where one comes from.
pub const MEMORY_DEFAULT: &str = "default: half of the host's memory";
pub const PIDS_DEFAULT: &str = "default: 4096, or half of what the host can run";

/// The kernel counts memory in pages.
const PAGE: u64 = 4096;

/// What a host has, for limits that are sized to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSize {
    /// Bytes of memory.
    pub memory: u64,
    /// Processes and threads that the kernel can run.
    pub tasks: u64,
}

/// The limits of a spark where neither its own options nor its bundle template say anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Bytes of memory. None on a host that cannot limit it.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: i64,
}

impl Defaults {
    /// Half of the host, in memory and in processes, so that one spark cannot take all of it.
    pub fn of(host: HostSize) -> Defaults {
        Defaults {
            memory: Some(host.memory / 2 / PAGE * PAGE),
            pids: i64::try_from(host.tasks / 2).map_or(DEFAULT_PIDS, |half| half.clamp(64, DEFAULT_PIDS)),
        }
    }
}

/// Files that one process may have open unless told otherwise, of those that all processes of the host may have open.
pub fn default_files(of_host: u64) -> u64 {
    (of_host / 8).clamp(1024, DEFAULT_FILES)
}

/// Where a limit comes from. The first that says something counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitSource {
    /// The spark's own options.
    Options,
    /// The bundle template.
    Template,
    /// The default, which is sized to the host.
    Default,
}

/// What a spark is limited to, whoever said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveLimits {
    /// Bytes of memory, if there is a limit.
    pub memory: Option<u64>,
    pub memory_from: LimitSource,
    pub cpus_milli: Option<u64>,
    pub pids: i64,
    pub pids_from: LimitSource,
    pub io: Option<u64>,
}

impl EffectiveLimits {
    /// The bytes from which on the kernel takes memory back and slows processes down, which only a default limit has:
    /// nobody chose that, so that what comes near it gets slower before it is killed.
    pub fn soft_memory(&self) -> Option<u64> {
        let limit = self.memory.filter(|_| self.memory_from == LimitSource::Default)?;
        Some((limit - limit / 16) / PAGE * PAGE)
    }
}

/// A limit of memory, or that there is to be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "WrittenMemory", into = "WrittenMemory")]
pub enum Memory {
    Bytes(u64),
    Unlimited,
}

/// How a record has it: a number, or `none`.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum WrittenMemory {
    Bytes(u64),
    Word(String),
}

impl From<Memory> for WrittenMemory {
    fn from(memory: Memory) -> WrittenMemory {
        match memory {
            Memory::Bytes(bytes) => WrittenMemory::Bytes(bytes),
            Memory::Unlimited => WrittenMemory::Word(NONE.into()),
        }
    }
}

impl TryFrom<WrittenMemory> for Memory {
    type Error = String;

    fn try_from(written: WrittenMemory) -> Result<Memory, String> {
        match written {
            WrittenMemory::Bytes(bytes) => Ok(Memory::Bytes(bytes)),
            WrittenMemory::Word(word) => parse_memory(&word),
        }
    }
}

/// The word for no limit, and for the default.
const NONE: &str = "none";
const DEFAULT: &str = "default";

/// What a spark may use of the host.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Processors, in thousandths: 1500 is one and a half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus_milli: Option<u64>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<i64>,
    /// Bytes a second that are read from the pool's disks, and as many that are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<u64>,
    /// Bytes that it may write into the pool and keep there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
}

impl Limits {
    /// Fails for what no command line would have taken: they come from elsewhere.
    pub fn check(&self) -> Result<(), String> {
        let text = |n: u64| n.to_string();
        if let Some(Memory::Bytes(bytes)) = self.memory {
            parse_memory(&text(bytes))?;
        }
        self.cpus_milli.map(|n| parse_cpus(&format!("{}", n as f64 / 1000.0))).transpose()?;
        self.pids.map(|n| parse_pids(&n.to_string())).transpose()?;
        self.io.map(|n| parse_rate(&text(n))).transpose()?;
        self.disk.map(|n| parse_disk(&text(n))).transpose()?;
        Ok(())
    }

    /// These, and `old` where there is none.
    pub fn over(self, old: Limits) -> Limits {
        Limits {
            memory: self.memory.or(old.memory),
            cpus_milli: self.cpus_milli.or(old.cpus_milli),
            pids: self.pids.or(old.pids),
            io: self.io.or(old.io),
            disk: self.disk.or(old.disk),
        }
    }
}

/// What a limit is set to: a value, or what counts where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting<T> {
    To(T),
    Lifted,
}

/// Limits to set, for a spark that is there. What is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitChanges {
    pub memory: Option<Setting<Memory>>,
    pub cpus_milli: Option<Setting<u64>>,
    pub pids: Option<Setting<i64>>,
    pub io: Option<Setting<u64>>,
    pub disk: Option<Setting<u64>>,
}

impl LimitChanges {
    /// What becomes of a spark's limits.
    pub fn over(&self, old: &Limits) -> Limits {
        Limits {
            memory: set(self.memory, old.memory),
            cpus_milli: set(self.cpus_milli, old.cpus_milli),
            pids: set(self.pids, old.pids),
            io: set(self.io, old.io),
            disk: set(self.disk, old.disk),
        }
    }
}

fn set<T>(change: Option<Setting<T>>, old: Option<T>) -> Option<T> {
    match change {
        None => old,
        Some(Setting::To(value)) => Some(value),
        Some(Setting::Lifted) => None,
    }
}

/// Parses `none`, or a value.
pub fn parse_setting<T>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Setting<T>, String> {
    if text == NONE { Ok(Setting::Lifted) } else { parse(text).map(Setting::To) }
}

/// Bytes in powers of 1024, as people read them.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Parses `512M`, `2G`, `1.5GiB`, `1048576` into bytes. Suffixes are powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.trim().to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("`{text}` is not a size: write it like 512M or 2G")),
    };
    let value: f64 =
        number.parse().map_err(|_| format!("`{text}` is not a size: write it like 512M or 2G"))?;
    let bytes = value * (1u64 << shift) as f64;
    // 2^63: what the kernel's files take as a signed number.
    if !(bytes.is_finite() && (1.0..9.2e18).contains(&bytes)) {
        return Err(format!("`{text}` is out of range"));
    }
    Ok(bytes as u64)
}

/// Parses `--memory`, refusing what no process could start in.
pub fn parse_memory(text: &str) -> Result<Memory, String> {
    const LEAST: u64 = 4 << 20;
    if text == NONE {
        return Ok(Memory::Unlimited);
    }
    match parse_size(text)? {
        bytes if bytes < LEAST => {
            Err(format!("`{text}` is too little memory to start anything: at least 4M"))
        }
        bytes => Ok(Memory::Bytes(bytes)),
    }
}

/// Parses `--memory` of `set`, which can go back to the default too.
pub fn parse_memory_setting(text: &str) -> Result<Setting<Memory>, String> {
    if text == DEFAULT { Ok(Setting::Lifted) } else { parse_memory(text).map(Setting::To) }
}

/// Parses `--io`, such as `20M`, into bytes a second. A `/s` behind it is taken for what it says.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 64 << 10;
    match parse_size(text.strip_suffix("/s").unwrap_or(text))? {
        bytes if bytes < LEAST => Err(format!("`{text}` is too slow to work with: at least 64K a second")),
        bytes => Ok(bytes),
    }
}

/// Parses `--disk`, refusing what nothing could be written with.
pub fn parse_disk(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 1 << 20;
    match parse_size(text)? {
        bytes if bytes < LEAST => Err(format!("`{text}` is too little to write anything: at least 1M")),
        bytes => Ok(bytes),
    }
}

/// Parses `1.5` processors into thousandths.
pub fn parse_cpus(text: &str) -> Result<u64, String> {
    let value: f64 =
        text.parse().map_err(|_| format!("`{text}` is not a number of processors: write it like 1.5"))?;
    if !(0.01..=4096.0).contains(&value) {
        return Err(format!("`{text}` is out of range: 0.01 to 4096 processors"));
    }
    Ok((value * 1000.0).round() as u64)
}

/// Parses `--pids`: at least 2, so that PID 1 and a command fit.
pub fn parse_pids(text: &str) -> Result<i64, String> {
    match text.parse::<i64>() {
        Ok(n) if (2..=4_194_304).contains(&n) => Ok(n),
        _ => Err(format!("`{text}` is not a number of processes: 2 to 4194304")),
    }
}

/// Parses `30s`, `5m`, `2h`, `500ms`, `1d`, or a bare number of seconds.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let bad = || format!("`{text}` is not a time: write it like 500ms, 30s, 5m or 2h");
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let value: f64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "ms" => value / 1000.0,
        "" | "s" => value,
        "m" => value * 60.0,
        "h" => value * 3600.0,
        "d" => value * 86400.0,
        _ => return Err(bad()),
    };
    if !(0.0..1e10).contains(&seconds) {
        return Err(bad());
    }
    Ok(std::time::Duration::from_secs_f64(seconds))
}

/// Parses `--idle-stop` into seconds, of which PID 1 counts whole ones: at least one, or `never`, which is 0.
pub fn parse_idle_stop(text: &str) -> Result<u32, String> {
    if ["never", "none", "off"].contains(&text) {
        return Ok(0);
    }
    let bad = || format!("`{text}` is not a time to be idle for: write it like 30s, 10m or 2h, or `never`");
    let time = parse_duration(text).map_err(|_| bad())?;
    match u32::try_from(time.as_secs()) {
        Ok(seconds) if seconds > 0 || time.is_zero() => Ok(seconds),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        assert_eq!(parse_size("1.5MiB"), Ok(3 << 19));
        assert_eq!(parse_size("512mb"), Ok(512 << 20));
        for bad in ["", "x", "-1", "0", "1e99", "9999999999T", "1.2.3G", "G", "4X"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_limit_is_set_lifted_or_left_as_it_is() {
        let old = Limits { memory: Some(Memory::Bytes(1)), pids: Some(2), io: Some(3), ..Limits::default() };
        let changes = LimitChanges {
            memory: Some(Setting::Lifted),
            pids: Some(Setting::To(4)),
            ..LimitChanges::default()
        };
        let new = Limits { pids: Some(4), io: Some(3), ..Limits::default() };
        assert_eq!(changes.over(&old), new);
        assert_eq!(parse_setting("none", parse_disk), Ok(Setting::Lifted));
        assert_eq!(parse_setting("4M", parse_disk), Ok(Setting::To(4 << 20)));
        assert!(parse_setting("None", parse_disk).is_err());
        assert_eq!((parse_rate("1M/s"), parse_rate("1M")), (Ok(1 << 20), Ok(1 << 20)));
        assert!(parse_rate("1K").is_err() && parse_disk("4K").is_err());
    }

    #[test]
    fn limits_from_elsewhere_have_the_same_bounds() {
        let none = Limits::default;
        assert!(Limits { memory: Some(Memory::Bytes(64 << 20)), pids: Some(64), ..none() }.check().is_ok());
        for bad in [
            Limits { memory: Some(Memory::Bytes(u64::MAX)), ..none() },
            Limits { cpus_milli: Some(0), ..none() },
            Limits { pids: Some(-1), ..none() },
            Limits { io: Some(1), ..none() },
            Limits { disk: Some(0), ..none() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn defaults_are_half_of_a_host_and_not_more_than_any_spark_needs() {
        let small = HostSize { memory: (1 << 30) + 5000, tasks: 7000 };
        assert_eq!(Defaults::of(small), Defaults { memory: Some(1 << 29), pids: 3500 });
        let large = HostSize { memory: 1 << 40, tasks: 4_000_000 };
        assert_eq!(Defaults::of(large), Defaults { memory: Some(1 << 39), pids: 4096 });
        assert_eq!((default_files(100_000), default_files(u64::MAX)), (12_500, 524_288));
    }

    #[test]
    fn no_limit_of_memory_is_written_and_read_as_a_word() {
        for (memory, written) in [(Memory::Bytes(64 << 20), "67108864"), (Memory::Unlimited, "\"none\"")] {
            assert_eq!(serde_json::to_string(&memory).unwrap(), written);
            assert_eq!(serde_json::from_str::<Memory>(written).unwrap(), memory);
        }
        assert!(serde_json::from_str::<Memory>("\"some\"").is_err());
        assert_eq!(parse_memory_setting("none"), Ok(Setting::To(Memory::Unlimited)));
        assert_eq!(parse_memory_setting("default"), Ok(Setting::Lifted));
        assert!(parse_memory("default").is_err() && parse_memory_setting("1").is_err());
    }

    #[test]
    fn durations_and_processors_have_units_and_bounds() {
        assert_eq!(parse_duration("500ms").unwrap().as_millis(), 500);
        assert_eq!(parse_duration("2h").unwrap().as_secs(), 7200);
        assert!(parse_duration("5 fortnights").is_err());
        assert_eq!((parse_idle_stop("10m"), parse_idle_stop("never")), (Ok(600), Ok(0)));
        assert_eq!((parse_idle_stop("none"), parse_idle_stop("off")), (Ok(0), Ok(0)));
        assert!(parse_idle_stop("500ms").is_err() && parse_idle_stop("1000000d").is_err());
        assert_eq!(parse_cpus("1.5"), Ok(1500));
        assert!(parse_cpus("0").is_err() && parse_cpus("nan").is_err());
        assert!(parse_pids("1").is_err() && parse_pids("x").is_err());
    }
}
