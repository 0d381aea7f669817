//! What is shown, in order. Each scene asks something real, tells what came back and what decided,
//! and says whether that is as it must be.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use postern_spiffe::X509Svid;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    app::STREAM,
    client::{self, Handshake, PATIENCE, Plain},
    evidence::{self, Access},
    network::{Pod, SERVICE},
    pod::Started,
    report::{Report, Shown},
    world::{DATABASE, TO_DATABASE, TO_WEB, World},
};

/// Plays every scene. A scene that did not come true is a line of the report; an error ends the
/// play.
pub(crate) async fn play(world: &mut World, report: &mut Report) -> anyhow::Result<()> {
    report.chapter("Verify identity");
    identity(world, report)?;
    stranger(world, report)?;
    look_alike(world, report)?;

    report.chapter("Authorize, by default nothing (the seed policies alone)");
    denied_by_default(world, report).await?;
    world.add_demo_policies().await?;

    report.chapter("Authorize, what was written down (with the demo's policies)");
    request(
        world,
        report,
        "allowed call",
        Method::GET,
        "/api/v1/orders",
        StatusCode::OK,
    )
    .await?;
    let forbidden = StatusCode::FORBIDDEN;
    request(
        world,
        report,
        "method refused",
        Method::DELETE,
        "/api/v1/orders",
        forbidden,
    )
    .await?;
    request(
        world,
        report,
        "path refused",
        Method::GET,
        "/admin",
        forbidden,
    )
    .await?;
    destination(world, report).await?;

    report.chapter("Encrypt");
    plaintext(world, report).await?;
    no_certificate(world, report).await?;

    report.chapter("Keep watching and verify again");
    rotation(world, report).await?;
    drift(world, report).await
}

/// The frontend's identity, fetched by the command line in its pod.
fn identity(world: &mut World, report: &mut Report) -> anyhow::Result<()> {
    let fetched = world.fetch(Pod::Frontend)?;
    let id = spiffe_id(&fetched);
    let came_true = id.as_deref() == Some("spiffe://example.org/workload/frontend");
    report.line(
        "identity fetched",
        came_true,
        &Shown {
            asked: "postern-agent api fetch, in pod frontend".into(),
            answer: id.unwrap_or_else(|| fetched.stderr.trim().to_owned()),
            decided: "Workload production/frontend-shell: uid, path and no-new-privs attested"
                .into(),
        },
    );
    Ok(())
}

/// A process that is no workload gets no identity.
fn stranger(world: &World, report: &mut Report) -> anyhow::Result<()> {
    let fetched = world.fetch_as_stranger()?;
    report.line(
        "no identity for a stranger",
        is_refused(&fetched),
        &Shown {
            asked: "the same, from outside the pods".into(),
            answer: fetched.stderr.trim().to_owned(),
            decided: "no Workload has these selectors".into(),
        },
    );
    Ok(())
}

/// The same user, program and network, but one wall less: it could gain privileges.
fn look_alike(world: &mut World, report: &mut Report) -> anyhow::Result<()> {
    if rustix::thread::no_new_privs()? {
        report.progress(
            "no privileged look-alike: here nothing can gain privileges, this shell included",
        );
        return Ok(());
    }
    let fetched = world.fetch_without_walls(Pod::Frontend)?;
    report.line(
        "privileged look-alike refused",
        is_refused(&fetched),
        &Shown {
            asked: "same user and program, started without no_new_privs".into(),
            answer: fetched.stderr.trim().to_owned(),
            decided: "Workload production/frontend-shell asks for posture:no-new-privs".into(),
        },
    );
    Ok(())
}

/// With the seed policies alone even the friendliest call is refused.
async fn denied_by_default(world: &World, report: &mut Report) -> anyhow::Result<()> {
    let answer = call_web(world)
        .await?
        .ask(Method::GET, "/api/v1/orders")
        .await?;
    let access = evidence::of_request(&world.access_log(Pod::Frontend), &answer.request_id).await?;
    report.line(
        "denied by default",
        answer.status == StatusCode::FORBIDDEN,
        &Shown {
            asked: "frontend: GET web/api/v1/orders".into(),
            answer: answer.status.to_string(),
            decided: access.decided(),
        },
    );
    Ok(())
}

