//! `federation`: other trust domains, and what is published for them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use postern_policies::{
    diagnostic::Problems,
    yaml::{Fields, Node, fields},
};
use postern_spiffe::{SpiffeId, TrustDomain};

use super::section;
use crate::{
    federation::{Endpoint, Peer, Profile},
    publish::{Credential, Publication},
};

/// The other trust domains, by name.
pub(super) fn read(
    all: &Fields<'_>,
    own: Option<&TrustDomain>,
    folder: &Path,
    problems: &mut Problems<'_>,
) -> Option<Vec<Peer>> {
    let Some(section) = section(all, "federation", &FEDERATION, problems) else {
        return Some(Vec::new());
    };
    let mut peers: Vec<Peer> = Vec::new();
    for node in section.list("trustDomains", problems) {
        let peer = federated(node, folder, problems)?;
        let is_known = peers
            .iter()
            .any(|one| one.trust_domain == peer.trust_domain);
        if is_known || own == Some(&peer.trust_domain) {
            let text = format!(
                "`{}` is the own trust domain or stands here twice",
                peer.trust_domain
            );
            problems.error(node.at, text);
        }
        peers.push(peer);
    }
    for peer in &peers {
        let Some(Endpoint {
            profile: Profile::Spiffe(id),
            ..
        }) = &peer.endpoint
        else {
            continue;
        };
        let speaker = id.trust_domain();
        if peers.iter().all(|one| one.trust_domain != *speaker) {
            let text = format!(
                "the bundle of `{}` is told by `{id}`, and `{speaker}` is not among \
                 `federation.trustDomains`",
                peer.trust_domain
            );
            problems.error_with(
                section.at,
                text,
                "its bundle is what the server is verified by",
            );
        }
    }
    Some(peers)
}

/// `endpoint: {listen, profile, certificate, key}` and `oidc: {issuer}`.
pub(super) fn publication(
    all: &Fields<'_>,
    own: Option<&TrustDomain>,
    folder: &Path,
    problems: &mut Problems<'_>,
) -> Option<Option<Publication>> {
    let Some(federation) = section(all, "federation", &FEDERATION, problems) else {
        return Some(None);
    };
    let oidc = section(&federation, "oidc", &["issuer"], problems);
    let known = ["listen", "profile", "certificate", "key"];
    let Some(endpoint) = section(&federation, "endpoint", &known, problems) else {
        if let Some(oidc) = oidc {
            let hint = "`endpoint: {listen: \"0.0.0.0:8443\", profile: https_web, …}`";
            problems.error_with(
                oidc.at,
                "`federation.oidc` needs `federation.endpoint`",
                hint,
            );
        }
        return Some(None);
    };
    let listen = match endpoint.get("listen") {
        Some(node) => fields::socket_address(node, "listen", problems)?,
        None => DEFAULT_ENDPOINT,
    };
    let profile = endpoint.required("profile", "federation.endpoint", problems)?;
    let file = |name: &str, problems: &mut Problems<'_>| {
        let node = endpoint.required(name, "`https_web`", problems)?;
        Some(folder.join(fields::filled(node, name, problems)?))
    };
    let credential = match fields::text(profile, "profile", problems)? {
        "https_web" => Credential::Files {
            certificate: file("certificate", problems)?,
            key: file("key", problems)?,
        },
        "https_spiffe" => {
            for name in ["certificate", "key"] {
                if let Some(node) = endpoint.get(name) {
                    let text = format!("`{name}` is of the profile `https_web`");
                    problems.error(node.at, text);
                }
            }
            let id = SpiffeId::parse(&format!("spiffe://{}/postern/bundle-endpoint", own?));
            Credential::Svid(id.ok()?)
        }
        other => {
            let text = format!("`{other}` is no profile");
            problems.error_with(profile.at, text, "`https_web` or `https_spiffe`");
            return None;
        }
    };
    let oidc_issuer = match oidc {
        Some(oidc) => {
            let node = oidc.required("issuer", "federation.oidc", problems)?;
            let url = fields::filled(node, "issuer", problems)?;
            if !url.starts_with("https://") || url.contains(['?', '#', '@']) {
                let text = format!("`{url}` in `issuer` is no URL of an issuer");
                problems.error_with(node.at, text, "such as `https://oidc.example.org`");
            }
            Some(url.to_owned())
        }
        None => None,
    };
    Some(Some(Publication {
        listen,
        credential,
        oidc_issuer,
    }))
}

