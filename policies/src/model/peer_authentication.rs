//! `security.istio.io` PeerAuthentication.

use std::collections::BTreeMap;

use super::{Meta, labels::Labels};
use crate::{compile::MtlsMode, diagnostic::Place};

#[derive(Debug, Clone)]
pub(crate) struct PeerAuthentication {
    pub(crate) meta: Meta,
    /// Empty: the whole namespace, or the mesh in the root namespace.
    pub(crate) selector: Labels,
    /// `None`: inherited (UNSET or absent).
    pub(crate) mode: Option<(Place, MtlsMode)>,
    pub(crate) ports: BTreeMap<u16, Option<(Place, MtlsMode)>>,
}