/// One request of the frontend's app to web, untouched by either app.
async fn request(
    world: &World,
    report: &mut Report,
    title: &'static str,
    method: Method,
    path: &str,
    expected: StatusCode,
) -> anyhow::Result<()> {
    let asked = format!("frontend: {method} web{path}");
    let answer = call_web(world).await?.ask(method, path).await?;
    let access = evidence::of_request(&world.access_log(Pod::Web), &answer.request_id).await?;
    let agrees = access.verdict.as_deref() == Some(verdict(expected));
    report.line(
        title,
        answer.status == expected && agrees,
        &Shown {
            asked,
            answer: answer.status.to_string(),
            decided: access.decided(),
        },
    );
    Ok(())
}

/// A destination that no egress rule names.
async fn destination(world: &World, report: &mut Report) -> anyhow::Result<()> {
    let database = SocketAddr::from((world.network().nobody(), DATABASE));
    let stream = world
        .network()
        .connect_from(Pod::Frontend, database, TO_DATABASE)
        .await?;
    let source = stream.local_addr()?.to_string();
    let (came_true, answer) = match Plain::over(stream).await?.ask(Method::GET, "/").await {
        Ok(answer) => (
            answer.status == StatusCode::FORBIDDEN,
            answer.status.to_string(),
        ),
        Err(_) => (true, "closed".to_owned()),
    };
    let access = evidence::of_source(&world.access_log(Pod::Frontend), &source).await?;
    report.line(
        "destination refused by default",
        came_true && is_deny(&access),
        &Shown {
            asked: format!("frontend: GET database:{DATABASE}"),
            answer,
            decided: access.decided(),
        },
    );
    Ok(())
}

/// Plain HTTP, straight to web's address.
async fn plaintext(world: &World, report: &mut Report) -> anyhow::Result<()> {
    let stream = world.network().connect_from_outside(Pod::Web).await?;
    let source = stream.local_addr()?.to_string();
    let bytes = client::plaintext_bytes_back(stream).await?;
    let access = evidence::of_source(&world.access_log(Pod::Web), &source).await?;
    report.line(
        "plaintext refused",
        bytes == 0 && is_deny(&access),
        &Shown {
            asked: "outside: plain GET to web".into(),
            answer: format!("closed, {bytes} bytes came back"),
            decided: access.decided(),
        },
    );
    Ok(())
}

/// TLS without an identity.
async fn no_certificate(world: &World, report: &mut Report) -> anyhow::Result<()> {
    let handshake = probe(world).await?;
    let came_true = handshake.refused.is_some();
    report.line(
        "no certificate, no connection",
        came_true,
        &Shown {
            asked: "outside: TLS handshake with web, without an SVID".into(),
            answer: handshake.refused.unwrap_or_else(|| "let in".into()),
            decided: "a client must prove its identity in the handshake".into(),
        },
    );
    Ok(())
}

/// Requests without a pause until web's sidecar has shown three certificates.
async fn rotation(world: &World, report: &mut Report) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut serials = vec![serial(world).await?];
    let mut connection = call_web(world).await?;
    let (mut requests, mut errors) = (0_u32, 0_u32);
    while serials.len() < ROTATIONS && began.elapsed() < ROTATION_PATIENCE {
        for _ in 0..BETWEEN_PROBES {
            requests += 1;
            match connection.ask(Method::GET, "/api/v1/orders").await {
                Ok(answer) if answer.status == StatusCode::OK => {}
                _ => {
                    errors += 1;
                    connection = call_web(world).await?;
                }
            }
        }
        let now = serial(world).await?;
        if !serials.contains(&now) {
            serials.push(now);
        }
    }
    let seen = serials.len();
    report.line(
        "rotation under load",
        seen >= ROTATIONS && errors == 0,
        &Shown {
            asked: format!(
                "frontend: {requests} requests in {:.1} s",
                began.elapsed().as_secs_f32()
            ),
            answer: format!("{errors} errors, {seen} certificates of web seen"),
            decided: "SVIDs live 8 s here and are renewed at half of it".into(),
        },
    );
    Ok(())
}

