//! The data plane: one proxy in front of each workload.
//!
//! `inbound` and `outbound` are the two roads; reading them top to bottom is reading the design.
//! What they share: `tls` (who we are, whom we trust), `policy_source` (what is allowed), `tokens` (what a request's token says),
//! `connections` (what is open, and whether it still may be), `http` (what a request may look
//! like), and the telling of it (`access_log`, `telemetry`).

#![forbid(unsafe_code)]

pub mod config;

pub mod app;

mod inbound;

mod outbound;

mod listener;

mod detect;

mod tls;

mod policy_source;

mod tokens;

mod connections;

mod http;

mod relay;

mod access_log;

pub mod telemetry;

#[doc(hidden)]
pub mod peer_bytes;
