//! Streams that wait without holding what they said last.
//!
//! The library keeps the buffer in which it has written a message until it writes the next one, which may be
//! in an hour: for each stream as much as all SVIDs in the message. So the answers of streams are put into
//! their frames here, each in memory of its own size that goes when it has been sent. Who may ask what, and
//! what he is answered, is the service's business as for every other method. Spec: gRPC over HTTP/2,
//! "Length-Prefixed-Message" and "Trailers".

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{
    future::{BoxFuture, FutureExt as _},
    stream::StreamExt as _,
};
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::StreamBody;
use hyper::body::Frame;
use postern_proto::workload_api::{
    JwtBundlesRequest, X509BundlesRequest, X509svidRequest,
    spiffe_workload_api_server::{SpiffeWorkloadApi as _, SpiffeWorkloadApiServer},
};
use prost::Message;
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use super::{Stream, WorkloadApi};

/// The service, with streams that hold little.
#[derive(Debug, Clone)]
pub struct Framed {
    api: Arc<WorkloadApi>,
    inner: SpiffeWorkloadApiServer<WorkloadApi>,
}

impl Framed {
    /// Of this service. A request of more bytes is refused.
    pub fn new(api: WorkloadApi, max_request_bytes: usize) -> Self {
        let api = Arc::new(api);
        let inner = SpiffeWorkloadApiServer::from_arc(api.clone());
        Self {
            api,
            inner: inner.max_decoding_message_size(max_request_bytes),
        }
    }
}

impl NamedService for Framed {
    const NAME: &'static str = SpiffeWorkloadApiServer::<WorkloadApi>::NAME;
}

impl Service<Request<Body>> for Framed {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let api = self.api.clone();
        // These requests have no fields, so there is nothing to read of them.
        macro_rules! stream {
            ($method:ident, $message:expr) => {
                async move {
                    let request = tonic::Request::from_http(request.map(|_| $message));
                    let answer = api.$method(request).await;
                    Ok(answer.map_or_else(Status::into_http, |answer| framed(answer.into_inner())))
                }
                .boxed()
            };
        }
        match request.uri().path() {
            "/SpiffeWorkloadAPI/FetchX509SVID" => stream!(fetch_x509svid, X509svidRequest {}),
            "/SpiffeWorkloadAPI/FetchX509Bundles" => {
                stream!(fetch_x509_bundles, X509BundlesRequest {})
            }
            "/SpiffeWorkloadAPI/FetchJWTBundles" => {
                stream!(fetch_jwt_bundles, JwtBundlesRequest {})
            }
            _ => self.inner.call(request),
        }
    }
}

/// The answer that tells these messages. An error is the last of them.
fn framed<M: Message + 'static>(messages: Stream<M>) -> Response<Body> {
    let frames = messages.map(|message| match message {
        Ok(message) => Ok(Frame::data(frame(&message))),
        Err(status) => {
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers)?;
            Ok::<_, Status>(Frame::trailers(trailers))
        }
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A message in its frame: not compressed, its length, and itself.
fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    frame.put_u8(0);
    // Longer ones than this number tells are taken by no client.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    let encoded = message.encode(&mut frame);
    encoded.expect("a buffer that grows has room");
    frame.freeze()
}

const PREFIX_BYTES: usize = 5;

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::BodyExt as _;
    use postern_proto::workload_api::X509BundlesResponse;
    use prost::Message as _;
    use tonic::Status;

    use super::{frame, framed};

    fn message() -> X509BundlesResponse {
        X509BundlesResponse {
            crl: vec![vec![7; 300].into()],
            ..Default::default()
        }
    }

    #[test]
    fn a_frame_has_the_length_of_its_message_and_no_room_beside() {
        let frame = frame(&message());
        let length = message().encoded_len();
        assert_eq!(frame.len(), 5 + length);
        assert_eq!(frame[..3], [0, 0, 0]);
        assert_eq!(usize::from(frame[3]) * 256 + usize::from(frame[4]), length);
        assert_eq!(X509BundlesResponse::decode(&frame[5..]), Ok(message()));
        let empty = super::frame(&X509BundlesResponse::default());
        assert_eq!(*empty, [0; 5]);
    }

    #[tokio::test]
    async fn what_ends_a_stream_stands_in_its_trailers() {
        let ends = Err(Status::permission_denied("no identity issued"));
        let messages = stream::iter([Ok(message()), ends]).boxed();
        let body = framed(messages).into_body().collect().await.unwrap();
        let trailers = body.trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "7");
        assert_eq!(trailers["grpc-message"], "no%20identity%20issued");
        assert_eq!(body.to_bytes(), frame(&message()));
    }
}
