//! The checks of an X.509-SVID: from a chain of certificates to a verified peer, or to the rule
//! that failed.
//!
//! Path building and signatures are webpki's. webpki looks neither at the number of URI names nor
//! at key usage, and knows no trust domains: those rules are here. Spec: X509-SVID sections 2 to 5,
//! RFC 5280 section 6.1.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, OwnedCertRevocationList, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::prelude::{
    FromDer, GeneralName, ParsedExtension, X509Certificate as ParsedCertificate,
};

use crate::{
    bundle::BundleSet,
    spiffe_id::{SpiffeId, SpiffeIdError},
    trust_domain::TrustDomain,
};

/// The longest chain that is looked at, in certificates. Chains of SVIDs have one to three; the
/// bound keeps a peer's stray certificates from costing us time.
pub const MAX_CHAIN: usize = 16;

/// Checks a peer's certificate chain and tells who the peer is.
///
/// Pure: the same chain, bundles, lists and `now` give the same answer. `now` is wall-clock time
/// (UTC), compared by the second. The chain is leaf first. Only the bundle of the leaf's own trust
/// domain is asked. A live connection is checked again by calling this again.
///
/// # Errors
/// [`PeerRefused`] names the rule that failed; callers close the connection and count the reason.
///
/// Spec: X509-SVID 5.1 (path) and 5.2 (leaf); RFC 5280 section 6.1.
pub fn verify_peer(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    revocations: &RevocationLists,
    role: PeerRole,
    now: SystemTime,
) -> Result<VerifiedPeer, PeerRefused> {
    let (leaf, intermediates) = chain.split_first().ok_or(PeerRefused::NoCertificate)?;
    if chain.len() > MAX_CHAIN {
        return Err(PeerRefused::ChainTooLong {
            certificates: chain.len(),
        });
    }
    let svid = X509Svid::parse(leaf)?;
    let trust_domain = svid.id.trust_domain();
    let bundle = bundles
        .get(trust_domain)
        .ok_or_else(|| PeerRefused::UnknownTrustDomain(trust_domain.clone()))?;
    verify_path(
        leaf,
        intermediates,
        bundle.anchors(),
        trust_domain,
        revocations,
        role,
        now,
    )?;
    Ok(VerifiedPeer { svid })
}

/// What the peer is in the handshake: the use that its certificate must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// It opened the connection.
    Client,
    /// It accepted the connection.
    Server,
}

/// A peer whose certificate chain passed every check of [`verify_peer`], which alone makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    svid: X509Svid,
}

impl VerifiedPeer {
    /// Who the peer is.
    pub fn id(&self) -> &SpiffeId {
        &self.svid.id
    }

    /// The leaf that proved it.
    pub fn svid(&self) -> &X509Svid {
        &self.svid
    }
}

