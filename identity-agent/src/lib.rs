//! The node identity agent: who is this process, and what identity does it deserve?
//!
//! The way of a request: `caller` pins the process behind the socket, `monitor` hears what becomes of it,
//! `admission` lets it in, `attest`
//! states what is true of it, `registry` tells which Workloads it is, `authority` issues,
//! `workload_api` or `sds` answers and keeps the stream; `drift` watches the pods and takes identities back.

#![forbid(unsafe_code)]

pub mod config;

mod shares;

mod sockets;

pub mod caller;

pub mod monitor;

pub mod attest;

mod guarded;

mod settled;

pub mod registry;

pub mod kubernetes;

pub mod authority;

pub mod federation;

pub mod pem;

pub mod agent;

pub mod admission;

mod audit;

pub mod workload_api;

pub mod sds;

pub mod control;

pub mod publish;

pub mod drift;

pub mod rules;

pub mod admin;

pub mod telemetry;

mod walls;

pub mod app;