/// A program that nobody expected runs in the frontend's pod: its identity is taken back, and the
/// connection that it has open ends.
async fn drift(world: &mut World, report: &mut Report) -> anyhow::Result<()> {
    let mut connection = call_web(world).await?;
    let mut body = connection.send(Method::GET, STREAM).await?.into_body();
    let first = timeout(PATIENCE, body.frame())
        .await
        .context("no first tick in time")?;
    let open = matches!(first, Some(Ok(_)));

    let intruder = world.intrude()?;
    let began = Instant::now();
    let ended = timeout(PATIENCE, async {
        while let Some(Ok(_)) = body.frame().await {}
    })
    .await;
    let after = began.elapsed();

    let drift = evidence::wait_for(|| deviation(world)).await?;
    let named = drift.get("what").and_then(Value::as_str) == intruder.to_str();
    let answer = drift
        .get("answer")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let kind = drift
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    report.line(
        "drift seen",
        named && answer == "revoked",
        &Shown {
            asked: "a program outside the baseline starts in pod frontend".into(),
            answer: format!("{kind}: {answer}"),
            decided: "Workload production/frontend: onDrift revoke".into(),
        },
    );
    report.line(
        "live connection closed",
        open && ended.is_ok(),
        &Shown {
            asked: "an open stream of frontend to web".into(),
            answer: format!("ended {} ms after the program started", after.as_millis()),
            decided: "its certificate is on the revocation list".into(),
        },
    );
    let fetched = world.fetch(Pod::Frontend)?;
    report.line(
        "identity taken back",
        is_refused(&fetched),
        &Shown {
            asked: "postern-agent api fetch, in pod frontend".into(),
            answer: fetched.stderr.trim().to_owned(),
            decided: "the pod is not what its baseline says".into(),
        },
    );
    Ok(())
}

/// A connection of the frontend's app to web.
async fn call_web(world: &World) -> anyhow::Result<Plain> {
    let web = SocketAddr::from((world.network().address(Pod::Web), SERVICE));
    Plain::over(
        world
            .network()
            .connect_from(Pod::Frontend, web, TO_WEB)
            .await?,
    )
    .await
}

/// A handshake with web's sidecar from outside.
async fn probe(world: &World) -> anyhow::Result<Handshake> {
    client::handshake_without_certificate(world.network().connect_from_outside(Pod::Web).await?)
        .await
}

/// The serial number of the certificate that web's sidecar shows now.
async fn serial(world: &World) -> anyhow::Result<String> {
    let certificate: CertificateDer<'static> = probe(world)
        .await?
        .shown
        .context("web's sidecar showed no certificate")?;
    Ok(X509Svid::parse(&certificate)?.serial().to_string())
}

/// The deviation of the frontend that the agent lists.
fn deviation(world: &World) -> Option<Value> {
    let listed = world.drift().ok()?;
    let listed: Vec<Value> = serde_json::from_str(&listed.stdout).ok()?;
    listed.into_iter().find(|drift| {
        drift.get("spiffeID").and_then(Value::as_str)
            == Some("spiffe://example.org/workload/frontend")
    })
}

fn spiffe_id(fetched: &Started) -> Option<String> {
    let answer: Value = serde_json::from_str(&fetched.stdout).ok()?;
    answer
        .pointer("/svids/0/spiffe_id")
        .and_then(Value::as_str)
        .map(str::to_owned)
}

fn is_refused(fetched: &Started) -> bool {
    fetched.code == Some(1) && fetched.stderr.contains("PermissionDenied")
}

fn is_deny(access: &Access) -> bool {
    access.verdict.as_deref() == Some("deny")
}

fn verdict(status: StatusCode) -> &'static str {
    if status.is_success() { "allow" } else { "deny" }
}

/// How many certificates must have been seen, and how long we wait for them.
const ROTATIONS: usize = 3;
const ROTATION_PATIENCE: Duration = Duration::from_secs(30);
const BETWEEN_PROBES: u32 = 20;
