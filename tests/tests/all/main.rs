//! Tests across processes: the real daemons, and programs that others wrote.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attestors;
mod authority;
mod commands;
mod control;
mod dependencies;
mod docker;
mod envoy;
mod faults;
mod federation;
mod inbound;
mod live;
mod outbound;
mod readme;
mod registry;
mod road;
mod tokens;
mod upstream;
mod workload_api;
