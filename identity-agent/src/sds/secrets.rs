//! What an identity and a bundle look like to Envoy.

use aws_lc_rs::digest;
use postern_proto::sds::{
    CertificateValidationContext, DataSource, Secret, SpiffeCertValidatorConfig, TlsCertificate,
    TypedExtensionConfig, secret::Type, spiffe_cert_validator_config::TrustDomain,
};
use postern_spiffe::x509_svid::split_der;
use prost_types::Any;
use tonic::Status;

use crate::{pem::pem, workload_api::stream::Held};

/// The type of what is served.
pub(super) const SECRET: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const SPIFFE_VALIDATOR: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// The names that SPIRE's agent gives: the first identity, the own roots, the roots of all.
const DEFAULT: &str = "default";
const ROOT_CA: &str = "ROOTCA";
const ALL: &str = "ALL";

/// The name that stands for all that there is. Spec: Envoy's xDS protocol, its section on what is subscribed to.
pub(super) const EVERYTHING: &str = "*";

/// Every name that somebody who asks for none gets.
pub(super) fn all_names(held: &Held, own: &str) -> Vec<String> {
    let identities = held
        .svids
        .iter()
        .map(|svid| svid.warm.spiffe_id().to_owned());
    let others = held.trust.federated.iter().map(|(name, _)| name.clone());
    let mut names: Vec<String> = identities.chain(others).collect();
    names.push(own.to_owned());
    names
}

/// The secret of this name, if the holder has it.
pub(super) fn secret(name: &str, held: &Held, own: &str) -> Option<Secret> {
    let of_id = |id: &str| held.svids.iter().find(|svid| svid.warm.spiffe_id() == id);
    let federated = |id: &str| held.trust.federated.iter().find(|(name, _)| name == id);
    let contents = match name {
        DEFAULT => certificate(&held.svids.first()?.warm),
        ALL => {
            let own = (own.to_owned(), held.trust.bundle.to_vec());
            let all = std::iter::once(&own).chain(&held.trust.federated);
            by_trust_domain(all)
        }
        ROOT_CA => own_roots(held),
        name if name == own => own_roots(held),
        name => match (of_id(name), federated(name)) {
            (Some(svid), _) => certificate(&svid.warm),
            (None, Some(other)) => by_trust_domain([other]),
            (None, None) => return None,
        },
    };
    Some(Secret {
        name: name.to_owned(),
        r#type: Some(contents),
    })
}

/// That a name is nobody's, in the words that users of SPIRE know.
pub(super) fn unknown(name: &str) -> Status {
    Status::invalid_argument(format!(
        "workload is not authorized for the requested identities [{name:?}]: it has none of these \
         names, and federates with no such trust domain"
    ))
}

fn certificate(warm: &crate::agent::Warm) -> Type {
    Type::TlsCertificate(TlsCertificate {
        certificate_chain: data(certificates(warm.chain())),
        private_key: data(pem("PRIVATE KEY", warm.key())),
    })
}

/// The own roots, and what was taken back.
///
/// Envoy looks at lists only in this form: it passes over them where trust domains have their own
/// roots. Where an authority above vouches for ours, the roots may be those of other trust domains too:
/// `ALL` keeps them apart.
fn own_roots(held: &Held) -> Type {
    let lists = held.trust.lists.iter().map(|list| pem("X509 CRL", list));
    Type::ValidationContext(CertificateValidationContext {
        trusted_ca: data(certificates(&held.trust.bundle)),
        crl: match held.trust.lists.is_empty() {
            true => None,
            false => data(lists.collect()),
        },
        custom_validator_config: None,
        // There is a list of each signer, and none of an authority above it.
        only_verify_leaf_cert_crl: true,
    })
}

/// Roots that are believed for their own trust domain alone.
fn by_trust_domain<'b>(bundles: impl IntoIterator<Item = &'b (String, Vec<u8>)>) -> Type {
    let trust_domains = bundles.into_iter().map(|(name, bundle)| TrustDomain {
        name: name.trim_start_matches("spiffe://").to_owned(),
        trust_bundle: data(certificates(bundle)),
    });
    let config = SpiffeCertValidatorConfig {
        trust_domains: trust_domains.collect(),
    };
    Type::ValidationContext(CertificateValidationContext {
        trusted_ca: None,
        crl: None,
        only_verify_leaf_cert_crl: false,
        custom_validator_config: Some(TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".into(),
            typed_config: Some(any(SPIFFE_VALIDATOR, &config)),
        }),
    })
}

fn certificates(run: &[u8]) -> String {
    // Ours to begin with: it is a run of certificates.
    let all = split_der(run).unwrap_or_default();
    all.iter().map(|one| pem("CERTIFICATE", one)).collect()
}

fn data(text: String) -> Option<DataSource> {
    Some(DataSource {
        inline_bytes: text.into_bytes(),
    })
}

/// A message in the form in which one of any type is carried.
pub(super) fn any(type_url: &str, message: &impl prost::Message) -> Any {
    Any {
        type_url: type_url.into(),
        value: message.encode_to_vec(),
    }
}

/// A version that is the same for the same contents, after a restart too.
pub(super) fn version<'a>(contents: impl IntoIterator<Item = &'a Any>) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for one in contents {
        context.update(&one.value);
    }
    let digest = context.finish();
    let bytes = digest.as_ref().iter().take(16);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}
