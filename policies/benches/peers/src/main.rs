//! The policy engine beside Cedar and beside a scan written by hand, on the same decisions in one
//! run: nanoseconds of a decision, and bytes of a policy in memory.

#[path = "../../decide/work.rs"]
#[allow(dead_code, reason = "not all of the work is measured here")]
mod work;

use std::{alloc::System, fmt::Write as _, hint::black_box};

use cedar_policy::{Authorizer, Context, Decision, Entities, EntityUid, PolicySet, Request};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use work::{Answer, ROUNDS, SIZES, decide, is_own, load, median, rules, scan};

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    println!("policies  postern ns  cedar ns  scan ns  postern bytes/policy  cedar bytes/policy");
    for size in SIZES {
        let (set, bytes) = measured(|| load(size))?;
        let own = median(ROUNDS, || decide(&set))?;
        let (cedar, cedar_bytes) = measured(|| cedar_policies(size))?;
        let rounds = u32::try_from(200_000 / size.max(10))?.min(ROUNDS);
        let other = median(rounds, || ask_cedar(&cedar, rounds))?;
        let rules = rules(size);
        let scan = median(ROUNDS, || Ok(scan(&rules)))?;
        println!(
            "{size:>8}  {own:>10}  {other:>8}  {scan:>7}  {:>20}  {:>18}",
            bytes / size,
            cedar_bytes / size
        );
    }
    Ok(())
}

/// What stays allocated of what it makes.
fn measured<T>(make: impl FnOnce() -> Outcome<T>) -> Outcome<(T, usize)> {
    let region = Region::new(MEMORY);
    let made = make()?;
    let change = region.change();
    let bytes = change
        .bytes_allocated
        .saturating_sub(change.bytes_deallocated);
    Ok((made, bytes))
}

/// The same rules in Cedar's language.
fn cedar_policies(size: usize) -> Outcome<PolicySet> {
    let mut text = String::new();
    for index in 0..size {
        let app = if is_own(index, size) { "web" } else { "other" };
        write!(
            text,
            "permit(principal == Id::\"cluster.local/ns/default/sa/c{index}\", \
             action == Action::\"GET\", resource == Workload::\"default/{app}\") \
             when {{ context.path like \"/api/v1/*\" }};\n"
        )?;
    }
    Ok(text.parse()?)
}

fn ask_cedar(policies: &PolicySet, rounds: u32) -> Answer {
    let entity = |text: &str| text.parse::<EntityUid>();
    let path = cedar_policy::RestrictedExpression::new_string("/api/v1/orders".into());
    let context = Context::from_pairs([("path".to_owned(), path)])?;
    let request = Request::new(
        entity("Id::\"cluster.local/ns/default/sa/nobody\"")?,
        entity("Action::\"GET\"")?,
        entity("Workload::\"default/web\"")?,
        context,
        None,
    )?;
    let (authorizer, entities) = (Authorizer::new(), Entities::empty());
    let mut allowed = false;
    for _ in 0..rounds {
        let answer = authorizer.is_authorized(black_box(&request), policies, &entities);
        allowed |= answer.decision() == Decision::Allow;
    }
    Ok(allowed)
}
