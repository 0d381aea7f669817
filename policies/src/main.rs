//! `postern-policy`: checks, decides and explains policies, with the engine of the proxy.

#![forbid(unsafe_code)]

mod command;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    command::run(command::Arguments::parse())
}
