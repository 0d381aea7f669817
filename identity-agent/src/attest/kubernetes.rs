//! The `k8s` attestor: what the kubelet of this node says of the pod that a process is in, in SPIRE's
//! spelling.
//!
//! The pod and the container are found by the groups that a kubelet makes, and both must be the
//! kubelet's: a container's ID under another pod's group is nobody's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use postern_https::{Client, Identity, Trust};
use serde::Deserialize;

use super::{
    AttestFailed, Attestor, Subject,
    cgroup::{Groups, PodContainer},
    image::RunningImage,
    read_text,
    service::Service,
};
use crate::{caller::ProcFolder, config::Kubelet};

/// States `k8s:` selectors.
#[derive(Debug)]
pub struct Kubernetes {
    kubelet: Kubelet,
    service: Service,
    /// What the kubelet said last; one asks, the others wait for his answer.
    said: Mutex<Option<Said>>,
}

#[derive(Debug)]
struct Said {
    pods: Result<Pods, AttestFailed>,
    at: Instant,
}

/// By UID.
type Pods = Arc<BTreeMap<String, Pod>>;

/// What the kubelet tells. Spec: Kubernetes API, core/v1 Pod; only what is stated is read.
#[derive(Debug, Default, Deserialize)]
struct PodList {
    #[serde(default)]
    items: Vec<Pod>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    owner_references: Vec<Owner>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
    uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    service_account_name: String,
    node_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    container_statuses: Vec<Container>,
    init_container_statuses: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    name: String,
    image: String,
    #[serde(rename = "imageID")]
    image_id: String,
    /// `runtime://ID`.
    #[serde(rename = "containerID")]
    container_id: String,
}

impl Container {
    fn is(&self, id: &str) -> bool {
        let (_, own) = self.container_id.split_once("://").unwrap_or_default();
        own == id
    }

    /// What the runtime says that it runs, and never what the pod asks for.
    fn image(&self) -> RunningImage {
        // Of a local image it is the bare digest of the configuration, of others a reference in a
        // registry; either may be named after the runtime.
        let (_, id) = self
            .image_id
            .rsplit_once("://")
            .unwrap_or(("", &self.image_id));
        RunningImage::of(id, &[id.to_owned()])
    }

    fn images(&self) -> impl Iterator<Item = &str> {
        let all = [self.image.as_str(), self.image_id.as_str()];
        all.into_iter().filter(|image| !image.is_empty())
    }
}

impl Kubernetes {
    /// Asks this kubelet.
    pub fn new(kubelet: Kubelet) -> Self {
        Self {
            kubelet,
            service: Service::default(),
            said: Mutex::default(),
        }
    }

    /// The pods of this node, with the one that is looked for if the kubelet knows it. It is asked
    /// for that one again and again, but not more often than twice a second in all.
    fn pods(&self, uid: &str) -> Result<Pods, AttestFailed> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(said) = &*said {
            let age = said.at.elapsed();
            let is_there = said.pods.as_ref().is_ok_and(|pods| pods.contains_key(uid));
            if age < ASKED_AGAIN_AFTER || (is_there && age < MAX_AGE) {
                return said.pods.clone();
            }
        }
        // No answer is remembered too: those who wait for this one do not each wait for their own.
        let pods = self.ask().map(Arc::new);
        *said = Some(Said {
            pods: pods.clone(),
            at: Instant::now(),
        });
        pods
    }

    /// The image of the container that a process is in, if it is in one of a pod.
    pub(super) fn image(
        &self,
        subject: &Subject<'_>,
    ) -> Result<Option<RunningImage>, AttestFailed> {
        let own = Groups::of(&ProcFolder::own())?;
        let Some(found) = Groups::of(subject.folder)?.pod_container(&own)? else {
            return Ok(None);
        };
        let pods = self.pods(&found.pod)?;
        let (_, container) = look_up(&pods, &found)?;
        Ok(Some(container.image()))
    }

    fn ask(&self) -> Result<BTreeMap<String, Pod>, AttestFailed> {
        let url = format!("{}/pods", self.kubelet.url);
        let failed =
            |error: &anyhow::Error| AttestFailed::because("the kubelet", error, error.chain());
        let token = match &self.kubelet.token {
            Some(path) => Some(read_text(path).map_err(|error| {
                let what = format!("its token `{}` cannot be read", path.display());
                failed(&anyhow::Error::from(error).context(what))
            })?),
            None => None,
        };
        let trust = match &self.kubelet.authorities {
            Some(file) => Trust::File(file.clone()),
            None => Trust::Anybody,
        };
        let identity = self.kubelet.identity.as_ref();
        let identity = identity.map(|(certificate, key)| Identity {
            certificate: certificate.clone(),
            key: key.clone(),
        });
        // Read anew each time: the cluster replaces them.
        let client = Client::new(&trust, identity.as_ref()).map_err(|error| failed(&error))?;
        let client = client.up_to(MAX_ANSWER_BYTES);
        let answer = self.service.ask("the kubelet", async {
            let answer = client.get(&url, token.as_deref().map(str::trim));
            answer.await.map_err(|error| failed(&error))
        })?;
        let list: PodList =
            serde_json::from_slice(&answer).map_err(|error| failed(&error.into()))?;
        let by_uid = list
            .items
            .into_iter()
            .map(|pod| (pod.uid().to_owned(), pod));
        Ok(by_uid.collect())
    }
}

