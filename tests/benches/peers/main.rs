//! What a pair of proxies costs, beside the peers: `cargo bench --workspace --bench peers [FILTER]`.
//!
//! load -> client's proxy -> TLS 1.3, both ends proven -> server's proxy -> nginx with a file. Every pair
//! has one worker to a process and the same certificates, and all take turns in each repeat. What counts
//! is the processor time of both proxies for a request, as the quotient to the best peer of the class in
//! the same repeat: that moves least with what else the machine does. Prints tables for
//! `docs/performance.md`. Needs `nginx haproxy stunnel4 wrk`, and takes Envoy where `tests/run` has put it.

#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]

mod load;
mod pairs;

use std::collections::BTreeMap;

use load::{Cell, Measured};
use pairs::{Class, Pair, Site};

const REPEATS: usize = 5;

/// What is asked for, and how.
const CELLS: [Cell; 5] = [
    Cell::new("HTTP/1.1, 1 connection", "/1k", 1),
    Cell::new("HTTP/1.1, 32 connections", "/1k", 32),
    Cell::new("HTTP/1.1, 256 connections", "/1k", 256),
    Cell::new("100 KB bodies, 32 connections", "/100k", 32),
    Cell::new("a connection for each request, 32 at once", "/1k", 32).closing(),
];

fn main() -> anyhow::Result<()> {
    // cargo adds `--bench`.
    let filter = std::env::args()
        .skip(1)
        .find(|word| !word.starts_with("--"));
    let mut site = Site::start()?;
    let pairs = pairs::start(&mut site, filter.as_deref())?;
    print_versions(&pairs);
    println!("\n| pair | at rest, KiB resident |\n|---|---|");
    for pair in &pairs {
        println!("| {} | {} |", pair.name, load::resident(pair)?);
    }
    for cell in &CELLS {
        let mut all: BTreeMap<&str, Vec<Measured>> = BTreeMap::new();
        for _ in 0..REPEATS {
            for pair in &pairs {
                let measured = load::measure(cell, pair)?;
                all.entry(pair.name).or_default().push(measured);
            }
        }
        print(cell, &pairs, &all);
    }
    Ok(())
}

fn print_versions(pairs: &[Pair]) {
    println!("{REPEATS} repeats of {} s", load::SECONDS);
    for pair in pairs.iter().filter(|pair| !pair.version.is_empty()) {
        println!("{}: {}", pair.name, pair.version);
    }
}

/// The table of one cell.
fn print(cell: &Cell, pairs: &[Pair], all: &BTreeMap<&str, Vec<Measured>>) {
    println!(
        "\n### {}\n\n| pair | processor us a request | quotient to the best peer | requests/s | p50 us | p99 us | errors |\n|---|---|---|---|---|---|---|",
        cell.name
    );
    for pair in pairs {
        let Some(own) = all.get(pair.name) else {
            continue;
        };
        let quotients = (0..REPEATS).filter_map(|repeat| {
            let peers = pairs
                .iter()
                .filter(|peer| peer.class == pair.class && !peer.is_ours);
            let costs = peers.filter_map(|peer| Some(all.get(peer.name)?.get(repeat)?.cost));
            let best = costs.min_by(f64::total_cmp)?;
            Some(own.get(repeat)?.cost / best)
        });
        let quotient = match pair.class {
            Class::Direct => String::new(),
            Class::Http | Class::Tcp => format!("{:.2}", median(quotients)),
        };
        let of = |value: fn(&Measured) -> f64| median(own.iter().map(value));
        println!(
            "| {} | {:.1} | {quotient} | {:.0} | {:.0} | {:.0} | {} |",
            pair.name,
            of(|one| one.cost),
            of(|one| one.rate),
            of(|one| one.p50),
            of(|one| one.p99),
            own.iter().map(|one| one.errors).sum::<u64>(),
        );
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
