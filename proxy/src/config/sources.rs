//! The parts of the configuration that say where identity, policies and Workloads come from.

use std::path::{Path, PathBuf};

use postern_policies::{
    Defaults,
    decide::Verdict,
    diagnostic::Problems,
    yaml::{Fields, Value, fields},
};

/// Where an identity comes from.
#[derive(Debug, Clone)]
pub enum IdentitySource {
    /// A SPIFFE Workload API.
    WorkloadApi(PathBuf),
    /// Files in PEM, watched.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The leaf's key.
        key: PathBuf,
        /// The authorities of the own trust domain.
        bundle: PathBuf,
    },
}

/// Where policies and Workloads come from.
#[derive(Debug, Clone)]
pub struct PolicySources {
    /// The policies.
    pub policies: DocumentSource,
    /// Workloads and Namespaces, if they come from elsewhere.
    pub workloads: Option<DocumentSource>,
    /// The agent's socket, where it is one of the two.
    pub agent: Option<PathBuf>,
    /// The namespace of documents that name none.
    pub namespace: String,
    /// The namespace whose Istio policies hold everywhere.
    pub root_namespace: String,
    /// What holds where no policy speaks.
    pub defaults: Defaults,
}

impl PolicySources {
    /// Does any of it lie in a folder, where somebody may be writing?
    pub fn has_folders(&self) -> bool {
        let all = [Some(&self.policies), self.workloads.as_ref()];
        let mut all = all.into_iter().flatten();
        all.any(|source| matches!(source, DocumentSource::Directory(_)))
    }
}

/// Where documents come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentSource {
    /// A folder, watched.
    Directory(PathBuf),
    /// The agent tells them.
    Agent,
}

/// Reads `identity`; `endpoint` is the socket that the environment names.
pub(super) fn identity(
    all: &Fields<'_>,
    folder: &Path,
    endpoint: Option<&str>,
    problems: &mut Problems<'_>,
) -> Option<IdentitySource> {
    let socket = |text: &str| {
        text.strip_prefix("unix://")
            .filter(|path| path.starts_with('/'))
            .map(PathBuf::from)
    };
    let section = match all.get("identity") {
        Some(node) => Some(Fields::of(
            node,
            "identity",
            &["workloadApi", "files"],
            problems,
        )?),
        None => None,
    };
    let (api, files) = section.map_or((None, None), |section| {
        (section.get("workloadApi"), section.get("files"))
    });
    match (api, files) {
        (Some(node), Some(_)) => {
            problems.error(node.at, "`identity` is `workloadApi` or `files`, not both");
            None
        }
        (Some(node), None) => {
            let text = fields::filled(node, "identity.workloadApi", problems)?;
            let path = socket(text);
            if path.is_none() {
                let hint = "write it as `unix:///run/postern/agent.sock`";
                problems.error_with(
                    node.at,
                    format!("`{text}` is no address of a Unix socket"),
                    hint,
                );
            }
            path.map(IdentitySource::WorkloadApi)
        }
        (None, Some(node)) => {
            let files = Fields::of(node, "files", &["certificate", "key", "bundle"], problems)?;
            let mut path = |name| {
                let node = files.required(name, "identity.files", problems)?;
                fields::filled(node, name, problems).map(|text| folder.join(text))
            };
            let (certificate, key, bundle) = (path("certificate"), path("key"), path("bundle"));
            Some(IdentitySource::Files {
                certificate: certificate?,
                key: key?,
                bundle: bundle?,
            })
        }
        (None, None) => {
            match endpoint {
                None => Some(IdentitySource::WorkloadApi(PathBuf::from(AGENT_SOCKET))),
                Some(text) => match socket(text) {
                    Some(path) => Some(IdentitySource::WorkloadApi(path)),
                    None => {
                        problems.error(
                        all.at,
                        format!("SPIFFE_ENDPOINT_SOCKET is `{text}`, which is no Unix socket's address"),
                    );
                        None
                    }
                },
            }
        }
    }
}