/// A leaf certificate that has the form of an X.509-SVID. Nobody vouches for it yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct X509Svid {
    id: SpiffeId,
    serial: Serial,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl X509Svid {
    /// Reads a leaf certificate in DER and checks the rules that a leaf must meet by itself.
    ///
    /// # Errors
    /// [`SvidError`] names the first rule broken.
    ///
    /// Spec: X509-SVID sections 2 (one SPIFFE ID), 3 (path), 4 (constraints and key usage), 5.2.
    pub fn parse(der: &[u8]) -> Result<Self, SvidError> {
        let certificate = parse_certificate(der)?;
        let constraints = Constraints::of(&certificate)?;
        if constraints.is_authority {
            return Err(SvidError::LeafIsAuthority);
        }
        let usage = constraints.key_usage.ok_or(SvidError::KeyUsageMissing)?;
        if usage.signs_certificates {
            return Err(SvidError::LeafSignsCertificates);
        }
        if usage.signs_revocation_lists {
            return Err(SvidError::LeafSignsRevocationLists);
        }
        if !usage.digital_signature {
            return Err(SvidError::NoDigitalSignature);
        }
        let id = sole_spiffe_id(&certificate)?.ok_or(SvidError::NoUriName)?;
        if id.path().is_empty() {
            return Err(SvidError::RootPath);
        }
        Ok(Self {
            id,
            serial: Serial(certificate.raw_serial().to_vec()),
            not_before: system_time(certificate.validity().not_before.timestamp()),
            not_after: system_time(certificate.validity().not_after.timestamp()),
        })
    }

    /// The identity that the certificate claims.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificate's serial number.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// The first second in which the certificate is valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last second in which the certificate is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// A certificate's serial number, as in the certificate: big-endian bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

impl Serial {
    /// The bytes of the number, most significant first.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Serial {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Serial {
    /// Lower-case hexadecimal, two digits a byte.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

/// The certificate revocation lists in force.
///
/// A certificate that no list speaks of is good: a list takes identities back, it does not grant
/// them. A list counts only when an authority of the chain signed it.
#[derive(Debug, Default)]
pub struct RevocationLists {
    lists: Vec<CertRevocationList<'static>>,
}

impl RevocationLists {
    /// Reads lists in DER.
    ///
    /// # Errors
    /// [`RevocationListError`] with the place of the list that cannot be read. None is skipped: a
    /// list that is ignored is a revoked peer let in.
    pub fn from_der<'a>(
        lists: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, RevocationListError> {
        let lists = lists
            .into_iter()
            .enumerate()
            .map(|(index, der)| {
                OwnedCertRevocationList::from_der(der)
                    .map(CertRevocationList::Owned)
                    .map_err(|_| RevocationListError { index })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { lists })
    }

    /// How many lists there are.
    pub fn len(&self) -> usize {
        self.lists.len()
    }

    /// Whether there is no list at all.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }
}

/// A revocation list that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("revocation list {index} cannot be read")]
pub struct RevocationListError {
    /// Its place among the lists, from 0.
    pub index: usize,
}

/// Why a peer is refused.
///
/// The peer learns none of this, only a TLS alert; the log and the counters learn all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefused {
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The chain is longer than [`MAX_CHAIN`].
    #[error("the chain has {certificates} certificates, at most 16 are allowed")]
    ChainTooLong {
        /// Its length.
        certificates: usize,
    },
    /// The leaf is not an X.509-SVID.
    #[error("the leaf is no X.509-SVID: {0}")]
    Leaf(#[from] SvidError),
    /// There is no bundle for the leaf's trust domain.
    #[error("trust domain `{0}` has no bundle here")]
    UnknownTrustDomain(TrustDomain),
    /// No authority of the leaf's trust domain vouches for it.
    #[error("no authority of its trust domain vouches for the leaf")]
    UnknownAuthority,
    /// A certificate of the path is not valid any more.
    #[error("a certificate of the chain has expired")]
    Expired,
    /// A certificate of the path is not valid yet.
    #[error("a certificate of the chain is not valid yet")]
    NotYetValid,
    /// A certificate of the path was revoked.
    #[error("a certificate of the chain is revoked")]
    Revoked,
    /// The leaf's extended key usage lacks what the peer's role needs.
    #[error("the leaf's extended key usage does not allow this use")]
    ExtendedKeyUsage,
    /// An intermediate of the path must not sign for this leaf.
    #[error("an intermediate of the chain is no authority for the leaf: {0}")]
    Intermediate(SvidError),
    /// Any other rule of RFC 5280 that the path breaks, in webpki's words.
    #[error("the chain does not verify: {0}")]
    Path(String),
}

impl PeerRefused {
    /// A short, stable label for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::ChainTooLong { .. } => "chain_too_long",
            Self::Leaf(_) => "leaf",
            Self::UnknownTrustDomain(_) => "unknown_trust_domain",
            Self::UnknownAuthority => "unknown_authority",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::ExtendedKeyUsage => "extended_key_usage",
            Self::Intermediate(_) => "intermediate",
            Self::Path(_) => "path",
        }
    }
}

/// Which rule of the X509-SVID standard a certificate breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// It is not one certificate in DER, or bytes follow it.
    #[error("it is not a certificate in DER")]
    Malformed,
    /// A leaf says that it is an authority (section 4.1).
    #[error("a leaf must not be an authority (cA is true)")]
    LeafIsAuthority,
    /// There is no key usage extension (section 4.3).
    #[error("key usage is missing")]
    KeyUsageMissing,
    /// The key usage extension is not marked critical (section 4.3).
    #[error("key usage is not critical")]
    KeyUsageNotCritical,
    /// A leaf may sign certificates (section 4.3).
    #[error("a leaf must not sign certificates (keyCertSign is set)")]
    LeafSignsCertificates,
    /// A leaf may sign revocation lists (section 4.3).
    #[error("a leaf must not sign revocation lists (cRLSign is set)")]
    LeafSignsRevocationLists,
    /// A leaf may not sign handshakes (section 4.3).
    #[error("a leaf must have digitalSignature set")]
    NoDigitalSignature,
    /// There is no URI name, so no SPIFFE ID (section 2).
    #[error("there is no URI name")]
    NoUriName,
    /// There is more than one URI name (section 2).
    #[error("there are {count} URI names, exactly one is allowed")]
    ManyUriNames {
        /// How many.
        count: usize,
    },
    /// The URI name is not a SPIFFE ID.
    #[error("the URI name is no SPIFFE ID: {0}")]
    SpiffeId(#[from] SpiffeIdError),
    /// A leaf's SPIFFE ID has no path (section 3).
    #[error("a leaf's SPIFFE ID needs a path")]
    RootPath,
    /// A signing certificate is not marked as one (section 4.1).
    #[error("a signing certificate must be an authority (cA is not true)")]
    NotAuthority,
    /// A signing certificate may not sign certificates (section 4.3).
    #[error("a signing certificate must have keyCertSign set")]
    NoCertificateSigning,
    /// A signing certificate's own SPIFFE ID has a path (section 3).
    #[error("a signing certificate's SPIFFE ID must have no path")]
    AuthorityWithPath,
    /// A signing certificate's own SPIFFE ID names another trust domain (section 3).
    #[error("the signing certificate belongs to trust domain `{0}`")]
    AuthorityOfOtherDomain(TrustDomain),
}

/// Splits certificates in DER that follow each other without a separator.
///
/// # Errors
/// [`SvidError::Malformed`] when any byte does not belong to a certificate. No bytes give no
/// certificates.
pub fn split_der(mut run: &[u8]) -> Result<Vec<CertificateDer<'static>>, SvidError> {
    let mut certificates = Vec::new();
    while !run.is_empty() {
        let (rest, _) = ParsedCertificate::from_der(run).map_err(|_| SvidError::Malformed)?;
        let length = run.len() - rest.len();
        let der = run.get(..length).ok_or(SvidError::Malformed)?;
        certificates.push(CertificateDer::from(der.to_vec()));
        run = rest;
    }
    Ok(certificates)
}

