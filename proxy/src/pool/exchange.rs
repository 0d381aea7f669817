//! One request and the head of its answer, on one connection.

use std::{
    error::Error as _,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode, header::UPGRADE, request::Parts};
use hyper::{body::Incoming, client::conn::TrySendError};

use super::{
    Answer, Failed, Held, Outgoing, UpstreamError,
    body::{Broken, Spare},
    form::{for_http1, for_http2},
    host::{Busy, Host, Lease},
};
use crate::http::answer::check;

/// Sends a request on a connection.
pub(super) async fn exchange(
    host: &Arc<Host>,
    lease: Lease,
    request: Request<Outgoing>,
    limit: Duration,
) -> Result<Answer, Failed> {
    let (again, began) = (Again::of(&request), Instant::now());
    lease.count();
    let sent = on(host, lease, request);
    let done = tokio::select! {
        done = sent => done,
        () = again.body.stalled(limit) => Err(Failed { error: UpstreamError::Timeout, again: None }),
    };
    match done {
        Ok((response, held)) => Ok(Answer {
            response,
            held,
            again: Some(again),
            took: began.elapsed(),
        }),
        Err(failed) => Err(Failed {
            again: failed.again.or_else(|| again.request()),
            error: failed.error,
        }),
    }
}

async fn on(
    host: &Arc<Host>,
    lease: Lease,
    request: Request<Outgoing>,
) -> Result<(Response<Incoming>, Held), Failed> {
    let bad = |_| Failed {
        error: UpstreamError::Request,
        again: None,
    };
    let asks_upgrade = request.headers().contains_key(UPGRADE);
    let (response, held) = match lease {
        Lease::Http1 { mut kept, .. } => {
            let request = for_http1(request).map_err(bad)?;
            let response = kept.sender.try_send_request(request).await;
            let response = response.map_err(failed)?;
            // A refused answer ends its connection: nobody knows where it ends.
            check(&response).map_err(|ambiguous| Failed {
                error: ambiguous.into(),
                again: None,
            })?;
            (
                response,
                Held::Http1 {
                    _busy: Busy::new(kept, host),
                },
            )
        }
        Lease::Http2 { slot, .. } => {
            let request = for_http2(request).map_err(bad)?;
            let response = slot.sender().try_send_request(request).await;
            (response.map_err(failed)?, Held::Http2 { _slot: slot })
        }
    };
    // What follows an upgrade is not HTTP: who did not ask for it must not get it.
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !asks_upgrade {
        let error = UpstreamError::Answer("it changes the protocol without being asked".into());
        return Err(Failed { error, again: None });
    }
    Ok((response, held))
}

/// What is needed to send a request a second time.
pub(crate) struct Again {
    /// Only requests that may be done twice have one. Spec: RFC 9110 section 9.2.2.
    head: Option<Parts>,
    body: Spare,
}

impl Again {
    fn of(request: &Request<Outgoing>) -> Self {
        let copy = || {
            let (mut head, ()) = Request::new(()).into_parts();
            head.method = request.method().clone();
            head.uri = request.uri().clone();
            head.version = request.version();
            head.headers = request.headers().clone();
            head
        };
        Self {
            head: request.method().is_idempotent().then(copy),
            body: request.body().spare(),
        }
    }

    /// Would there be a request?
    pub(crate) fn is_possible(&self) -> bool {
        self.head.is_some() && self.body.is_unread()
    }

    /// The request once more; who reads its body until now gets no more of it.
    pub(crate) fn request(self) -> Option<Request<Outgoing>> {
        let head = self.head?;
        Some(Request::from_parts(head, self.body.again()?))
    }
}

/// A request that the library gives back was never sent.
fn failed(mut error: TrySendError<Request<Outgoing>>) -> Failed {
    let again = error.take_message();
    let error = error.into_error();
    let cause = error
        .source()
        .and_then(|source| source.downcast_ref::<Broken<hyper::Error>>());
    let error = match cause {
        Some(broken) => UpstreamError::Caller(broken.to_string()),
        None => UpstreamError::Answer(told(&error)),
    };
    Failed { error, again }
}

/// The library's words, with their cause.
fn told(error: &hyper::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