/// Reads `policies`, `workloads` and what goes with them.
pub(super) fn policies(
    all: &Fields<'_>,
    folder: &Path,
    identity: Option<&IdentitySource>,
    problems: &mut Problems<'_>,
) -> Option<PolicySources> {
    let mut namespace = "default".to_owned();
    let agent = match identity {
        Some(IdentitySource::WorkloadApi(socket)) => Some(socket.clone()),
        _ => None,
    };
    let mut source = |name: &str, problems: &mut Problems<'_>| -> Option<Option<DocumentSource>> {
        let Some(node) = all.get(name) else {
            return Some(None);
        };
        let section = Fields::of(node, name, &["directory", "agent", "namespace"], problems)?;
        if let Some(node) = section.get("agent") {
            Fields::of(node, "agent", &[], problems)?;
            if section.get("directory").is_some() {
                problems.error(
                    node.at,
                    format!("`{name}` is `directory` or `agent`, not both"),
                );
                return None;
            }
            if agent.is_none() {
                let hint = "the agent tells only those who have their identity from it";
                let text = format!("`{name}.agent` needs `identity.workloadApi`");
                problems.error_with(node.at, text, hint);
                return None;
            }
            return Some(Some(DocumentSource::Agent));
        }
        if let Some(node) = section.get("namespace") {
            namespace = fields::filled(node, "namespace", problems)?.to_owned();
        }
        let node = section.required("directory", name, problems)?;
        let text = fields::filled(node, "directory", problems)?;
        Some(Some(DocumentSource::Directory(folder.join(text))))
    };
    let policies = source("policies", problems)?;
    let workloads = source("workloads", problems)?;
    let (policies, workloads) = match (policies, workloads, &agent) {
        (Some(policies), workloads, _) => (policies, workloads),
        // The default with an agent: it tells both.
        (None, workloads, Some(_)) => (
            DocumentSource::Agent,
            workloads.or(Some(DocumentSource::Agent)),
        ),
        (None, ..) => {
            let hint = "`policies: {directory: policies/}`";
            problems.error_with(
                all.at,
                "proxy.yaml needs `policies`: without any, all is denied",
                hint,
            );
            return None;
        }
    };
    let asks = [Some(&policies), workloads.as_ref()].contains(&Some(&DocumentSource::Agent));
    let root_namespace = match all.get("rootNamespace") {
        Some(node) => fields::filled(node, "rootNamespace", problems)?.to_owned(),
        None => "istio-system".to_owned(),
    };
    let defaults = defaults(all, problems)?;
    Some(PolicySources {
        policies,
        workloads,
        agent: agent.filter(|_| asks),
        namespace,
        root_namespace,
        defaults,
    })
}

/// `strict`, `istio`, or each by itself.
fn defaults(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Defaults> {
    let Some(node) = all.get("defaults") else {
        return Some(Defaults::STRICT);
    };
    if let Value::Text(text) = &node.value {
        return match text.as_str() {
            "strict" => Some(Defaults::STRICT),
            "istio" => Some(Defaults::ISTIO),
            other => {
                let hint = "`strict`, `istio` or `{network: deny, authorization: allow}`";
                problems.error_with(node.at, format!("`{other}` is no default"), hint);
                None
            }
        };
    }
    let section = Fields::of(node, "defaults", &["network", "authorization"], problems)?;
    let mut verdict = |name| match section.get(name) {
        None => Some(Verdict::Deny),
        Some(node) => match fields::text(node, name, problems)? {
            "allow" => Some(Verdict::Allow),
            "deny" => Some(Verdict::Deny),
            other => {
                problems.error(node.at, format!("`{other}` is neither `allow` nor `deny`"));
                None
            }
        },
    };
    Some(Defaults {
        network: verdict("network")?,
        authorization: verdict("authorization")?,
    })
}

const AGENT_SOCKET: &str = "/run/postern/agent.sock";
