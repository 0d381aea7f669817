//! The data plane: one proxy in front of each workload.
//!
//! `inbound` and `outbound` are the two roads; reading them top to bottom is reading the design.
//! What they share: `tls` (who we are, whom we trust), `unproven` (callers who have not proven themselves), `policy_source` (what is allowed), `tokens` (what a request's token says),
//! `connections` (what is open, and whether it still may be), `renewal` (how the ends of an open
//! connection show their next certificates), `http` (what a request may look
//! like), `pool` (connections to upstreams), and the telling of it (`access_log`, `telemetry`). `admin` is
//! what those who run it can ask and tell it, `ask` the commands that do. `netns` makes the rules that send a
//! pod's traffic here, and `probe` proves that they are in force. `inject` puts both into manifests. `drain`
//! is the end.

#![forbid(unsafe_code)]

pub mod config;

pub mod app;

mod inbound;

mod outbound;

mod listener;

mod own;

mod supervision;

pub mod netns;

pub mod inject;

mod probe;

mod detect;

mod unproven;

mod tls;

mod policy_source;

mod tokens;

mod connections;

mod drain;

mod renewal;

mod http;

mod pool;

mod random;

mod until;

mod relay;

mod access_log;

pub mod telemetry;

mod admin;

pub mod ask;

mod walls;

#[doc(hidden)]
pub mod peer_bytes;
