//! The `docker` attestor: what the Docker Engine says of the container that a process is in, in SPIRE's
//! spelling.
//!
//! The container is found by the process' control groups, and believed only if they lie within those
//! of the container's first process: a name alone proves nothing.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{
    AttestFailed, Attestor, Subject, causes,
    cgroup::Groups,
    image::{Digest, RunningImage},
    reading::{known, read_as},
    service::Service,
};

/// States `docker:` selectors.
#[derive(Debug)]
pub struct Docker {
    socket: PathBuf,
    engine: Service,
}

/// What the engine tells of a container. Spec: Docker Engine API, `ContainerInspect`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    id: String,
    #[serde(default)]
    name: String,
    /// The digest of the image's configuration.
    image: String,
    state: State,
    config: Config,
}

/// What it tells of an image. Spec: Docker Engine API, `ImageInspect`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    /// `NAME@sha256:…`; none of one that was never in a registry.
    repo_digests: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
    pid: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    /// As it was named when the container was made.
    #[serde(default)]
    image: String,
    labels: Option<HashMap<String, String>>,
    env: Option<Vec<String>>,
}

impl Docker {
    /// Asks the engine at this socket.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            engine: Service::default(),
        }
    }

    /// The container that a process is in, if it is in one.
    fn container(&self, subject: &Subject<'_>) -> Result<Option<Container>, AttestFailed> {
        let groups = Groups::of(subject.folder)?;
        let Some(id) = groups.container()? else {
            return Ok(None);
        };
        // The ID is hexadecimal: nothing of the process gets into the request.
        let container: Option<Container> = self.ask(&format!("/containers/{id}/json"))?;
        let unknown = || AttestFailed::new("the engine has no such container");
        let container = container.ok_or_else(unknown)?;
        is_in(&groups, id, &container)?;
        Ok(Some(container))
    }

    /// The image that the container of a process was made of, if it is in one.
    pub(super) fn image(
        &self,
        subject: &Subject<'_>,
    ) -> Result<Option<RunningImage>, AttestFailed> {
        let Some(container) = self.container(subject)? else {
            return Ok(None);
        };
        let id = container.image;
        if Digest::parse(&id).is_none() {
            return Err(AttestFailed::new("its image has no digest"));
        }
        // It may have been removed under the container: what it was is told all the same.
        let image: Option<Image> = self.ask(&format!("/images/{id}/json"))?;
        let references = image.and_then(|image| image.repo_digests);
        Ok(Some(RunningImage::of(&id, &references.unwrap_or_default())))
    }

    /// What the engine tells at a path; none where it has no such thing.
    fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, AttestFailed> {
        self.engine.ask("the engine", get(&self.socket, path))
    }
}

impl Attestor for Arc<Docker> {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn attest(&self, subject: &Subject<'_>, add: &mut dyn FnMut(&str)) -> Result<(), AttestFailed> {
        let Some(container) = self.container(subject)? else {
            return Ok(());
        };
        add(&format!("image_id:{}", container.config.image));
        add(&format!("image_config_digest:{}", container.image));
        add(&format!("name:{}", container.name.trim_start_matches('/')));
        for (name, value) in container.config.labels.iter().flatten() {
            add(&format!("label:{name}:{value}"));
        }
        for variable in container.config.env.iter().flatten() {
            add(&format!("env:{variable}"));
        }
        Ok(())
    }
}

/// Is the process in this container, whatever its control groups are called?
fn is_in(groups: &Groups, id: &str, container: &Container) -> Result<(), AttestFailed> {
    if container.id != id || !container.state.running {
        return Err(AttestFailed::new("its container does not run"));
    }
    let path = PathBuf::from(format!("/proc/{}/cgroup", container.state.pid));
    let first = known(read_as(&path, Groups::parse))?;
    match first.is_some_and(|first| groups.are_within(&first)) {
        true => Ok(()),
        false => Err(AttestFailed::new(
            "its control group is named like a container's and is not within it",
        )),
    }
}

async fn get<T: DeserializeOwned>(
    socket: &std::path::Path,
    path: &str,
) -> Result<Option<T>, AttestFailed> {
    let engine = format!("the engine at `{}`", socket.display());
    let failed =
        |error: &dyn std::fmt::Display| AttestFailed::NoAnswer(format!("{engine}: {error}"));
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| AttestFailed::because(&engine, &error, causes(&error)))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, "docker")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| failed(&error))?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(None),
        other => return Err(failed(&other)),
    }
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect();
    let body = body.await.map_err(|error| failed(&error))?.to_bytes();
    let told = serde_json::from_slice(&body).map_err(|error| failed(&error))?;
    Ok(Some(told))
}

const MAX_ANSWER_BYTES: usize = 4 << 20;
