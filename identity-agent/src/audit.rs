//! The audit log: who asked, what was found out, and what was told or why nothing was.
//!
//! One line each, with the target `audit`. No line has a key, a token, or the value of a container's
//! variable.

use postern_spiffe::Selector;

use crate::{
    agent::{Agent, Entitled, Refusal},
    attest::AttestError,
    caller::PinnedProcess,
    registry::nearest_misses,
};

/// Somebody was told what is theirs. `serials` are those of the X.509-SVIDs among it.
pub(crate) fn told(method: &str, process: &PinnedProcess, entitled: &Entitled, serials: &[String]) {
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
}

/// Somebody was refused. What they lack for the nearest Workload is for the log alone: to them it would
/// say what to pretend.
pub(crate) fn refused(agent: &Agent, method: &str, process: &PinnedProcess, refusal: &Refusal) {
    let nearest = match refusal {
        Refusal::NoWorkload(attested) => nearest(agent, &attested.selectors),
        Refusal::Attest(_) | Refusal::Drifted => None,
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

fn nearest(agent: &Agent, selectors: &std::collections::BTreeSet<Selector>) -> Option<String> {
    let set = agent.registry.current();
    let now = std::time::SystemTime::now();
    let in_force = set.workloads().filter(|one| one.is_in_force(now));
    let miss = nearest_misses(in_force, selectors, 1).pop()?;
    let missing: Vec<String> = miss
        .missing
        .iter()
        .map(|one| without_secrets(one))
        .collect();
    Some(format!(
        "{} lacks {}",
        miss.workload.name,
        missing.join(", ")
    ))
}

fn attestor(refusal: &Refusal) -> Option<&'static str> {
    match refusal {
        Refusal::Attest(AttestError::Failed { kind, .. }) => Some(kind),
        _ => None,
    }
}

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
