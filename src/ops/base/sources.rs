//! Which of the host's apt sources a spark can use too.

/// Reads sources in apt's one-line form and in deb822 form, and returns those of a Debian suite as one-line
/// entries. Left out: what is not Debian's own archive, what is on the host's disk, and addresses with a
/// password in them, which would then be readable in every spark.
pub(super) fn usable(texts: &[(String, bool)], suite: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for (text, deb822) in texts {
        let sources = if *deb822 { stanzas(text) } else { one_liners(text) };
        for source in sources.iter().filter(|s| s.is_plain()) {
            for suite in source.suites.iter().filter(|s| belongs(s, suite)) {
                for uri in source.uris.iter().filter(|u| is_public(u)) {
                    let options =
                        source.signed_by.as_ref().map(|k| format!("[signed-by={k}] ")).unwrap_or_default();
                    let line = format!("deb {options}{uri} {suite} {}", source.components.join(" "));
                    if !lines.contains(&line) {
                        lines.push(line);
                    }
                }
            }
        }
    }
    // Without the suite itself the rest is of no use.
    let has_suite = lines.iter().any(|l| l.split(' ').any(|word| word == suite));
    if has_suite { lines } else { Vec::new() }
}

#[derive(Debug, Default)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
    /// It says something that is not understood here, or that it is not for binaries.
    odd: bool,
}

impl Source {
    fn is_plain(&self) -> bool {
        let debian = |key: &String| {
            key.starts_with("/usr/share/keyrings/debian-archive-") && !key.contains(char::is_whitespace)
        };
        !self.odd && self.signed_by.as_ref().is_none_or(debian) && self.components.iter().any(|c| c == "main")
    }
}

fn belongs(candidate: &str, suite: &str) -> bool {
    candidate
        .strip_prefix(suite)
        .is_some_and(|rest| matches!(rest, "" | "-updates" | "-security" | "-backports" | "/updates"))
}

fn is_public(uri: &str) -> bool {
    let Some(rest) = uri.strip_prefix("http://").or(uri.strip_prefix("https://")) else {
        return false;
    };
    !rest.split('/').next().unwrap_or_default().contains('@') && !rest.contains(char::is_whitespace)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn one_liners(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb ").map(str::trim) else {
            continue;
        };
        let mut source = Source::default();
        let rest = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((options, rest)) => {
                for option in options.split_whitespace() {
                    match option.split_once('=') {
                        Some(("signed-by", key)) => source.signed_by = Some(key.to_owned()),
                        Some(("arch", _)) => {}
                        _ => source.odd = true,
                    }
                }
                rest
            }
            None => rest,
        };
        let mut fields = rest.split_whitespace().map(str::to_owned);
        source.uris.extend(fields.next());
        source.suites.extend(fields.next());
        source.components.extend(fields);
        sources.push(source);
    }
    sources
}

fn stanzas(text: &str) -> Vec<Source> {
    let mut sources = vec![Source::default()];
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        if line.trim().is_empty() {
            sources.push(Source::default());
            continue;
        }
        let Some(source) = sources.last_mut() else {
            continue;
        };
        // A continued field, such as a key in place of its path.
        if line.starts_with([' ', '\t']) {
            source.odd = true;
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        match field.to_ascii_lowercase().as_str() {
            "types" => source.odd |= !value.split_whitespace().any(|t| t == "deb"),
            "uris" => source.uris = words(value),
            "suites" => source.suites = words(value),
            "components" => source.components = words(value),
            "signed-by" => source.signed_by = Some(value.trim().to_owned()),
            "architectures" => {}
            "enabled" => source.odd |= matches!(value.trim(), "no" | "false" | "0"),
            _ => source.odd = true,
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_own_sources_are_taken_in_both_forms() {
        let old = "# c\ndeb http://a/debian bookworm main contrib\ndeb-src http://a/debian bookworm main\n\
                   deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://a/security bookworm-security main # x\n";
        let new =
            "Types: deb\nURIs: http://b/debian\nSuites: bookworm bookworm-updates trixie\nComponents: main\n";
        assert_eq!(
            usable(&[(old.into(), false), (new.into(), true)], "bookworm"),
            [
                "deb http://a/debian bookworm main contrib",
                "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://a/security bookworm-security main",
                "deb http://b/debian bookworm main",
                "deb http://b/debian bookworm-updates main",
            ]
        );
    }

    #[test]
    fn strangers_local_disks_and_passwords_are_left_out() {
        let all = "deb http://p/apt bookworm-pgdg main\ndeb http://d/linux/debian bookworm stable\n\
                   deb [signed-by=/etc/apt/keyrings/x.gpg] http://x/debian bookworm main\n\
                   deb [trusted=yes] http://x/debian bookworm main\n\
                   deb http://user:secret@m/debian bookworm main\ndeb file:/srv/debian bookworm main\n\
                   deb http://m/debian bookworm-updates main\n";
        assert!(usable(&[(all.into(), false)], "bookworm").is_empty());
        let off = "Types: deb\nURIs: http://b/d\nSuites: bookworm\nComponents: main\nEnabled: no\n\n\
                   Types: deb-src\nURIs: http://b/d\nSuites: bookworm\nComponents: main\n";
        assert!(usable(&[(off.into(), true)], "bookworm").is_empty());
    }
}