/// `{name, bundleFile, url, profile, endpointSPIFFEID, caFile, refresh}`.
fn federated(node: &Node, folder: &Path, problems: &mut Problems<'_>) -> Option<Peer> {
    let what = "a federated trust domain";
    let all = Fields::of(node, what, &FEDERATED, problems)?;
    let name = all.required("name", what, problems)?;
    let text = fields::filled(name, "name", problems)?;
    let trust_domain = TrustDomain::parse(text)
        .map_err(|error| problems.error(name.at, format!("`name`: {error}")))
        .ok()?;
    let file = |name: &str, problems: &mut Problems<'_>| match all.get(name) {
        Some(node) => fields::filled(node, name, problems).map(|text| Some(folder.join(text))),
        None => Some(None),
    };
    let bundle = file("bundleFile", problems)?;
    let authorities = file("caFile", problems)?;
    let every = match all.get("refresh") {
        Some(node) => Some(fields::duration(node, "refresh", problems)?),
        None => None,
    };
    let Some(url_node) = all.get("url") else {
        if bundle.is_none() {
            let hint = "its bundle document in a file, or the URL at which it is published";
            problems.error_with(all.at, format!("{what} needs `bundleFile` or `url`"), hint);
        }
        for name in ["profile", "endpointSPIFFEID", "caFile", "refresh"] {
            if let Some(node) = all.get(name) {
                problems.error(node.at, format!("`{name}` says nothing without `url`"));
            }
        }
        return Some(Peer {
            trust_domain,
            file: bundle,
            endpoint: None,
        });
    };
    let url = fields::filled(url_node, "url", problems)?;
    let after = url.strip_prefix("https://");
    let authority = after.and_then(|rest| rest.split('/').next());
    if authority.is_none_or(|host| host.is_empty() || host.contains('@')) {
        let hint = "such as `https://example.com:8443/bundle`";
        problems.error_with(
            url_node.at,
            format!("`{url}` in `url` is no https URL"),
            hint,
        );
    }
    let profile = all.required("profile", what, problems)?;
    let id = all.get("endpointSPIFFEID");
    let profile = match (fields::text(profile, "profile", problems)?, id) {
        ("https_web", None) => Profile::Web(authorities),
        ("https_web", Some(node)) => {
            problems.error(
                node.at,
                "`endpointSPIFFEID` is of the profile `https_spiffe`",
            );
            return None;
        }
        ("https_spiffe", Some(node)) => {
            let text = fields::filled(node, "endpointSPIFFEID", problems)?;
            let id = SpiffeId::parse(text).ok();
            let Some(id) = id.filter(|id| !id.path().is_empty()) else {
                let text = format!("`{text}` in `endpointSPIFFEID` is no workload");
                problems.error(node.at, text);
                return None;
            };
            if let Some(node) = all.get("caFile") {
                problems.error(node.at, "`caFile` is of the profile `https_web`");
                return None;
            }
            if bundle.is_none() && *id.trust_domain() == trust_domain {
                let hint = "the first bundle, by which its server is verified";
                problems.error_with(all.at, "`https_spiffe` needs `bundleFile`", hint);
            }
            Profile::Spiffe(id)
        }
        ("https_spiffe", None) => {
            problems.error(all.at, "`https_spiffe` needs `endpointSPIFFEID`");
            return None;
        }
        (other, _) => {
            let text = format!("`{other}` is no profile");
            problems.error_with(profile.at, text, "`https_web` or `https_spiffe`");
            return None;
        }
    };
    Some(Peer {
        trust_domain,
        file: bundle,
        endpoint: Some(Endpoint {
            url: url.to_owned(),
            profile,
            every,
        }),
    })
}

const FEDERATION: [&str; 3] = ["trustDomains", "endpoint", "oidc"];

const FEDERATED: [&str; 7] = [
    "name",
    "bundleFile",
    "url",
    "profile",
    "endpointSPIFFEID",
    "caFile",
    "refresh",
];

const DEFAULT_ENDPOINT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);
