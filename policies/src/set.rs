//! The compiled policies of one place, and the questions that can be asked of them.

use std::path::PathBuf;

use postern_spiffe::{SpiffeId, TrustDomain};

use crate::{
    classes::Site,
    compile::{self, Compiled, MtlsMode},
    decide::{
        Access, Decision, Direction, Question, RuleName, RuleOrigin, Verdict, authorization, token,
    },
    diagnostic::{Diagnostic, Severity},
    explain::{self, Explanation},
    model::{
        request_authentication::JwtRule,
        workload::{Workload, WorkloadName},
    },
    normalize::PathNormalization,
    parse,
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
    /// Other names of the own trust domain, as after a migration.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// The namespace of documents that name none; `default` unless told otherwise.
    pub namespace: String,
    /// The namespace whose Istio policies hold everywhere; `istio-system` unless told otherwise.
    pub root_namespace: String,
    /// What holds where no policy speaks.
    pub defaults: Defaults,
    /// How paths are brought into one spelling.
    pub paths: PathNormalization,
    /// Pass over documents of kinds that are not read here, instead of refusing them.
    pub ignore_other_kinds: bool,
    /// Refuse documents of other kinds than Workload, which nobody would look at.
    pub workloads_only: bool,
}

impl Options {
    /// The safe choices, for this trust domain.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            trust_domain_aliases: Vec::new(),
            namespace: "default".into(),
            root_namespace: "istio-system".into(),
            defaults: Defaults::STRICT,
            paths: PathNormalization::default(),
            ignore_other_kinds: false,
            workloads_only: false,
        }
    }
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
pub struct PolicySet {
    compiled: Compiled,
    policies: Vec<RuleOrigin>,
    defaults: Defaults,
    paths: PathNormalization,
    own: Option<WorkloadName>,
}

/// Policies that matched an access and have no say in it, by their names, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Those with the action AUDIT.
    pub audit: Vec<std::sync::Arc<str>>,
    /// Those that are only tried, by the annotation `istio.io/dry-run`.
    pub dry_run: Vec<std::sync::Arc<str>>,
}

/// A set that loaded, and what a person should look at all the same.
#[derive(Debug)]
pub struct Loaded {
    /// The compiled set.
    pub set: PolicySet,
    /// Legal, but probably not meant.
    pub warnings: Vec<Diagnostic>,
}

impl PolicySet {
    /// Reads, checks and compiles documents: policies and Workloads together.
    ///
    /// Pure: the same files and options give the same set, in whatever order the files come.
    ///
    /// # Errors
    /// Every mistake of every file, in one run; nothing is loaded then.
    pub fn load(files: &[SourceFile], options: &Options) -> Result<Loaded, Vec<Diagnostic>> {
        let (documents, mut found) = parse::read(files, options);
        let mut warnings = crate::lint::lint(&documents, options);
        let policies = documents.policies();
        let compiled = compile::compile(documents, options, &mut found);
        if found.iter().any(|one| one.severity == Severity::Error) {
            found.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
            return Err(found);
        }
        warnings.extend(found);
        Ok(Loaded {
            set: Self {
                compiled,
                policies,
                defaults: options.defaults,
                paths: options.paths,
                own: None,
            },
            warnings,
        })
    }

    /// How paths are brought into one spelling before they are judged.
    pub fn paths(&self) -> PathNormalization {
        self.paths
    }

    /// Every policy and where it stands, also those without a rule; by kind and name.
    pub fn policies(&self) -> &[RuleOrigin] {
        &self.policies
    }

    /// Every rule of every policy, by its name.
    pub fn rules(&self) -> impl Iterator<Item = RuleName> {
        self.compiled.rules()
    }

    /// The Workload of this name.
    pub fn workload(&self, name: &WorkloadName) -> Option<&Workload> {
        self.compiled.by_name(name).map(|entry| &entry.workload)
    }

