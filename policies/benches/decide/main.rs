//! What a decision costs as the number of policies grows: `cargo bench -p postern-policies`.
//!
//! Beside it runs a scan over all policies, written by hand, which is what grows in other products.
//! `policies/benches/peers` measures the same work beside Cedar, and the memory.

#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]

mod work;

use std::time::Instant;

use work::{ROUNDS, SIZES, decide, load, median, rules, scan};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("policies  load        decide ns  scan ns");
    for size in SIZES {
        let began = Instant::now();
        let set = load(size)?;
        let took = began.elapsed();
        let own = median(ROUNDS, || decide(&set))?;
        let rules = rules(size);
        let scan = median(ROUNDS, || Ok(scan(&rules)))?;
        println!("{size:>8}  {took:>10.3?}  {own:>9}  {scan:>7}");
    }
    Ok(())
}
