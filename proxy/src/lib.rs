//! The data plane: one proxy in front of each workload.
//!
//! `inbound` and `outbound` are the two roads; reading them top to bottom is reading the design.
//! What they share: `tls` (who we are, whom we trust), `unproven` (callers who have not proven themselves), `policy_source` (what is allowed), `tokens` (what a request's token says),
//! `connections` (what is open, and whether it still may be), `http` (what a request may look
//! like), `pool` (connections to upstreams), and the telling of it (`access_log`, `telemetry`). `netns`
//! makes the rules that send a pod's traffic here, and `probe` proves that they are in force.

#![forbid(unsafe_code)]

pub mod config;

pub mod app;

mod inbound;

mod outbound;

mod listener;

pub mod netns;

mod probe;

mod detect;

mod unproven;

mod tls;

mod policy_source;

mod tokens;

mod connections;

mod http;

mod pool;

mod relay;

mod access_log;

pub mod telemetry;

#[doc(hidden)]
pub mod peer_bytes;
