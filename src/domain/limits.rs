//! Resource limits and the notations they are given in.

/// Processes a spark may have unless told otherwise.
pub const DEFAULT_PIDS: i64 = 4096;

/// What a spark may use of the host.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processors, in thousandths: 1500 is one and a half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus_milli: Option<u64>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<i64>,
}

impl Limits {
    /// These, and `old` where there is none.
    pub fn over(self, old: Limits) -> Limits {
        Limits {
            memory: self.memory.or(old.memory),
            cpus_milli: self.cpus_milli.or(old.cpus_milli),
            pids: self.pids.or(old.pids),
        }
    }
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
pub fn parse_memory(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 4 << 20;
    match parse_size(text)? {
        bytes if bytes < LEAST => {
            Err(format!("`{text}` is too little memory to start anything: at least 4M"))
        }
        bytes => Ok(bytes),
    }
}

/// Parses `1.5` processors into thousandths.
pub fn parse_cpus(text: &str) -> Result<u64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of processors"))?;
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
    fn durations_and_processors_have_units_and_bounds() {
        assert_eq!(parse_duration("500ms").unwrap().as_millis(), 500);
        assert_eq!(parse_duration("2h").unwrap().as_secs(), 7200);
        assert!(parse_duration("5 fortnights").is_err());
        assert_eq!(parse_cpus("1.5"), Ok(1500));
        assert!(parse_cpus("0").is_err() && parse_cpus("nan").is_err());
        assert!(parse_pids("1").is_err() && parse_pids("x").is_err());
    }
}
