//! The `docker` attestor: what the Docker Engine says of the container that a process is in, in SPIRE's
//! spelling.
//!
//! The container is found by the process' control groups, and believed only if they lie within those
//! of the container's first process: a name alone proves nothing.

use std::{collections::HashMap, path::PathBuf};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use super::{AttestFailed, Attestor, Subject, cgroup::Groups, read_text, service::Service};

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

    fn ask(&self, id: &str) -> Result<Container, AttestFailed> {
        self.engine.ask("the engine", inspect(&self.socket, id))
    }
}

impl Attestor for Docker {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn attest(&self, subject: &Subject<'_>, add: &mut dyn FnMut(&str)) -> Result<(), AttestFailed> {
        let groups = Groups::of(subject.folder)?;
        let Some(id) = groups.container()? else {
            return Ok(());
        };
        let container = self.ask(id)?;
        is_in(&groups, id, &container)?;
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
    let first = read_text(&path).ok().and_then(|text| Groups::parse(&text));
    match first.is_some_and(|first| groups.are_within(&first)) {
        true => Ok(()),
        false => Err(AttestFailed::new(
            "its control group is named like a container's and is not within it",
        )),
    }
}

async fn inspect(socket: &std::path::Path, id: &str) -> Result<Container, AttestFailed> {
    let failed = |error: &dyn std::fmt::Display| {
        AttestFailed::new(format!("the engine at `{}`: {error}", socket.display()))
    };
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| failed(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    tokio::spawn(connection);
    // The ID is hexadecimal: nothing of the process gets into the request.
    let request = Request::get(format!("/containers/{id}/json"))
        .header(header::HOST, "docker")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| failed(&error))?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Err(AttestFailed::new("the engine has no such container")),
        other => return Err(failed(&other)),
    }
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect();
    let body = body.await.map_err(|error| failed(&error))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| failed(&error))
}

const MAX_ANSWER_BYTES: usize = 4 << 20;
