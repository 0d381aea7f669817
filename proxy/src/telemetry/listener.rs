//! The listeners for metrics and for administration: few connections, each for a short time.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
    request::Parts,
};
use http_body_util::{Either, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use super::{Metrics, caller::refused, tap::Lines};

/// Tells what is missing before the proxy may be called ready; empty when it is.
pub(crate) type Readiness = Arc<dyn Fn() -> Vec<&'static str> + Send + Sync>;

/// What is answered: words, or lines as they come.
pub(crate) type Told = Response<Either<Full<Bytes>, Lines>>;

/// Answers questions about the proxy, and does what it is told to.
pub(crate) type Administration =
    Arc<dyn Fn(Parts) -> Pin<Box<dyn Future<Output = Told> + Send>> + Send + Sync>;

/// What is different about an answer: an extension of it.
#[derive(Debug, Clone)]
pub(crate) enum Special {
    /// It goes on until this is cancelled, for longer than others may.
    Until(CancellationToken),
    /// When it has been given, this is cancelled.
    Then(CancellationToken),
}

/// What one listener answers.
#[derive(Clone)]
pub(crate) struct Answers {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readiness: Readiness,
    /// What else there is, for callers on this machine alone.
    pub(crate) administration: Option<Administration>,
}

/// Serves `/healthz/live`, `/healthz/ready`, `/metrics`, and what the administration knows.
pub(crate) async fn serve(listener: TcpListener, answers: Answers) {
    // More wait in the kernel's queue.
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let answers = answers.clone();
        tokio::spawn(async move {
            connection(stream, answers).await;
            drop(permit);
        });
    }
}

/// One request and its answer.
async fn connection(stream: TcpStream, answers: Answers) {
    let special = Arc::new(OnceLock::new());
    let begun = special.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (answers, begun) = (answers.clone(), begun.clone());
        async move {
            let told = answers.to(request.into_parts().0).await;
            if let Some(special) = told.extensions().get::<Special>() {
                // There is one request on a connection.
                let _ = begun.set(special.clone());
            }
            Ok::<_, std::convert::Infallible>(told)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // Who does not read the answer does not keep the place.
        () = overdue(&special) => {}
        _ = served => {}
    }
    if let Some(Special::Then(then)) = special.get() {
        then.cancel();
    }
}

async fn overdue(special: &OnceLock<Special>) {
    tokio::time::sleep(CONNECTION_TIME).await;
    if let Some(Special::Until(ends)) = special.get() {
        ends.cancelled().await;
    }
}

impl Answers {
    async fn to(&self, asked: Parts) -> Told {
        let path = asked.uri.path();
        if self.administration.is_some()
            && let Some(why) = refused(&asked.headers)
        {
            return told(StatusCode::FORBIDDEN, format!("{why}\n"));
        }
        match (&asked.method, path, &self.administration) {
            (&Method::GET, "/healthz/live", _) => told(StatusCode::OK, "ok\n"),
            (&Method::GET, "/healthz/ready", _) => match (self.readiness)().as_slice() {
                [] => told(StatusCode::OK, "ok\n"),
                missing => {
                    let text = format!("not ready: {}\n", missing.join(", "));
                    told(StatusCode::SERVICE_UNAVAILABLE, text)
                }
            },
            (&Method::GET, "/metrics", _) => told(StatusCode::OK, self.metrics.render()),
            (_, "/healthz/live" | "/healthz/ready" | "/metrics", _) => only(&["GET"]),
            (_, _, Some(administration)) => administration(asked).await,
            (&Method::GET, _, None) => told(StatusCode::NOT_FOUND, "not found\n"),
            (_, _, None) => only(&["GET"]),
        }
    }
}

/// An answer in words.
pub(crate) fn told(status: StatusCode, text: impl Into<Bytes>) -> Told {
    let mut answer = Response::new(Either::Left(Full::new(text.into())));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    answer
}

/// The answer to a method that the path does not have.
pub(crate) fn only(methods: &[&'static str]) -> Told {
    let text = format!("only {}\n", methods.join(", "));
    let mut answer = told(StatusCode::METHOD_NOT_ALLOWED, text);
    if let Ok(value) = HeaderValue::try_from(methods.join(", ")) {
        answer.headers_mut().insert(ALLOW, value);
    }
    answer
}

/// As many as monitors, probes and people at once need.
const MAX_CONNECTIONS: usize = 64;

/// Until when a request must have been said.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// Until when its answer must have been read.
const CONNECTION_TIME: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::{Answers, MAX_CONNECTIONS, Metrics, serve};

    #[tokio::test]
    async fn connections_that_say_nothing_are_bounded_and_make_room_for_others() {
        // FAULTS 121
        let listen = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listen.local_addr().unwrap();
        let answers = Answers {
            metrics: Arc::new(Metrics::default()),
            readiness: Arc::new(Vec::new),
            administration: None,
        };
        let serving = tokio::spawn(serve(listen, answers));
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut asking = TcpStream::connect(address).await.unwrap();
        let request = b"GET /healthz/live HTTP/1.1\r\nhost: any\r\n\r\n";
        asking.write_all(request).await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // It was let in when one of them had been sent away, not before.
        let mut rest = String::new();
        let first = idle.first_mut().unwrap();
        tokio::select! {
            biased;
            ended = first.read_to_string(&mut rest) => drop(ended),
            () = std::future::ready(()) => panic!("more were let in than there are places"),
        }
        serving.abort();
    }
}
