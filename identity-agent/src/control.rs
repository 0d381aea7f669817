//! What proxies are told: whom they may meet, and what is allowed.
//!
//! Every message is the whole state, and made when the proxy takes it. Revocations go the way of the
//! Workload API, in its `crl`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::stream::BoxStream;
use postern_policies::{SourceFile, model::workload::WorkloadName};
use postern_proto::control::{self, Document, State, WatchRequest};
use tonic::{Request, Response, Status};

use crate::{
    admission::Admission,
    agent::{Agent, Entitled},
    registry::{self, Pair, Policies},
    workload_api::stream,
};

/// What proxies are told, by whom it concerns.
#[derive(Debug, Default)]
pub(crate) struct Told {
    directory: Vec<Document>,
    policies: Option<control::Policies>,
    /// The policies of the API server, by their namespaces: of these a proxy is told its own, and the
    /// root's.
    of_namespaces: BTreeMap<String, Vec<Document>>,
    root_namespace: String,
    /// The messages that were made of it, by the namespaces that they are for. There are no more than
    /// namespaces with pods on this node.
    states: Mutex<HashMap<BTreeSet<String>, Arc<State>>>,
}

impl Told {
    pub(crate) fn of(pair: &Pair) -> Self {
        let mut of_namespaces: BTreeMap<String, Vec<Document>> = BTreeMap::new();
        let policies = pair.policies.as_ref();
        for object in policies.map(Policies::of_cluster).unwrap_or_default() {
            let all = of_namespaces.entry(object.namespace.clone()).or_default();
            all.push(document(&object.file));
        }
        Self {
            directory: documents(&registry::directory(&pair.workloads)),
            policies: policies.map(|policies| control::Policies {
                documents: documents(policies.files()),
                namespace: policies.namespace().to_owned(),
            }),
            of_namespaces,
            root_namespace: policies.map(Policies::root_namespace).unwrap_or_default(),
            states: Mutex::default(),
        }
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.directory == other.directory
            && self.policies == other.policies
            && self.of_namespaces == other.of_namespaces
    }

    /// The state that concerns pods of these namespaces; one for all who are told the same.
    fn state(&self, mut namespaces: BTreeSet<String>) -> Arc<State> {
        namespaces.insert(self.root_namespace.clone());
        namespaces.retain(|one| self.of_namespaces.contains_key(one));
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let state = states.entry(namespaces).or_insert_with_key(|namespaces| {
            let of_cluster = namespaces
                .iter()
                .flat_map(|one| self.of_namespaces.get(one));
            let mut policies = self.policies.clone();
            if let Some(policies) = &mut policies {
                policies.documents.extend(of_cluster.flatten().cloned());
            }
            Arc::new(State {
                directory: self.directory.clone(),
                policies,
                workload: String::new(),
            })
        });
        state.clone()
    }
}

/// What one proxy is told.
#[derive(Debug)]
pub(crate) struct ToldTo {
    state: Arc<State>,
    /// The Workload that it is, where it is exactly one.
    workload: Option<WorkloadName>,
}

impl ToldTo {
    /// # Errors
    /// `Unavailable` while the API server has not told all: half of the policies would be other policies.
    fn now(agent: &Agent, entitled: &Entitled) -> Result<Self, Status> {
        if agent.registry.awaits_cluster() {
            let text =
                "the agent waits for the API server to tell pods and policies; see its readiness";
            return Err(Status::unavailable(text));
        }
        let all = entitled.workloads.iter();
        let namespaces = all.map(|one| one.name.namespace.to_string());
        let workload = match entitled.workloads.as_slice() {
            [one] => Some(one.name.clone()),
            _ => None,
        };
        Ok(Self {
            state: agent.told().state(namespaces.collect()),
            workload,
        })
    }
}

impl PartialEq for ToldTo {
    fn eq(&self, other: &Self) -> bool {
        let is_same = Arc::ptr_eq(&self.state, &other.state) || self.state == other.state;
        is_same && self.workload == other.workload
    }
}

fn documents(files: &[SourceFile]) -> Vec<Document> {
    files.iter().map(document).collect()
}

fn document(file: &SourceFile) -> Document {
    Document {
        path: file.path.display().to_string(),
        text: file.text.clone().into(),
    }
}

/// The service.
#[derive(Debug)]
pub struct Control {
    admission: Arc<Admission>,
}

impl Control {
    /// Serves those who are let in.
    pub fn new(admission: Arc<Admission>) -> Self {
        Self { admission }
    }
}

#[tonic::async_trait]
impl control::control_server::Control for Control {
    type WatchStream = BoxStream<'static, Result<State, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let process = self.admission.with_header(&request)?;
        let follower = self
            .admission
            .stream(process, <State as stream::Message>::METHOD);
        Ok(Response::new(stream::of(follower)))
    }
}

impl stream::Message for State {
    const METHOD: &'static str = "Control/Watch";

    type State = ToldTo;

    fn state(agent: &Agent, entitled: &Entitled) -> Result<ToldTo, Status> {
        ToldTo::now(agent, entitled)
    }

    fn known(agent: &Agent, entitled: &Entitled) -> Option<ToldTo> {
        ToldTo::now(agent, entitled).ok()
    }

    fn of(_: &Agent, told: &ToldTo) -> Self {
        let workload = told.workload.as_ref();
        Self {
            workload: workload.map(ToString::to_string).unwrap_or_default(),
            ..State::clone(&told.state)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use postern_policies::{Options, PolicySet, SourceFile};
    use postern_spiffe::TrustDomain;

    use super::{Pair, Told};

    #[test]
    fn who_may_have_an_identity_is_not_told_to_others() {
        let text = "apiVersion: postern.dev/v1\nkind: Workload\n\
            metadata: {name: web, namespace: production, labels: {app: web}}\n\
            spec: {serviceAccount: web, selectors: ['docker:env:PASSWORD=secret'], hint: h, \
            addresses: [10.0.0.9], ports: [{port: 8080}], baseline: {executables: [/bin/app]}}\n\
            ---\napiVersion: v1\nkind: Namespace\n\
            metadata: {name: production, labels: {team: shop}}\n";
        let file = SourceFile {
            path: PathBuf::from("w.yaml"),
            text: text.into(),
        };
        let options = Options::new(TrustDomain::parse("example.org").unwrap());
        let pair = Pair {
            workloads: Arc::new(PolicySet::load(&[file], &options).unwrap().set),
            policies: None,
            rules: Default::default(),
        };
        let told = Told::of(&pair).directory;
        let texts: Vec<&str> = told
            .iter()
            .map(|one| std::str::from_utf8(&one.text).unwrap())
            .collect();
        let all = texts.concat();
        for kept in ["secret", "PASSWORD", "selectors", "/bin/app"] {
            assert!(!all.contains(kept), "{kept} in {all}");
        }
        // What is told reads as the same directory.
        let files: Vec<SourceFile> = told
            .iter()
            .map(|one| SourceFile {
                path: PathBuf::from(&one.path),
                text: one.text.to_vec(),
            })
            .collect();
        let read = PolicySet::load(&files, &options).unwrap().set;
        let web = read.workloads().next().unwrap();
        assert_eq!(
            web.spiffe_id.as_str(),
            "spiffe://example.org/ns/production/sa/web"
        );
        assert_eq!(web.addresses, ["10.0.0.9"]);
        let labels: Vec<_> = read.namespaces().collect();
        assert_eq!(labels, pair.workloads.namespaces().collect::<Vec<_>>());
    }
}
