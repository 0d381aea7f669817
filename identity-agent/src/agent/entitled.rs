//! What a caller is entitled to, and why he gets nothing.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::SystemTime,
};

use postern_policies::{
    PolicySet,
    model::workload::{Workload, WorkloadName},
};
use postern_spiffe::TrustDomain;

use super::NotNoted;
use crate::{
    attest::{AttestError, Attested, Pod, reading::Lack},
    authority::StateError,
    caller::PinnedProcess,
    registry::matching,
};

/// What a caller is entitled to at this moment. Never empty.
#[derive(Debug)]
pub struct Entitled {
    /// The Workloads it is, in a fixed order.
    pub workloads: Vec<Workload>,
    /// Its pod.
    pub pod: Pod,
    /// Its effective user.
    pub uid: u32,
}

impl Entitled {
    /// The Workloads that a process is, drift aside; none if there is none.
    pub(crate) fn of(
        process: &PinnedProcess,
        attested: &Attested,
        set: &PolicySet,
        now: SystemTime,
    ) -> Option<Self> {
        let in_force = set.workloads().filter(|workload| workload.is_in_force(now));
        let matching = matching(in_force, &attested.selectors).into_iter();
        let workloads: Vec<Workload> = matching.cloned().collect();
        let (pod, uid) = (attested.pod, process.uid());
        (!workloads.is_empty()).then_some(Self {
            workloads,
            pod,
            uid,
        })
    }

    /// The trust domains whose bundles it gets beside its own.
    pub fn federates_with(&self) -> BTreeSet<TrustDomain> {
        let all = self.workloads.iter();
        all.flat_map(|workload| workload.federates_with.iter().cloned())
            .collect()
    }
}

/// Why a caller gets no identity.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It could not be attested.
    #[error(transparent)]
    Attest(AttestError),
    /// The agent lacks something to look at it, or at its pod.
    #[error(transparent)]
    Lack(Lack),
    /// No Workload has its selectors.
    #[error("no Workload has the selectors of this process")]
    NoWorkload(Arc<Attested>),
    /// No Workload has its selectors, and the API server is still to tell more of them.
    #[error("the API server has not told yet which pods there are")]
    NotSynced,
    /// Its pod is not what the baseline says.
    #[error("the pod has drifted from its baseline")]
    Drifted,
}

impl Refusal {
    /// Does it say nothing about the process, so that it keeps what it has for a while and may ask
    /// again?
    pub fn is_nobodys_fault(&self) -> bool {
        matches!(
            self,
            Self::Lack(_) | Self::NotSynced | Self::Attest(AttestError::NoAnswer { .. })
        )
    }

    /// A short, stable label for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Attest(AttestError::NoAnswer { .. }) => "no_answer",
            Self::Attest(_) => "attestation",
            Self::Lack(_) => "lack",
            Self::NoWorkload(_) => "no_workload",
            Self::NotSynced => "not_synced",
            Self::Drifted => "drift",
        }
    }
}

/// Why there is no SVID for somebody who is entitled to it. Counted and logged already.
#[derive(Debug, thiserror::Error)]
pub enum CannotIssue {
    /// It could not be signed, or the lists that go with it.
    #[error(transparent)]
    Signer(#[from] StateError),
    /// It could not be noted, so nobody could take it back.
    #[error(transparent)]
    Ledger(#[from] NotNoted),
}

impl CannotIssue {
    /// What a caller is told: enough to know who can mend it.
    pub fn told(&self) -> &'static str {
        match self {
            Self::Signer(_) => "cannot issue now",
            Self::Ledger(NotNoted::Full) => "cannot issue now: too many identities are out there",
            Self::Ledger(NotNoted::FullOfUser(_)) => {
                "cannot issue now: too many identities of this user are out there"
            }
            Self::Ledger(NotNoted::Write(_)) => {
                "cannot issue now: the agent cannot write down what it issues"
            }
        }
    }
}

impl From<AttestError> for Refusal {
    fn from(error: AttestError) -> Self {
        match error {
            AttestError::Lack(lack) => Self::Lack(lack),
            other => Self::Attest(other),
        }
    }
}

/// Hints are unique in an answer: of two Workloads with one hint the older one is taken, and of two
/// of one age the first by name. Spec: SPIFFE Workload API section 5.2.1.
pub(crate) fn keep_first_of_each_hint(workloads: &mut Vec<Workload>) {
    let mut first: HashMap<String, (Option<SystemTime>, WorkloadName)> = HashMap::new();
    for workload in workloads.iter() {
        let Some(hint) = &workload.hint else { continue };
        let own = (workload.created, workload.name.clone());
        match first.get_mut(hint) {
            Some(known) => *known = own.min(known.clone()),
            None => drop(first.insert(hint.clone(), own)),
        }
    }
    workloads.retain(|workload| {
        let chosen = workload.hint.as_ref().and_then(|hint| first.get(hint));
        let is_chosen = chosen.is_none_or(|(_, name)| *name == workload.name);
        if !is_chosen {
            tracing::debug!(workload = %workload.name, hint = workload.hint, "another Workload of the same process has this hint; this one is left out");
        }
        is_chosen
    });
}

#[cfg(test)]
mod tests {
    use std::{
        path::PathBuf,
        time::{Duration, SystemTime},
    };

    use postern_policies::{Options, PolicySet, SourceFile, model::workload::Workload};
    use postern_spiffe::TrustDomain;

    use super::keep_first_of_each_hint;

    #[test]
    fn of_two_workloads_with_one_hint_the_older_one_is_told() {
        // FAULTS 45
        let document = |name: &str, hint: &str| {
            format!(
                "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: {name}}}\n\
                 spec: {{spiffeID: 'spiffe://example.org/{name}'{hint}}}\n---\n"
            )
        };
        let text = document("a", ", hint: x") + &document("b", ", hint: x") + &document("c", "");
        let file = SourceFile {
            path: PathBuf::from("w.yaml"),
            text: text.into_bytes(),
        };
        let options = Options::new(TrustDomain::parse("example.org").unwrap());
        let set = PolicySet::load(&[file], &options).unwrap().set;
        let names = |mut all: Vec<Workload>| {
            keep_first_of_each_hint(&mut all);
            let names = all.iter().map(|one| one.name.name.to_string());
            names.collect::<Vec<_>>()
        };
        let mut all: Vec<Workload> = set.workloads().cloned().collect();
        assert_eq!(names(all.clone()), ["a", "c"]);
        let (old, new) = (
            SystemTime::UNIX_EPOCH,
            SystemTime::UNIX_EPOCH + Duration::from_secs(9),
        );
        for (workload, created) in all.iter_mut().zip([new, old]) {
            workload.created = Some(created);
        }
        assert_eq!(names(all), ["b", "c"]);
    }
}
