//! Reads PeerAuthentication.

use std::collections::BTreeMap;

use super::{istio_selector, metadata};
use crate::{
    compile::MtlsMode,
    diagnostic::{Place, Problems},
    model::peer_authentication::PeerAuthentication,
    set::Options,
    yaml::{Fields, Node, Value, fields},
};

pub(crate) fn read(
    node: &Node,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Option<PeerAuthentication> {
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let document = Fields::of(node, "PeerAuthentication", &known, problems)?;
    let (meta, _) = metadata(node.at, &document, options, problems)?;
    let empty = PeerAuthentication {
        meta,
        selector: Default::default(),
        mode: None,
        ports: BTreeMap::new(),
    };
    let Some(spec) = document.get("spec") else {
        return Some(empty);
    };
    let spec = Fields::of(
        spec,
        "spec",
        &["selector", "mtls", "portLevelMtls"],
        problems,
    )?;
    let selector = istio_selector(&spec, problems)?;
    let mode = match spec.get("mtls") {
        Some(node) => mode(node, problems)?,
        None => None,
    };
    let ports = match spec.get("portLevelMtls") {
        Some(node) => ports(node, selector.is_empty(), problems)?,
        None => BTreeMap::new(),
    };
    Some(PeerAuthentication {
        selector,
        mode,
        ports,
        ..empty
    })
}

/// `{mode: …}`; without a mode, or UNSET: inherited.
#[expect(
    clippy::option_option,
    reason = "the outer one tells of a mistake, the inner of UNSET"
)]
fn mode(node: &Node, problems: &mut Problems<'_>) -> Option<Option<(Place, MtlsMode)>> {
    let fields = Fields::of(node, "mtls", &["mode"], problems)?;
    let Some(node) = fields.get("mode") else {
        return Some(None);
    };
    match fields::text(node, "mode", problems)? {
        "UNSET" => Some(None),
        "STRICT" => Some(Some((node.at, MtlsMode::Strict))),
        "PERMISSIVE" => Some(Some((node.at, MtlsMode::Permissive))),
        "DISABLE" => Some(Some((node.at, MtlsMode::Disable))),
        other => {
            problems.error_with(
                node.at,
                format!("`{other}` is no mode"),
                "`STRICT`, `PERMISSIVE`, `DISABLE` or `UNSET`",
            );
            None
        }
    }
}

fn ports(
    node: &Node,
    selects_all: bool,
    problems: &mut Problems<'_>,
) -> Option<BTreeMap<u16, Option<(Place, MtlsMode)>>> {
    let Value::Map(entries) = &node.value else {
        problems.error(node.at, "`portLevelMtls` must be a map from ports to modes");
        return None;
    };
    if selects_all {
        problems.error(
            node.at,
            "`portLevelMtls` needs a `selector` that is not empty",
        );
        return None;
    }
    if entries.is_empty() {
        problems.error(node.at, "`portLevelMtls` needs at least one port");
        return None;
    }
    let mut ports = BTreeMap::new();
    for entry in entries {
        match entry.key.parse::<u16>() {
            Ok(port) if port > 0 => {
                ports.insert(port, mode(&entry.node, problems)?);
            }
            _ => {
                problems.error(
                    entry.at,
                    format!("`{}` is no port from 1 to 65535", entry.key),
                );
                return None;
            }
        }
    }
    Some(ports)
}
