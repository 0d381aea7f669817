//! Tests across processes: the real daemons, and programs that others wrote.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod authority;
mod commands;
mod dependencies;
mod docker;
mod inbound;
mod readme;
mod road;
mod tokens;
mod workload_api;
