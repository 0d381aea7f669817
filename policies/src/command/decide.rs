//! `decide`: JSON lines in, JSON lines out, in order.

use std::{
    io::{self, BufRead, Write},
    process::ExitCode,
};

use clap::Args;
use postern_policies::PolicySet;
use serde_json::{Value, json};

use super::{
    Policies,
    query::{Answer, Query},
};

/// Decides accesses: JSON lines in, JSON lines out
#[derive(Debug, Args)]
pub(super) struct Decide {
    #[command(flatten)]
    policies: Policies,
}

impl Decide {
    pub(super) fn run(&self) -> ExitCode {
        let loaded = match self.policies.load() {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        match stream(&loaded.set, io::stdin().lock(), io::stdout().lock()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                anstream::eprintln!("postern-policy: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

/// Answers every line before it reads the next, so that it can be used as a co-process. Tells
/// whether every line could be read.
fn stream(set: &PolicySet, mut input: impl BufRead, mut output: impl Write) -> io::Result<bool> {
    let mut all_good = true;
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
        if io::Read::take(&mut input, limit).read_until(b'\n', &mut line)? == 0 {
            return Ok(all_good);
        }
        if line.len() == MAX_LINE_BYTES && !line.ends_with(b"\n") {
            let problem = format!("a line has more than {MAX_LINE_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match answer(set, &line) {
            Ok(answer) => serde_json::to_writer(&mut output, &answer)?,
            Err((id, error)) => {
                all_good = false;
                serde_json::to_writer(&mut output, &json!({"id": id, "error": error}))?;
            }
        }
        output.write_all(b"\n")?;
        output.flush()?;
    }
}

fn answer(set: &PolicySet, line: &[u8]) -> Result<Answer, (Value, String)> {
    let query: Query = serde_json::from_slice(line).map_err(|error| {
        // Whose line it was, if at least that can be read.
        let value: Value = serde_json::from_slice(line).unwrap_or_default();
        (
            value.get("id").cloned().unwrap_or_default(),
            error.to_string(),
        )
    })?;
    let id = query.id.clone();
    let parsed = query.parse(set).map_err(|error| (id.clone(), error))?;
    Ok(parsed.answer(id, set))
}

/// The longest line that is read.
const MAX_LINE_BYTES: usize = 4 << 20;
