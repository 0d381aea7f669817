//! The load, and what it costs the proxies.

use std::{fs, process::Command};

use anyhow::{Context as _, ensure};

use super::pairs::Pair;

/// How long each pair is under load in each repeat.
pub(crate) const SECONDS: u32 = 1;

/// One kind of load.
pub(crate) struct Cell {
    pub(crate) name: &'static str,
    path: &'static str,
    connections: u32,
    closes: bool,
}

impl Cell {
    pub(crate) const fn new(name: &'static str, path: &'static str, connections: u32) -> Self {
        Self {
            name,
            path,
            connections,
            closes: false,
        }
    }

    /// Each request has a connection of its own.
    pub(crate) const fn closing(mut self) -> Self {
        self.closes = true;
        self
    }
}

/// What one pair did under one load.
pub(crate) struct Measured {
    /// Processor time of both proxies for a request, in microseconds.
    pub(crate) cost: f64,
    /// Requests a second.
    pub(crate) rate: f64,
    /// In microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) errors: u64,
}

/// Puts one load on one pair.
pub(crate) fn measure(cell: &Cell, pair: &Pair) -> anyhow::Result<Measured> {
    let before = processor_time(pair)?;
    let mut wrk = Command::new("wrk");
    wrk.args(["--latency", "-t1"]);
    wrk.arg(format!("-c{}", cell.connections));
    wrk.arg(format!("-d{SECONDS}s"));
    if cell.closes {
        wrk.args(["-H", "Connection: close"]);
    }
    let output = wrk
        .args(["-H", "Host: web"])
        .arg(format!("http://{}{}", pair.entry, cell.path))
        .output()
        .context("`wrk` cannot be run; apt-get install wrk")?;
    let spent = processor_time(pair)? - before;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = |mark: &str, place: usize| {
        let line = said.lines().find(|line| line.contains(mark))?;
        line.split_whitespace().nth(place)
    };
    let requests: f64 = word("requests in", 0)
        .with_context(|| format!("{}: wrk said {said}", pair.name))?
        .parse()?;
    ensure!(requests > 0.0, "{}: no request was answered", pair.name);
    let refused: u64 = word("Non-2xx", 3).map_or(Ok(0), str::parse)?;
    // "Socket errors: connect 0, read 3, write 0, timeout 0"
    let broken = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("Socket errors:"));
    let broken = broken.map_or(0, |line| {
        let numbers = line.split([' ', ',']);
        numbers.filter_map(|word| word.parse::<u64>().ok()).sum()
    });
    // Some count the end of the load as a broken read.
    let errors = match cell.closes {
        true => refused,
        false => refused + broken,
    };
    Ok(Measured {
        cost: spent / requests,
        rate: word("Requests/sec", 1).unwrap_or("0").parse()?,
        p50: microseconds(word("50%", 1).unwrap_or_default())?,
        p99: microseconds(word("99%", 1).unwrap_or_default())?,
        errors,
    })
}

/// wrk's times: `71.00us`, `1.20ms`, `1.01s`.
fn microseconds(text: &str) -> anyhow::Result<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let found = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    let (number, factor) = found.with_context(|| format!("`{text}` is no time"))?;
    Ok(number.parse::<f64>()? * factor)
}

/// Microseconds that a pair has run, with what its threads ran that have ended.
fn processor_time(pair: &Pair) -> anyhow::Result<f64> {
    let mut ticks = 0.0;
    for pid in &pair.pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("no stat")?;
        for field in fields.split_whitespace().skip(11).take(2) {
            ticks += field.parse::<f64>()?;
        }
    }
    // USER_HZ is 100 on Linux.
    Ok(ticks * 10_000.0)
}

/// Resident memory of both together, in KiB.
pub(crate) fn resident(pair: &Pair) -> anyhow::Result<u64> {
    let mut sum = 0;
    for pid in &pair.pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.context("no VmRSS")?.trim().trim_end_matches(" kB");
        sum += number.parse::<u64>()?;
    }
    Ok(sum)
}
