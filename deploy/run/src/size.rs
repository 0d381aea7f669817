//! Sizes, shares of a processor and limits, as users of `docker run` write them.

/// Bytes: `64m`, `64MiB`, `1g`, `4096`. The units are powers of 1024, as with Docker.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let hint =
        || format!("`{text}` is no size; write bytes, or a whole number with k, m or g: `64m`");
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(split).ok_or_else(hint)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(hint()),
    };
    let number: u64 = number.parse().map_err(|_| hint())?;
    let size = number.checked_mul(1 << shift).filter(|&size| size > 0);
    size.ok_or_else(|| format!("`{text}` is too much or nothing"))
}

/// Processors, `0.5` or `2`, as microseconds of each [`PERIOD`].
pub(crate) fn processors(text: &str) -> Result<u64, String> {
    let hint = || format!("`{text}` is no number of processors; write `0.5` or `2`");
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 5 {
        return Err(hint());
    }
    let whole: u64 = whole.parse().map_err(|_| hint())?;
    let part: u64 = format!("{part:0<5}").parse().map_err(|_| hint())?;
    let quota = whole
        .checked_mul(PERIOD)
        .and_then(|all| all.checked_add(part));
    match quota {
        Some(quota) if quota >= LEAST_QUOTA => Ok(quota),
        Some(_) => Err(format!(
            "`{text}` processors are too few; the kernel's least is 0.01"
        )),
        None => Err(hint()),
    }
}

/// A resource limit: `nofile=1024`, `nofile=1024:2048`, `core=unlimited`.
pub(crate) fn limit(text: &str) -> Result<ResourceLimit, String> {
    let hint = || {
        let names: Vec<&str> = RESOURCES.iter().map(|(name, _)| *name).collect();
        format!(
            "`{text}` is no limit; write NAME=SOFT[:HARD] with one of {}",
            names.join(", ")
        )
    };
    let (name, values) = text.split_once('=').ok_or_else(hint)?;
    let known = RESOURCES.iter().find(|(known, _)| *known == name);
    let (name, _) = known.ok_or_else(hint)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |text: &str| match text {
        "unlimited" => Ok(None),
        text => text.parse().map(Some).map_err(|_| hint()),
    };
    Ok(ResourceLimit {
        name: (*name).to_owned(),
        soft: number(soft)?,
        hard: number(hard)?,
    })
}

/// One of `ulimit`'s.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ResourceLimit {
    name: String,
    soft: Option<u64>,
    hard: Option<u64>,
}

impl ResourceLimit {
    /// No core files, unless somebody wants some.
    pub(crate) fn no_core() -> Self {
        Self {
            name: "core".to_owned(),
            soft: Some(0),
            hard: Some(0),
        }
    }

    /// Sets it for this process.
    pub(crate) fn set(&self) -> anyhow::Result<()> {
        use anyhow::Context as _;
        let known = RESOURCES.iter().find(|(name, _)| *name == self.name);
        let (name, resource) = known.context("a limit of no known name")?;
        let limit = rustix::process::Rlimit {
            current: self.soft,
            maximum: self.hard,
        };
        rustix::process::setrlimit(*resource, limit)
            .with_context(|| format!("cannot set the limit `{name}`; it may be above the caller's"))
    }
}

/// How often the kernel gives out time, in microseconds.
pub(crate) const PERIOD: u64 = 100_000;
const LEAST_QUOTA: u64 = 1_000;

const RESOURCES: [(&str, rustix::process::Resource); 11] = {
    use rustix::process::Resource;
    [
        ("as", Resource::As),
        ("core", Resource::Core),
        ("cpu", Resource::Cpu),
        ("data", Resource::Data),
        ("fsize", Resource::Fsize),
        ("memlock", Resource::Memlock),
        ("nice", Resource::Nice),
        ("nofile", Resource::Nofile),
        ("nproc", Resource::Nproc),
        ("sigpending", Resource::Sigpending),
        ("stack", Resource::Stack),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_dockers() {
        for (text, size) in [
            ("64m", 64 << 20),
            ("1g", 1 << 30),
            ("4096", 4096),
            ("2KiB", 2048),
        ] {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in [
            "",
            "m",
            "1.5g",
            "-1",
            "0",
            "64x",
            "99999999999999999999",
            "18014398509481984k",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_of_a_processor_are_exact() {
        for (text, quota) in [
            ("0.5", 50_000),
            ("2", 200_000),
            ("1.25", 125_000),
            ("0.01", 1_000),
        ] {
            assert_eq!(processors(text), Ok(quota), "{text}");
        }
        for text in ["", ".5", "1.", "-1", "0", "0.001", "1e3", "0.123456"] {
            assert!(processors(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_have_one_value_or_two() {
        let parsed = limit("nofile=10:20").unwrap();
        assert_eq!((parsed.soft, parsed.hard), (Some(10), Some(20)));
        assert_eq!(limit("core=unlimited").unwrap().soft, None);
        for text in ["nofile", "nofile=", "nofile=1:2:3", "files=1", "nofile=-1"] {
            assert!(limit(text).is_err(), "{text}");
        }
    }
}
