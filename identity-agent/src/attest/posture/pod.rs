//! `pod:` selectors: what is true of every process of the caller's pod.
//!
//! The caller may be as it should be while another process of the pod, such as one that was put there by
//! `docker exec`, is not.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    Asked, AttestFailed, Attestor, Finding, Posture, Report, Subject, Verdict, why_lacking,
};
use crate::{
    attest::{AttestError, Attestors, Finding as AnyFinding, reading::ReadError, with_subject},
    caller::{PinError, PinnedProcess},
    drift::{Drift, Wanted},
};

/// States `pod:posture:` selectors, while a Workload asks for one: all processes of the machine are looked
/// at to find those of the pod.
#[derive(Debug)]
pub struct PodPosture {
    posture: Arc<Posture>,
    /// Finds the pods of this machine.
    machine: Attestors,
    members: Drift,
    is_spared: AtomicBool,
}

impl PodPosture {
    /// By what this one finds out about each process.
    pub fn new(posture: Arc<Posture>) -> Self {
        Self {
            posture,
            machine: Attestors::new(Vec::new()),
            members: Drift::default(),
            is_spared: AtomicBool::new(false),
        }
    }

    /// The processes of the caller's pod, the caller first.
    fn members(&self, subject: &Subject<'_>) -> Result<Vec<i32>, AttestFailed> {
        let pod = self.machine.pod(subject.folder);
        let pod = pod.map_err(|error| match error {
            ReadError::Lack(lack) => lack.into(),
            _ => AttestFailed::new("its pod cannot be told"),
        })?;
        let wanted = Wanted {
            pods: HashSet::from([pod]),
            ..Wanted::default()
        };
        let scan = self.members.scan(&self.machine, &wanted);
        if let Some(lack) = scan.lack {
            return Err(lack.into());
        }
        let caller = subject.process.pid();
        let seen = scan.seen.get(&pod).into_iter();
        let seen = seen.flat_map(|seen| &seen.processes);
        let others = seen.map(|seen| seen.pid).filter(|pid| *pid != caller);
        Ok(std::iter::once(caller).chain(others).collect())
    }

    /// What is true of all processes of the caller's pod, and how they stand.
    fn look(&self, subject: &Subject<'_>) -> Result<(BTreeSet<String>, Verdict), AttestFailed> {
        let mut common: Option<BTreeSet<String>> = None;
        let (mut number, mut weakest) = (0_u32, None);
        for pid in self.members(subject)? {
            let Some(report) = self.report(pid)? else {
                continue;
            };
            number += 1;
            let own = report.selectors();
            if weakest.is_none() {
                let why = why_lacking(report.findings.iter(), "posture", "restricted");
                weakest = why.map(|why| format!("process {pid} is not restricted: {why}"));
            }
            common = Some(match common {
                Some(common) => common.intersection(&own).cloned().collect(),
                None => own,
            });
        }
        let verdict = match weakest {
            None => Verdict::pass(format!("all are restricted; processes: {number}")),
            Some(why) => Verdict::fail(why),
        };
        Ok((common.unwrap_or_default(), verdict))
    }

    /// What was found out about a process; none for one that has ended.
    fn report(&self, pid: i32) -> Result<Option<Report>, AttestFailed> {
        let looked = PinnedProcess::by_number(pid).and_then(|process| {
            process.read(|folder| with_subject(&process, folder, |one| self.posture.report(one)))
        });
        let failed = |why: &dyn std::fmt::Display| {
            AttestFailed::new(format!(
                "process {pid} of its pod cannot be looked at: {why}"
            ))
        };
        match looked {
            Ok(Ok(Ok(report))) => Ok(Some(report)),
            Ok(Ok(Err(AttestFailed::Lack(lack))) | Err(AttestError::Lack(lack)))
            | Err(PinError::Lack(lack)) => Err(lack.into()),
            Ok(Ok(Err(why))) => Err(failed(&why)),
            Ok(Err(why)) => Err(failed(&why)),
            Err(PinError::Gone) => Ok(None),
            Err(why) => Err(failed(&why)),
        }
    }
}

impl Attestor for PodPosture {
    fn kind(&self) -> &'static str {
        "pod"
    }

    fn asked(&self, asked: &Asked) {
        self.is_spared.store(!asked.pods, Ordering::Relaxed);
    }

    fn attest(&self, subject: &Subject<'_>, add: &mut dyn FnMut(&str)) -> Result<(), AttestFailed> {
        self.examine(subject, add, &mut |_| ())
    }

    fn examine(
        &self,
        subject: &Subject<'_>,
        add: &mut dyn FnMut(&str),
        find: &mut dyn FnMut(AnyFinding),
    ) -> Result<(), AttestFailed> {
        if self.is_spared.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut looked = self.look(subject);
        // Who ends at this moment cannot be read, and is no member the next time.
        for _ in 1..READINGS {
            match looked {
                Err(AttestFailed::Unclear(_)) => looked = self.look(subject),
                _ => break,
            }
        }
        let (common, verdict) = looked?;
        for selector in common {
            add(&format!("posture:{selector}"));
        }
        find(AnyFinding::Posture(Finding::of_pod(verdict)));
        Ok(())
    }
}

/// A pod in which somebody cannot be looked at so many times is refused.
const READINGS: usize = 8;
