//! SPIFFE identities and the checks that make one trustworthy.
//!
//! A pure leaf: no sockets, no clock, no files. Bytes and `now` come in as arguments; typed values
//! or the broken rule come out. Everything that reads a peer's bytes in here is fuzzed.
//!
//! Implements SPIFFE-ID, X.509-SVID, JWT-SVID and Trust Domain and Bundle.

#![forbid(unsafe_code)]

pub mod trust_domain;

pub mod spiffe_id;

pub mod selector;

pub mod bundle;

pub mod jwt_svid;

pub mod x509_svid;

pub use bundle::{BundleSet, X509Bundle};
pub use jwt_svid::{JwtBundle, JwtRefused, JwtSvid};
pub use selector::Selector;
pub use spiffe_id::SpiffeId;
pub use trust_domain::TrustDomain;
pub use x509_svid::{PeerRefused, PeerRole, RevocationLists, VerifiedPeer, X509Svid, verify_peer};
