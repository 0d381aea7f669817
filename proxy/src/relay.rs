//! Opaque connections: bytes both ways, each end closed for itself.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};

/// Copies until both ends are done; tells the bytes from `a` to `b` and back.
pub(crate) async fn relay(
    a: &mut (impl AsyncRead + AsyncWrite + Unpin),
    b: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<(u64, u64)> {
    copy_bidirectional_with_sizes(a, b, BUFFER, BUFFER).await
}

/// A record of TLS, so that a read fills one.
const BUFFER: usize = 16 << 10;