/// Checks a signing certificate: marked as one, allowed to sign certificates, and, where it bears
/// a SPIFFE ID itself, of the trust domain that it signs for and without a path.
///
/// # Errors
/// [`SvidError`] names the first rule broken.
///
/// Spec: X509-SVID sections 3, 4.1 and 4.3.
pub(crate) fn check_authority(der: &[u8], trust_domain: &TrustDomain) -> Result<(), SvidError> {
    let certificate = parse_certificate(der)?;
    let constraints = Constraints::of(&certificate)?;
    if !constraints.is_authority {
        return Err(SvidError::NotAuthority);
    }
    let usage = constraints.key_usage.ok_or(SvidError::KeyUsageMissing)?;
    if !usage.signs_certificates {
        return Err(SvidError::NoCertificateSigning);
    }
    match sole_spiffe_id(&certificate)? {
        Some(id) if !id.path().is_empty() => Err(SvidError::AuthorityWithPath),
        Some(id) if id.trust_domain() != trust_domain => {
            Err(SvidError::AuthorityOfOtherDomain(id.trust_domain().clone()))
        }
        _ => Ok(()),
    }
}

/// Builds and checks the path from the leaf to an authority of its own trust domain.
fn verify_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[rustls_pki_types::TrustAnchor<'static>],
    trust_domain: &TrustDomain,
    revocations: &RevocationLists,
    role: PeerRole,
    now: SystemTime,
) -> Result<(), PeerRefused> {
    let end_entity = EndEntityCert::try_from(leaf).map_err(|error| path_refused(&error))?;
    let usage = match role {
        PeerRole::Client => webpki::KeyUsage::client_auth(),
        PeerRole::Server => webpki::KeyUsage::server_auth(),
    };
    let lists: Vec<&CertRevocationList<'_>> = revocations.lists.iter().collect();
    let path = end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            anchors,
            intermediates,
            unix_time(now),
            usage,
            revocation_options(&lists),
            None,
        )
        .map_err(|error| path_refused(&error))?;
    check_intermediates(&path, trust_domain)
}

