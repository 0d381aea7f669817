//! The audit log: who asked, what was found out, and what was told or why nothing was.
//!
//! One line each, with the target `audit`. No line has a key, a token, or the value of a container's
//! variable.
//!
//! Nobody is told anything whose line would be lost: a request waits until the log's queue has a place for
//! its line, without a thread, and is refused when that takes too long.

use std::time::Duration;

use postern_lines::Lines;
use postern_spiffe::Selector;
use tokio::time::timeout;
use tonic::Status;
use tracing::Level;

use crate::{
    agent::{Agent, Entitled, Refusal, why_missing},
    attest::{AttestError, Attested},
    caller::PinnedProcess,
    registry::nearest_misses,
    telemetry,
};

/// Waits until the audit log takes lines. Called before it is looked at what somebody may be told, so
/// that nothing is told that was true before the wait.
///
/// # Errors
/// Nobody reads the log, or its disk is too slow: `Unavailable`.
pub(crate) async fn room(agent: &Agent) -> Result<(), Status> {
    let Some(log) = written() else { return Ok(()) };
    let room = timeout(PATIENCE, log.room()).await;
    room.map_err(|_| unwritten(agent))
}

/// The log, unless it leaves these lines out.
fn written() -> Option<&'static Lines> {
    telemetry::log().filter(|_| tracing::enabled!(target: "audit", Level::INFO))
}

fn unwritten(agent: &Agent) -> Status {
    agent.metrics.reached(telemetry::AUDIT_LOG);
    Status::unavailable("the audit log cannot be written now")
}

/// Somebody is about to be told what is theirs. `serials` are those of the X.509-SVIDs among it.
///
/// # Errors
/// The line would be lost: `Unavailable`, and nothing may be told.
pub(crate) fn tells(
    agent: &Agent,
    method: &str,
    process: &PinnedProcess,
    entitled: &Entitled,
    serials: &[String],
) -> Result<(), Status> {
    if !written().is_none_or(Lines::has_room) {
        return Err(unwritten(agent));
    }
    let workloads = entitled.workloads.iter();
    let names: Vec<String> = workloads.clone().map(|one| one.name.to_string()).collect();
    let ids: Vec<&str> = workloads
        .clone()
        .map(|one| one.spiffe_id.as_str())
        .collect();
    let selectors = workloads.flat_map(|one| &one.selectors);
    let attested: Vec<String> = selectors.map(without_secrets).collect();
    tracing::info!(
        target: "audit",
        method,
        pid = process.pid(),
        uid = process.uid(),
        pod = ?entitled.pod,
        workloads = ?names,
        spiffe_ids = ?ids,
        attested = ?attested,
        serials = ?serials,
        "told"
    );
    Ok(())
}

/// Somebody was refused. What they lack for the nearest Workload is for the log alone: to them it would
/// say what to pretend.
pub(crate) fn refused(agent: &Agent, method: &str, process: &PinnedProcess, refusal: &Refusal) {
    let nearest = match refusal {
        Refusal::NoWorkload(attested) => nearest(agent, attested),
        Refusal::Attest(_) | Refusal::Lack(_) | Refusal::NotSynced | Refusal::Drifted => None,
    };
    tracing::info!(
        target: "audit",
        method,
        pid = process.pid(),
        uid = process.uid(),
        reason = refusal.label(),
        attestor = attestor(refusal),
        why = %refusal,
        nearest,
        "refused"
    );
    if let Refusal::NoWorkload(attested) = refusal {
        let attested: Vec<String> = attested.selectors.iter().map(without_secrets).collect();
        tracing::debug!(target: "audit", pid = process.pid(), ?attested, "attested");
    }
}

fn nearest(agent: &Agent, attested: &Attested) -> Option<String> {
    let set = agent.registry.current();
    let now = std::time::SystemTime::now();
    let in_force = set.workloads().filter(|one| one.is_in_force(now));
    let miss = nearest_misses(in_force, &attested.selectors, 1).pop()?;
    let missing: Vec<String> = miss
        .missing
        .iter()
        .map(|one| without_secrets(one))
        .collect();
    let mut text = format!("{} lacks {}", miss.workload.name, missing.join(", "));
    for why in why_missing(&miss.missing, attested) {
        text.push_str("; ");
        text.push_str(&why);
    }
    Some(text)
}

fn attestor(refusal: &Refusal) -> Option<&'static str> {
    match refusal {
        Refusal::Attest(AttestError::Failed { kind, .. } | AttestError::NoAnswer { kind, .. }) => {
            Some(kind)
        }
        _ => None,
    }
}

/// How long a request waits for its line. Clients give up on their own after some seconds more.
const PATIENCE: Duration = Duration::from_secs(5);

/// A selector for the log. Values of variables are often passwords.
pub(crate) fn without_secrets(selector: &Selector) -> String {
    let text = selector.to_string();
    match text.split_once('=') {
        Some((name, _)) if name.starts_with("docker:env:") => format!("{name}=<hidden>"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use postern_spiffe::Selector;

    use super::without_secrets;

    #[test]
    fn the_log_has_the_names_of_variables_alone() {
        // FAULTS 50
        for (selector, shown) in [
            ("docker:env:PASSWORD=a=b", "docker:env:PASSWORD=<hidden>"),
            ("docker:label:a:b=c", "docker:label:a:b=c"),
            ("unix:uid:0", "unix:uid:0"),
        ] {
            assert_eq!(without_secrets(&Selector::parse(selector).unwrap()), shown);
        }
    }
}
