//! What proxies are told: whom they may meet, and what is allowed.
//!
//! Every message is the whole state, and made when the proxy takes it. Revocations go the way of the
//! Workload API, in its `crl`.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use futures_util::stream::BoxStream;
use postern_policies::{Options, PolicySet, SourceFile, files};
use postern_proto::control::{self, Document, State, WatchRequest};
use tonic::{Request, Response, Status};

use crate::{
    admission::Admission,
    agent::{Agent, Entitled},
    registry::RegistryError,
    workload_api::stream,
};

/// The policies that proxies are told, from a folder. One with a mistake is refused whole, and the
/// last good ones stay.
#[derive(Debug)]
pub struct Policies {
    folder: PathBuf,
    options: Options,
    current: ArcSwap<Vec<SourceFile>>,
}

impl Policies {
    /// Reads the folder for the first time. Documents that name no namespace have that of `options`.
    ///
    /// # Errors
    /// [`RegistryError`]; callers do not start.
    pub fn open(
        folder: PathBuf,
        options: Options,
        workloads: &PolicySet,
    ) -> Result<Self, RegistryError> {
        let policies = Self {
            folder,
            options,
            current: ArcSwap::default(),
        };
        policies.reload(workloads)?;
        Ok(policies)
    }

    /// The folder.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Reads the folder again. It must fit to the Workloads.
    ///
    /// # Errors
    /// [`RegistryError`]; those before stay in force.
    pub fn reload(&self, workloads: &PolicySet) -> Result<(), RegistryError> {
        let policies = files::read_documents(&self.folder)?;
        let mut all = policies.clone();
        all.extend(directory(workloads).into_iter().map(|one| SourceFile {
            path: PathBuf::from(one.path),
            text: one.text,
        }));
        PolicySet::load(&all, &self.options).map_err(RegistryError::Mistakes)?;
        let bytes: usize = policies.iter().map(|file| file.text.len()).sum();
        if bytes > MAX_BYTES {
            let problem = format!("the policies have {bytes} bytes, at most {MAX_BYTES} are told");
            return Err(std::io::Error::other(problem).into());
        }
        self.current.store(Arc::new(policies));
        Ok(())
    }

    fn message(&self) -> control::Policies {
        let files = self.current.load();
        let documents = files.iter().map(|file| Document {
            path: file.path.display().to_string(),
            text: file.text.clone(),
        });
        control::Policies {
            documents: documents.collect(),
            namespace: self.options.namespace.clone(),
        }
    }
}

/// What all proxies are told.
pub(crate) fn state(workloads: &PolicySet, policies: Option<&Policies>) -> State {
    State {
        directory: directory(workloads),
        policies: policies.map(Policies::message),
    }
}

/// Selectors stay here: they name what a thief would have to be.
fn directory(workloads: &PolicySet) -> Vec<Document> {
    let document = |path: String, value: serde_json::Value| Document {
        path,
        text: value.to_string().into_bytes(),
    };
    let entries = workloads.workloads().map(|workload| {
        let entry = workload.to_directory_entry();
        document(format!("agent:{}", workload.name), entry)
    });
    // Those that have a document; every other has its name alone.
    let described = workloads
        .namespaces()
        .filter(|(_, labels)| labels.len() > 1);
    let namespaces = described.map(|(name, labels)| {
        let namespace = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": labels},
        });
        document(format!("agent:{name}"), namespace)
    });
    entries.chain(namespaces).collect()
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
            .stream(process, <State as stream::Message>::METHOD)?;
        Ok(Response::new(stream::of(follower)))
    }
}

impl stream::Message for State {
    const METHOD: &'static str = "Control/Watch";

    type State = Arc<State>;

    fn state(agent: &Agent, _: &Entitled) -> Result<Arc<State>, Status> {
        Ok(agent.told())
    }

    fn of(_: &Agent, state: &Arc<State>) -> Self {
        State::clone(state)
    }
}

/// More policies than any node has.
const MAX_BYTES: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use postern_policies::{Options, PolicySet, SourceFile};
    use postern_spiffe::TrustDomain;

    use super::state;

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
        let set = PolicySet::load(&[file], &options).unwrap().set;
        let told = state(&set, None).directory;
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
                text: one.text.clone(),
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
        assert_eq!(labels, set.namespaces().collect::<Vec<_>>());
    }
}