    /// All Workloads, in the order of their names.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.compiled.workloads.iter().map(|entry| &entry.workload)
    }

    /// The namespaces that are known, by document or by a Workload, and their labels; in the order of
    /// their names.
    pub fn namespaces(
        &self,
    ) -> impl Iterator<Item = (&str, &std::collections::BTreeMap<String, String>)> {
        self.compiled.namespaces()
    }

    /// Has this namespace a document of its own?
    pub fn is_described(&self, namespace: &str) -> bool {
        self.compiled.is_described(namespace)
    }

    /// The Workload that these policies are read for, where somebody who knows has said so.
    pub fn own_workload(&self) -> Option<&WorkloadName> {
        self.own.as_ref()
    }

    /// The same set, read for this Workload.
    #[must_use]
    pub fn read_for(mut self, own: Option<WorkloadName>) -> Self {
        self.own = own;
        self
    }

    /// The Workloads that have this identity. More than one may.
    pub fn workloads_of(&self, id: &SpiffeId) -> impl Iterator<Item = &Workload> {
        self.compiled.by_identity(id).map(|entry| &entry.workload)
    }

    /// What PeerAuthentication says for a port of a workload. A workload that is not known takes
    /// no plaintext.
    pub fn mtls_mode(&self, workload: &WorkloadName, port: u16) -> MtlsMode {
        self.compiled
            .by_name(workload)
            .map_or(MtlsMode::Strict, |entry| entry.mtls.of_port(port).0)
    }

    /// Who said what [`PolicySet::mtls_mode`] tells, if anybody did.
    pub fn mtls_origin(&self, workload: &WorkloadName, port: u16) -> Option<&RuleOrigin> {
        self.compiled
            .by_name(workload)
            .and_then(|entry| entry.mtls.of_port(port).1.as_ref())
    }

    /// The whole road in one question: peer authentication, network, authorization. Outbound,
    /// the network alone.
    pub fn decide(&self, access: &Access<'_>) -> Decision {
        let decision = self.decide_connection(access);
        match (access.direction, decision.verdict) {
            (Direction::Inbound, Verdict::Allow) => self.decide_request(access),
            _ => decision,
        }
    }

    /// The part that is known once the connection stands: peer authentication and network.
    /// An allow only means that authorization may be asked.
    pub fn decide_connection(&self, access: &Access<'_>) -> Decision {
        self.question(access).connection()
    }

    /// The part that each request is asked, and opaque TCP once: its token and authorization.
    /// Called only after [`PolicySet::decide_connection`] allowed.
    pub fn decide_request(&self, access: &Access<'_>) -> Decision {
        let question = self.question(access);
        token::refused(&question).unwrap_or_else(|| authorization::decide(&question))
    }

    /// The policies that matched without a say in the verdict.
    pub fn observed(&self, access: &Access<'_>) -> Observed {
        match access.direction {
            Direction::Inbound => authorization::observed(&self.question(access)),
            Direction::Outbound => Observed::default(),
        }
    }

    /// A Workload as these policies see it.
    pub(crate) fn site(&self, name: &WorkloadName) -> Option<Site<'_>> {
        Site::of(&self.compiled, self.defaults, name)
    }

    /// The rules of RequestAuthentication that concern a Workload. Their order is that of
    /// [`Token::verified_by`](crate::decide::Token::verified_by).
    pub fn token_rules(&self, workload: &WorkloadName) -> impl Iterator<Item = &JwtRule> {
        token::rules_of(&self.compiled, self.compiled.by_name(workload)).map(|(_, _, rule)| rule)
    }

    /// The rule that accepts the token of an access, by its place among
    /// [`PolicySet::token_rules`] of the destination.
    pub fn token_rule(&self, access: &Access<'_>) -> Option<usize> {
        token::accepting(&self.question(access)).map(|(place, _)| place)
    }

    /// Why, in one line for people; a deny names the nearest miss. Slow: for logs and answers to
    /// people, not for the way of a request that passes.
    pub fn reason(&self, access: &Access<'_>, decision: &Decision) -> String {
        explain::reason(&self.question(access), decision)
    }

    /// The decision and everything that was looked at.
    pub fn explain(&self, access: &Access<'_>) -> Explanation {
        let decision = self.decide(access);
        let question = self.question(access);
        Explanation {
            reason: explain::reason(&question, &decision),
            considered: explain::considered(&question),
            decision,
        }
    }

    fn question<'a>(&'a self, access: &'a Access<'a>) -> Question<'a> {
        Question {
            compiled: &self.compiled,
            defaults: self.defaults,
            access,
        }
    }
}
