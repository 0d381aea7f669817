//! Wire contracts: the SPIFFE Workload API, Envoy's Secret Discovery Service, what an agent tells
//! the proxies of its node, and what collectors of traces take.
//!
//! The code in `generated/` comes from the `.proto` files beside this crate and is committed;
//! `tests/generated.rs` holds the two together. Nothing is written by hand in there.

/// The SPIFFE Workload API. Spec: SPIFFE Workload API sections 4 to 6.
#[rustfmt::skip]
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::indexing_slicing,
    reason = "generated code"
)]
#[path = "generated/spiffe_workload_api.rs"]
pub mod workload_api;

/// Envoy's Secret Discovery Service, as far as it is served. Spec: Envoy API v3.
#[rustfmt::skip]
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::indexing_slicing,
    reason = "generated code"
)]
#[path = "generated/envoy_sds.rs"]
pub mod sds;

/// What collectors of traces take, as far as it is said. Spec: OpenTelemetry Protocol 1.x.
#[rustfmt::skip]
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::indexing_slicing,
    reason = "generated code"
)]
#[path = "generated/otlp_trace.rs"]
pub mod otlp;

/// What an agent tells the proxies of its node.
#[rustfmt::skip]
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::indexing_slicing,
    reason = "generated code"
)]
#[path = "generated/control.rs"]
pub mod control;

/// The contracts that an agent serves, as gRPC reflection tells them: encoded `FileDescriptorSet`s.
pub const DESCRIPTORS: [&[u8]; 3] = [
    include_bytes!("generated/spiffe_workload_api.bin"),
    include_bytes!("generated/envoy_sds.bin"),
    include_bytes!("generated/control.bin"),
];

/// The metadata key that every Workload API request must carry, with the value `true` and once.
/// Spec: SPIFFE Workload Endpoint section 6.1.
pub const SECURITY_HEADER: &str = "workload.spiffe.io";

/// The environment variable that names the Workload API's socket.
/// Spec: SPIFFE Workload Endpoint section 4.
pub const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