/// A certificate that no list speaks of is good; one that a list names is not, anywhere in the
/// path.
fn revocation_options<'a>(
    lists: &'a [&'a CertRevocationList<'a>],
) -> Option<RevocationOptions<'a>> {
    let builder = RevocationOptionsBuilder::new(lists).ok()?;
    Some(
        builder
            .with_status_policy(UnknownStatusPolicy::Allow)
            .build(),
    )
}

/// webpki has checked that each intermediate is an authority; key usage and trust domain are ours.
fn check_intermediates(
    path: &VerifiedPath<'_>,
    trust_domain: &TrustDomain,
) -> Result<(), PeerRefused> {
    path.intermediate_certificates()
        .try_for_each(|certificate| {
            check_authority(&certificate.der(), trust_domain).map_err(PeerRefused::Intermediate)
        })
}

/// Sorts webpki's error by what it means for the operator.
fn path_refused(error: &webpki::Error) -> PeerRefused {
    match error {
        webpki::Error::UnknownIssuer => PeerRefused::UnknownAuthority,
        webpki::Error::CertExpired { .. } => PeerRefused::Expired,
        webpki::Error::CertNotValidYet { .. } => PeerRefused::NotYetValid,
        webpki::Error::CertRevoked => PeerRefused::Revoked,
        webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => {
            PeerRefused::ExtendedKeyUsage
        }
        other => PeerRefused::Path(other.to_string()),
    }
}

/// What the two extensions say that decide what a key may do.
struct Constraints {
    is_authority: bool,
    key_usage: Option<KeyUsage>,
}

struct KeyUsage {
    digital_signature: bool,
    signs_certificates: bool,
    signs_revocation_lists: bool,
}

impl Constraints {
    fn of(certificate: &ParsedCertificate<'_>) -> Result<Self, SvidError> {
        let basic = certificate
            .basic_constraints()
            .map_err(|_| SvidError::Malformed)?;
        let usage = certificate.key_usage().map_err(|_| SvidError::Malformed)?;
        if usage.as_ref().is_some_and(|usage| !usage.critical) {
            return Err(SvidError::KeyUsageNotCritical);
        }
        Ok(Self {
            is_authority: basic.is_some_and(|basic| basic.value.ca),
            key_usage: usage.map(|usage| KeyUsage {
                digital_signature: usage.value.digital_signature(),
                signs_certificates: usage.value.key_cert_sign(),
                signs_revocation_lists: usage.value.crl_sign(),
            }),
        })
    }
}

/// The certificate's SPIFFE ID, if it has a URI name at all.
///
/// All subject alternative name extensions are looked at, so that a second extension cannot hide a
/// second name. A name that the parser cannot read refuses the certificate.
fn sole_spiffe_id(certificate: &ParsedCertificate<'_>) -> Result<Option<SpiffeId>, SvidError> {
    let mut uris = Vec::new();
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => uris.push(*uri),
                        GeneralName::Invalid(..) => return Err(SvidError::Malformed),
                        _ => {}
                    }
                }
            }
            ParsedExtension::ParseError { .. } => return Err(SvidError::Malformed),
            _ => {}
        }
    }
    match uris.as_slice() {
        [] => Ok(None),
        [uri] => Ok(Some(SpiffeId::parse(uri)?)),
        many => Err(SvidError::ManyUriNames { count: many.len() }),
    }
}

/// Exactly one certificate, nothing after it.
fn parse_certificate(der: &[u8]) -> Result<ParsedCertificate<'_>, SvidError> {
    match ParsedCertificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(SvidError::Malformed),
    }
}

/// Seconds since 1970, the unit of certificates; a time before it counts as 1970.
fn unix_time(now: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests;
