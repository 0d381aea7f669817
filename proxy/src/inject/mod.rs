//! `postern-proxy inject`: a manifest in, the same with the sidecar out.
//!
//! `tree` and `spot` read the text, `kinds` finds the pods in it, `annotations` and `isolation` judge
//! each, `sidecar` says what it gets, `edit` works that into the lines that are there, and `kept`
//! sees that all else means what it did. All of that is pure. Nothing is written anew: what is not
//! added stays byte for byte.

mod annotations;
mod compose;
mod edit;
mod isolation;
mod item;
mod kept;
mod kinds;
mod meaning;
mod mounts;
mod options;
mod pod;
mod review;
mod sidecar;
mod spot;
mod tree;
mod volumes;
mod webhook;

use std::{
    io::{Read as _, Write as _},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use postern_policies::diagnostic::{Diagnostic, Place, Problems, Severity};

use edit::Edit;
use options::Options;
use spot::Spot;

pub use options::Inject;

/// Reads the files, and prints all of them with their sidecars, or nothing; or serves as a webhook.
///
/// # Errors
/// A file that cannot be read, or [`Refused`], whose reasons were told on standard error.
pub fn run(inject: &Inject) -> anyhow::Result<()> {
    let options = inject.settings.options();
    let webhook = &inject.webhook;
    if let (true, Some(certificate), Some(key)) =
        (webhook.webhook, &webhook.tls_cert, &webhook.tls_key)
    {
        let files = webhook::Files {
            certificate: certificate.clone(),
            key: key.clone(),
            client_authority: webhook.client_ca.clone(),
        };
        return webhook::serve(webhook.listen, files, options);
    }
    let mut out = String::new();
    let mut errors = 0;
    for path in &inject.filename {
        let (name, bytes) = read(path)?;
        let (edited, told) = process(&name, &bytes, &options);
        for diagnostic in &told {
            // With standard error gone there is nobody to tell.
            let _ = writeln!(anstream::stderr(), "{diagnostic}");
        }
        errors += told.iter().filter(is_error).count();
        join(&mut out, &edited.unwrap_or_default());
    }
    if errors > 0 {
        return Err(Refused(errors).into());
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(out.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Nothing was printed, because something was wrong.
#[derive(Debug, thiserror::Error)]
#[error("nothing is injected: {0} error{plural} above", plural = if *.0 == 1 { "" } else { "s" })]
pub struct Refused(usize);

fn is_error(diagnostic: &&Diagnostic) -> bool {
    diagnostic.severity == Severity::Error
}

fn read(path: &Path) -> anyhow::Result<(Arc<Path>, Vec<u8>)> {
    let mut bytes = Vec::new();
    let limit = MAX_FILE_BYTES + 1;
    let (name, outcome) = match path.as_os_str() == "-" {
        true => {
            let input = std::io::stdin().lock();
            (
                Path::new("standard input"),
                input.take(limit).read_to_end(&mut bytes),
            )
        }
        false => {
            let file = std::fs::File::open(path);
            let read = file.and_then(|file| file.take(limit).read_to_end(&mut bytes));
            (path, read)
        }
    };
    let read = outcome.with_context(|| format!("cannot read `{}`", name.display()))?;
    ensure!(
        u64::try_from(read).is_ok_and(|read| read <= MAX_FILE_BYTES),
        "`{}` has more than {} MiB",
        name.display(),
        MAX_FILE_BYTES >> 20
    );
    Ok((name.into(), bytes))
}

/// One stream of documents behind another.
fn join(out: &mut String, next: &str) {
    let begins = next.starts_with("---") || next.starts_with('%');
    if !out.is_empty() && !next.is_empty() && !begins {
        if !out.ends_with('\n') {
            out.push('\n');
        }
        out.push_str("---\n");
    } else if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out.push_str(next);
}

/// A text with its sidecars, and what is to be told about it. There is none with an error.
fn process(path: &Arc<Path>, bytes: &[u8], options: &Options) -> (Option<String>, Vec<Diagnostic>) {
    let mut told = Vec::new();
    let mut problems = Problems::new(path, &mut told);
    let first = Place { line: 1, column: 1 };
    let Ok(text) = std::str::from_utf8(bytes) else {
        problems.error(first, "this is not UTF-8");
        return (None, told);
    };
    let edits = edits(text, options, &mut problems);
    if told.iter().any(|one| one.severity == Severity::Error) {
        return (None, told);
    }
    let edited = edit::apply(text, edits);
    // A second run must find nothing to do, and nothing wrong that the first one did not find.
    let mut again = Vec::new();
    let left = self::edits(&edited, options, &mut Problems::new(path, &mut again));
    let is_kept = match (tree::read(text), tree::read(&edited)) {
        (Ok(before), Ok(after)) => kept::all(&before, &after),
        _ => false,
    };
    if !is_kept || !left.is_empty() || again.len() > told.len() {
        let mut problems = Problems::new(path, &mut told);
        let why = again
            .last()
            .map(|one| one.message.as_str())
            .filter(|_| is_kept);
        let why = why.unwrap_or(match is_kept {
            true => "it would be edited again",
            false => "something else in it would change its meaning",
        });
        problems.error_with(
            first,
            format!("the sidecar does not fit into this text: {why}"),
            "write it in the usual style of Kubernetes, and please tell us",
        );
        return (None, told);
    }
    (Some(edited), told)
}

fn edits(text: &str, options: &Options, problems: &mut Problems<'_>) -> Vec<Edit> {
    let documents = match tree::read(text) {
        Ok(documents) => documents,
        Err((at, why)) => {
            match text.contains("{{") {
                true => problems.error_with(
                    at,
                    why,
                    "is this a template? Give what `helm template` prints",
                ),
                false => problems.error(at, why),
            }
            return Vec::new();
        }
    };
    let mut edits = Vec::new();
    for document in &documents {
        let root = Spot::root(document);
        if compose::is_one(&root) {
            match compose::edits(text, &root, options, problems) {
                Ok(made) => edits.extend(made),
                Err(fixed) => problems.error(fixed.at, fixed.to_string()),
            }
            continue;
        }
        for pod in kinds::pods(&root, problems) {
            match of_pod(text, &pod, options, problems) {
                Ok(made) => edits.extend(made),
                Err(fixed) => problems.error(fixed.at, fixed.to_string()),
            }
        }
    }
    edits
}

fn of_pod(
    text: &str,
    pod: &pod::Pod<'_>,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Result<Vec<Edit>, edit::Fixed> {
    let Some(wanted) = pod::judge(pod, options, problems) else {
        return Ok(Vec::new());
    };
    let add = |key, items| edit::add_to_list(text, &pod.spec, key, items, "containers");
    Ok(vec![
        add("initContainers", sidecar::containers(options, &wanted))?,
        add("volumes", sidecar::volumes(options))?,
    ])
}

/// No manifest is larger; what is read is held in memory several times over.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  postern-proxy inject -f deployment.yaml | kubectl apply -f -
  helm template web ./chart | postern-proxy inject -f - > web.yaml
  postern-proxy inject -f docker-compose.yaml > with-sidecars.yaml
  postern-proxy inject --webhook --tls-cert tls.crt --tls-key tls.key
  postern-proxy inject --webhook --tls-cert tls.crt --tls-key tls.key --client-ca client-ca.crt

Exit codes: 0 done, 1 refused or failed, 2 wrong use";

#[cfg(test)]
mod tests;
