//! All that is in force: configuration, listeners, identity, trust bundles, policies. Of keys nothing
//! but that there is one; of documents where they stand, and not what they say.

use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use postern_policies::PolicySet;
use postern_spiffe::BundleSet;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{access_log, app::Proxy, tls::Identity};

/// What a dump tells. Its members are a promise: docs/operation.md.
pub(super) fn of(proxy: &Proxy) -> Value {
    let identity = proxy.identity().borrow().clone();
    let policies = proxy.policies().borrow().clone();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "config": proxy.config.describe(),
        "workload": proxy.own_workload().map(|name| name.to_string()),
        "identity": identity.as_deref().map(who),
        "trustBundles": identity.as_deref().map(|identity| bundles(&identity.trust().bundles)),
        "revocationLists": identity.as_deref().map(|identity| identity.trust().revocations.len()),
        "policies": policies.as_deref().map(|set| in_force(proxy, set)),
        "listeners": listeners(proxy),
        "logFilter": proxy.log_filter.current(),
    })
}

fn who(identity: &Identity) -> Value {
    let svid = identity.svid();
    json!({
        "spiffeID": identity.id().as_str(),
        "serial": svid.serial().to_string(),
        "notBefore": instant(svid.not_before()),
        "notAfter": instant(svid.not_after()),
        "certificates": identity.key().cert.len(),
        "key": SECRET,
    })
}

fn bundles(bundles: &BundleSet) -> Value {
    let mut all: Vec<_> = bundles.iter().collect();
    all.sort_by_key(|bundle| bundle.trust_domain().to_string());
    all.into_iter()
        .map(|bundle| {
            let authorities: Vec<Value> = bundle
                .authorities()
                .iter()
                .map(|authority| described(authority))
                .collect();
            json!({
                "trustDomain": bundle.trust_domain().to_string(),
                "count": authorities.len(),
                "authorities": authorities,
            })
        })
        .collect()
}

fn described(authority: &[u8]) -> Value {
    let parsed = X509Certificate::from_der(authority).ok();
    let parsed = parsed.map(|(_, certificate)| certificate);
    let ends = parsed.as_ref().and_then(|certificate| {
        let ends = certificate.validity().not_after.to_datetime();
        ends.format(&Rfc3339).ok()
    });
    json!({
        "sha256": hex(digest(&SHA256, authority).as_ref()),
        "subject": parsed.as_ref().map(|certificate| certificate.subject().to_string()),
        "serial": parsed.as_ref().map(|certificate| hex(certificate.raw_serial())),
        "notAfter": ends,
    })
}

fn in_force(proxy: &Proxy, set: &PolicySet) -> Value {
    let documents: Vec<Value> = set
        .policies()
        .iter()
        .map(|policy| {
            json!({
                "kind": access_log::kind(policy.kind),
                "name": &*policy.policy,
                "file": policy.file.display().to_string(),
                "line": policy.line,
            })
        })
        .collect();
    json!({
        "generation": proxy.metrics.policy_reloads.get(),
        "current": proxy.metrics.policies_current.get() == 1,
        "workloads": set.workloads().count(),
        "documents": documents,
    })
}

fn listeners(proxy: &Proxy) -> Value {
    let config = &proxy.config;
    let one = |name: &str, address: std::net::SocketAddr| json!({"name": name, "address": address});
    let mut all = vec![one("inbound", config.inbound.listen)];
    all.extend(
        config
            .outbound
            .listen
            .map(|address| one("outbound", address)),
    );
    all.extend(config.outbound.listeners.iter().map(|listener| {
        let to = listener.to.to_string();
        json!({"name": "outbound", "address": listener.listen, "to": to})
    }));
    all.extend([one("admin", config.admin), one("metrics", config.metrics)]);
    all.into()
}

fn instant(at: SystemTime) -> Option<String> {
    OffsetDateTime::from(at).format(&Rfc3339).ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What stands for a key.
const SECRET: &str = "<secret>";