impl Pod {
    /// The UID by which the kubelet names its groups: of a pod from a file it is another than in
    /// the cluster.
    ///
    /// The kubelet itself writes where a pod comes from; who makes a pod in the cluster may write
    /// whatever hash he likes.
    fn uid(&self) -> &str {
        let note = |name: &str| self.metadata.annotations.get(name);
        let source = note("kubernetes.io/config.source").map_or("api", String::as_str);
        match note("kubernetes.io/config.hash") {
            Some(hash) if matches!(source, "file" | "http") => hash,
            _ => &self.metadata.uid,
        }
    }

    fn state(&self, container: &Container, add: &mut dyn FnMut(&str)) {
        let mut say = |name: &str, value: &str| add(&format!("{name}:{value}"));
        say("ns", &self.metadata.namespace);
        say("sa", &self.spec.service_account_name);
        say("pod-name", &self.metadata.name);
        say("pod-uid", &self.metadata.uid);
        say("node-name", &self.spec.node_name);
        say("container-name", &container.name);
        for image in container.images() {
            say("container-image", image);
        }
        for (name, value) in &self.metadata.labels {
            say("pod-label", &format!("{name}:{value}"));
        }
        for owner in &self.metadata.owner_references {
            say("pod-owner", &format!("{}:{}", owner.kind, owner.name));
            say("pod-owner-uid", &format!("{}:{}", owner.kind, owner.uid));
        }
        for (kind, all) in [
            ("pod-image", &self.status.container_statuses),
            ("pod-init-image", &self.status.init_container_statuses),
        ] {
            all.iter()
                .flat_map(Container::images)
                .for_each(|image| say(kind, image));
            say(&format!("{kind}-count"), &all.len().to_string());
        }
    }
}

impl Attestor for Arc<Kubernetes> {
    fn kind(&self) -> &'static str {
        "k8s"
    }

    fn attest(&self, subject: &Subject<'_>, add: &mut dyn FnMut(&str)) -> Result<(), AttestFailed> {
        let own = Groups::of(&ProcFolder::own())?;
        let Some(found) = Groups::of(subject.folder)?.pod_container(&own)? else {
            return Ok(());
        };
        let pods = self.pods(&found.pod)?;
        let (pod, container) = look_up(&pods, &found)?;
        pod.state(container, add);
        Ok(())
    }
}

fn look_up<'p>(
    pods: &'p BTreeMap<String, Pod>,
    found: &PodContainer,
) -> Result<(&'p Pod, &'p Container), AttestFailed> {
    let pod = pods
        .get(&found.pod)
        .ok_or_else(|| AttestFailed::new("the kubelet does not know its pod, or not yet"))?;
    let mut all = pod.status.container_statuses.iter();
    let mut first = pod.status.init_container_statuses.iter();
    let container = all
        .find(|one| one.is(&found.container))
        .or_else(|| first.find(|one| one.is(&found.container)));
    match container {
        Some(container) => Ok((pod, container)),
        None => Err(AttestFailed::new(
            "the kubelet does not know its container, or not yet",
        )),
    }
}

const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Labels change; what is older than this is asked for again.
const MAX_AGE: Duration = Duration::from_secs(2);

/// The pods of a node that has more than anybody runs.
const MAX_ANSWER_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::Container;
    use crate::attest::image::{Digest, RunningImage};

    #[test]
    fn the_image_is_what_the_runtime_runs_and_never_what_the_pod_asks_for() {
        let digest = |digits: &str| format!("sha256:{}", digits.repeat(32));
        let of = |image_id: &str| {
            let container = Container {
                image: format!("web@{}", digest("ee")),
                image_id: image_id.to_owned(),
                ..Container::default()
            };
            container.image()
        };
        let reference = format!("registry.test:5000/web@{}", digest("3a"));
        for written in [reference.clone(), format!("docker-pullable://{reference}")] {
            assert_eq!(
                of(&written),
                RunningImage::of("", std::slice::from_ref(&reference))
            );
        }
        let config = Digest::parse(&digest("c0")).unwrap();
        for written in [digest("c0"), format!("docker://{}", digest("c0"))] {
            assert_eq!(of(&written), RunningImage::of(config.as_str(), &[]));
        }
        for written in ["", "web:1", "registry.test/web"] {
            assert_eq!(of(written), RunningImage::default(), "{written}");
        }
    }
}
