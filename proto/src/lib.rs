//! Wire contracts: the SPIFFE Workload API.
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

/// The metadata key that every Workload API request must carry, with the value `true` and once.
/// Spec: SPIFFE Workload Endpoint section 6.1.
pub const SECURITY_HEADER: &str = "workload.spiffe.io";

/// The environment variable that names the Workload API's socket.
/// Spec: SPIFFE Workload Endpoint section 4.
pub const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
