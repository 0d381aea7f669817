//! The compiled policies of one place, and the questions that can be asked of them.

use std::path::PathBuf;

use postern_spiffe::{SpiffeId, TrustDomain};

use crate::{
    decide::{Access, DecidedBy, Decision, Stage, Verdict},
    model::workload::{Workload, WorkloadName},
};

/// One file of documents, as read by the caller: the engine itself opens nothing.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// The path by which decisions and errors name it.
    pub path: PathBuf,
    /// What it holds.
    pub text: Vec<u8>,
}

/// What holds where no policy speaks, and how names are read.
#[derive(Debug, Clone)]
pub struct Options {
    /// The own trust domain.
    pub trust_domain: TrustDomain,
    /// Other names by which principals of policies may call the own trust domain.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Pass over documents of other kinds, instead of refusing them.
    pub ignore_other_kinds: bool,
    /// The namespace of documents that name none; `default` unless told otherwise.
    pub namespace: String,
    /// The namespace whose Istio policies hold everywhere; `istio-system` unless told otherwise.
    pub root_namespace: String,
    /// What holds where no policy speaks.
    pub defaults: Defaults,
}

/// What holds where no policy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// A Workload that no NetworkPolicy selects.
    pub network: Verdict,
    /// A Workload that no ALLOW policy selects.
    pub authorization: Verdict,
}

impl Defaults {
    /// Deny both: zero trust.
    pub const STRICT: Self = Self {
        network: Verdict::Deny,
        authorization: Verdict::Deny,
    };
    /// Allow both: as Kubernetes and Istio.
    pub const ISTIO: Self = Self {
        network: Verdict::Allow,
        authorization: Verdict::Allow,
    };
}

/// Everything that was loaded, compiled and indexed; immutable.
#[derive(Debug)]
pub struct PolicySet {}

/// What PeerAuthentication says about plaintext on one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtlsMode {
    /// Mutual TLS or nothing.
    Strict,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Plaintext.
    Disable,
}

/// A set that loaded, and what a person should look at all the same.
#[derive(Debug)]
pub struct Loaded {
    /// The compiled set.
    pub set: PolicySet,
    /// Legal, but probably not meant.
    pub warnings: Vec<Diagnostic>,
}

/// One mistake or one warning, with its place.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
    /// What is wrong, in one line.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl Options {
    /// The safe choice of everything but the trust domain, which has no default.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            trust_domain_aliases: Vec::new(),
            ignore_other_kinds: false,
            namespace: "default".to_owned(),
            root_namespace: "istio-system".to_owned(),
            defaults: Defaults::STRICT,
        }
    }
}

impl PolicySet {
    /// Reads, checks and compiles documents: policies and Workloads together.
    ///
    /// # Errors
    /// Every mistake of every file, in one run; nothing is loaded then.
    pub fn load(_files: &[SourceFile], _options: &Options) -> Result<Loaded, Vec<Diagnostic>> {
        Ok(Loaded {
            set: Self {},
            warnings: Vec::new(),
        })
    }

    /// The Workload of this name.
    pub fn workload(&self, _name: &WorkloadName) -> Option<&Workload> {
        None
    }

    /// All Workloads, in the order of their names.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        std::iter::empty()
    }

    /// The Workloads that have this identity. More than one may.
    pub fn workloads_of(&self, _id: &SpiffeId) -> impl Iterator<Item = &Workload> {
        std::iter::empty()
    }

    /// What PeerAuthentication says for a port of a workload.
    pub fn mtls_mode(&self, _workload: &WorkloadName, _port: u16) -> MtlsMode {
        MtlsMode::Strict
    }

    /// The whole road in one question: peer authentication, network, authorization.
    pub fn decide(&self, _access: &Access<'_>) -> Decision {
        Decision {
            verdict: Verdict::Deny,
            stage: Stage::Network,
            decided_by: DecidedBy::Default,
        }
    }

    /// The part that is known once the connection stands: peer authentication and network.
    /// An allow only means that authorization may be asked.
    pub fn decide_connection(&self, access: &Access<'_>) -> Decision {
        self.decide(access)
    }

    /// The part that each request is asked, and opaque TCP once: authorization alone. Called only
    /// after [`PolicySet::decide_connection`] allowed.
    pub fn decide_request(&self, access: &Access<'_>) -> Decision {
        self.decide(access)
    }

    /// Why, in one line for people; a deny names the nearest miss. Slow: for logs and answers to
    /// people, not for the way of a request that passes.
    pub fn reason(&self, _access: &Access<'_>, _decision: &Decision) -> String {
        String::new()
    }
}
