//! Certificate chains, good and wrong, shown to the proxy by a caller and by a server that it calls.
//!
//! Every wrong chain is refused in the handshake, by an alert; the app sees nothing, and of a request not
//! one byte reaches the wrong server. Its good twins pass.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use postern_tests::{
    eventually, run,
    world::{App, World, free_address},
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    NameConstraints, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection,
    SignatureScheme, Stream,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs::default_provider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use time::OffsetDateTime;

const FRONTEND: &str = "spiffe://example.org/workload/frontend";
const WEB: &str = "spiffe://example.org/ns/production/sa/web";

/// A certificate authority that signs whatever it is asked to.
struct Ca {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
}

/// A chain, leaf first, and the leaf's key.
#[derive(Debug, Clone)]
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    /// PKCS#8 in DER.
    key: Vec<u8>,
}

type Change<'c> = &'c dyn Fn(&mut CertificateParams);

fn no_change(_: &mut CertificateParams) {}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn params(id: &str) -> CertificateParams {
    let now = OffsetDateTime::from(SystemTime::now());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)];
    params.not_before = now - time::Duration::hours(1);
    params.not_after = now + time::Duration::hours(1);
    params
}

fn authority_params(id: &str, name: &str) -> CertificateParams {
    let mut params = params(id);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(id: &str) -> CertificateParams {
    let mut params = params(id);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

impl Ca {
    fn root(domain: &str, name: &str, change: Change<'_>) -> Self {
        let mut params = authority_params(&format!("spiffe://{domain}"), name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { params, key, der }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// One below this one.
    fn below(&self, name: &str, change: Change<'_>) -> Self {
        let mut params = authority_params("spiffe://example.org", name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params
            .signed_by(&key, &self.issuer())
            .unwrap()
            .der()
            .clone();
        Self { params, key, der }
    }

    fn leaf(&self, id: &str, change: Change<'_>) -> Shown {
        self.leaf_with(KeyPair::generate().unwrap(), id, change)
    }

    fn leaf_with(&self, key: KeyPair, id: &str, change: Change<'_>) -> Shown {
        let mut params = leaf_params(id);
        change(&mut params);
        let der = params
            .signed_by(&key, &self.issuer())
            .unwrap()
            .der()
            .clone();
        Shown {
            chain: vec![der],
            key: key.serialize_der(),
        }
    }
}

impl Shown {
    fn with(mut self, above: &[&Ca]) -> Self {
        self.chain.extend(above.iter().map(|one| one.der.clone()));
        self
    }
}

/// Everything that chains are made of, and the end that they are for.
struct Pki {
    root: Ca,
    /// Who the good one is.
    id: &'static str,
    /// The use that this end's certificate must allow, and the other one.
    uses: [ExtendedKeyUsagePurpose; 2],
}

/// A critical extension of somebody else.
fn extension(critical: bool, size: usize) -> CustomExtension {
    let mut extension =
        CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5; size]);
    extension.set_criticality(critical);
    extension
}

/// An extension of key usage, as `bits` in DER.
fn key_usage(critical: bool, bits: [u8; 2]) -> CustomExtension {
    let [unused, value] = bits;
    let mut usage = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, unused, value]);
    usage.set_criticality(critical);
    usage
}

/// Names in DER: the tag of each and its text.
fn names(all: &[(u8, &[u8])]) -> CustomExtension {
    let part = |tag: u8, text: &[u8]| {
        let mut part = vec![tag, u8::try_from(text.len()).unwrap()];
        part.extend(text);
        part
    };
    let inner: Vec<u8> = all
        .iter()
        .flat_map(|(tag, text)| part(*tag, text))
        .collect();
    CustomExtension::from_oid_content(&[2, 5, 29, 17], part(0x30, &inner))
}

const URI: u8 = 0x86;
const DNS: u8 = 0x82;

/// A leaf made by openssl, with a digest or key that no library of ours would take.
fn by_openssl(world: &World, pki: &Pki, key: &[&str], digest: &str) -> Shown {
    let pem = |label: &str, der: &[u8]| {
        let text = format!("{label}.der");
        std::fs::write(world.path().join(&text), der).unwrap();
    };
    pem("ca", &pki.root.der);
    pem("cakey", &pki.root.key.serialize_der());
    let script = format!(
        "openssl x509 -inform DER -in ca.der -out ca.pem; \
         openssl pkey -inform DER -in cakey.der -out ca.key; \
         openssl genpkey {} -out leaf.key; \
         openssl req -new -key leaf.key -subj / -out leaf.csr; \
         printf 'basicConstraints=critical,CA:false\\nkeyUsage=critical,digitalSignature\\n\
         extendedKeyUsage=serverAuth,clientAuth\\nsubjectAltName=critical,URI:{}\\n' > ext; \
         openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 \
         -extfile ext -{digest} -out leaf.pem; \
         openssl x509 -in leaf.pem -outform DER -out leaf.der; \
         openssl pkcs8 -topk8 -nocrypt -in leaf.key -outform DER -out leafkey.der",
        key.join(" "),
        pki.id
    );
    let output = Command::new("sh")
        .args(["-ec", &script])
        .current_dir(world.path())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let read = |name: &str| std::fs::read(world.path().join(name)).unwrap();
    Shown {
        chain: vec![CertificateDer::from(read("leaf.der"))],
        key: read("leafkey.der"),
    }
}

fn good(pki: &Pki) -> Vec<(String, Shown)> {
    let leaf = |change: Change<'_>| pki.root.leaf(pki.id, change);
    let [own_use, _] = &pki.uses;
    let below = pki.root.below("below", &no_change);
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let all = [
        ("a good leaf", leaf(&no_change)),
        (
            "with DNS names",
            leaf(&|params| {
                let name = SanType::DnsName("a.test".try_into().unwrap());
                params.subject_alt_names.push(name);
            }),
        ),
        (
            "with a subject",
            leaf(&|params| params.distinguished_name.push(DnType::CommonName, "x")),
        ),
        (
            "without extended key usage",
            leaf(&|params| params.extended_key_usages.clear()),
        ),
        (
            "for this use alone",
            leaf(&|params| params.extended_key_usages = vec![own_use.clone()]),
        ),
        (
            "an extension that is not critical",
            leaf(&|params| params.custom_extensions.push(extension(false, 10))),
        ),
        (
            "one intermediate",
            below.leaf(pki.id, &no_change).with(&[&below]),
        ),
        ("the root sent along", leaf(&no_change).with(&[&pki.root])),
        ("P-384", pki.root.leaf_with(p384, pki.id, &no_change)),
        ("Ed25519", pki.root.leaf_with(ed25519, pki.id, &no_change)),
    ];
    all.map(|(name, shown)| (name.to_owned(), shown)).into()
}

/// FAULTS 51 to 65, each with its number.
fn wrong(world: &World, pki: &Pki) -> Vec<(String, Shown)> {
    let mut all = Vec::new();
    let mut add = |name: &str, shown: Shown| all.push((name.to_owned(), shown));
    let leaf = |change: Change<'_>| pki.root.leaf(pki.id, change);
    let now = OffsetDateTime::from(SystemTime::now());
    let second = time::Duration::seconds(1);

    let past = now - 100 * second;
    add("51 expired", leaf(&|params| params.not_after = past));
    let just = now - 2 * second;
    add("51 just expired", leaf(&|params| params.not_after = just));
    let future = now + 600 * second;
    add(
        "51 not yet valid",
        leaf(&|params| params.not_before = future),
    );

    let own = KeyPair::generate().unwrap();
    let der = leaf_params(pki.id).self_signed(&own).unwrap().der().clone();
    add(
        "52 self-signed",
        Shown {
            chain: vec![der],
            key: own.serialize_der(),
        },
    );
    let stranger = Ca::root("example.org", "Stranger", &no_change);
    add("52 unknown authority", stranger.leaf(pki.id, &no_change));
    add(
        "52 unknown authority, sent along",
        stranger.leaf(pki.id, &no_change).with(&[&stranger]),
    );
    let namesake = Ca::root("example.org", "Test Root", &no_change);
    add(
        "52 authority of the same name",
        namesake.leaf(pki.id, &no_change).with(&[&namesake]),
    );
    let identifier = pki.root.params.key_identifier(&pki.root.key);
    let twin = Ca::root("example.org", "Test Root", &|params| {
        params.key_identifier_method = KeyIdMethod::PreSpecified(identifier.clone());
    });
    let by_twin = twin.leaf(pki.id, &|params| {
        params.use_authority_key_identifier_extension = true
    });
    add(
        "52 authority of the same name and key identifier",
        by_twin.with(&[&twin]),
    );

    for other in [
        "spiffe://example.net/workload/frontend",
        "spiffe://example.org.evil.test/workload/frontend",
        "spiffe://sub.example.org/workload/frontend",
        "spiffe://evilexample.org/workload/frontend",
        "spiffe://evil.test/example.org/workload/frontend",
    ] {
        add(&format!("53 {other}"), pki.root.leaf(other, &no_change));
    }

    let second_name = |name: &'static str, first: bool| {
        leaf(&move |params: &mut CertificateParams| {
            let at = usize::from(!first);
            params.subject_alt_names.insert(at, uri(name));
        })
    };
    for (name, first) in [
        ("spiffe://example.org/second", false),
        ("spiffe://example.org/second", true),
        ("http://example.org/", false),
        ("http://example.org/", true),
        ("spiffe://example.net/second", false),
    ] {
        add(
            &format!("54 also {name}, first {first}"),
            second_name(name, first),
        );
    }
    add("54 the same name twice", second_name(pki.id, true));
    add(
        "54 a second extension of names",
        leaf(&|params| {
            let second = names(&[(URI, b"spiffe://example.org/second")]);
            params.custom_extensions.push(second);
        }),
    );

    add(
        "55 no name at all",
        leaf(&|params| params.subject_alt_names.clear()),
    );
    add(
        "55 the identity as common name",
        leaf(&|params| {
            params.subject_alt_names.clear();
            params.distinguished_name.push(DnType::CommonName, pki.id);
        }),
    );
    add(
        "55 the identity as DNS name",
        leaf(&|params| {
            params.subject_alt_names.clear();
            params
                .custom_extensions
                .push(names(&[(DNS, pki.id.as_bytes())]));
        }),
    );
    add(
        "55 a DNS name alone",
        leaf(&|params| {
            params.subject_alt_names = vec![SanType::DnsName("web.test".try_into().unwrap())];
        }),
    );
    add(
        "55 an http name alone",
        leaf(&|params| params.subject_alt_names = vec![uri("https://a.test/x")]),
    );

    add(
        "56 an authority",
        leaf(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
    );
    add(
        "56 an authority of path length 0",
        leaf(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
    );
    add(
        "56 keyCertSign",
        leaf(&|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
    );
    add(
        "56 cRLSign",
        leaf(&|params| params.key_usages.push(KeyUsagePurpose::CrlSign)),
    );

    add("57 no key usage", leaf(&|params| params.key_usages.clear()));
    add(
        "57 no digitalSignature",
        leaf(&|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
    );
    add(
        "57 key usage not critical",
        leaf(&|params| {
            params.key_usages.clear();
            params.custom_extensions.push(key_usage(false, [7, 0x80]));
        }),
    );
    add(
        "57 key usage empty",
        leaf(&|params| {
            params.key_usages.clear();
            params.custom_extensions.push(key_usage(true, [0, 0]));
        }),
    );

    let [_, other_use] = &pki.uses;
    add(
        "58 for the other use alone",
        leaf(&|params| params.extended_key_usages = vec![other_use.clone()]),
    );
    add(
        "58 for signing code",
        leaf(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
    );
    add(
        "58 for anything",
        leaf(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]),
    );

    let honest = KeyPair::generate().unwrap();
    let honest_params = leaf_params(pki.id);
    let honest_der = honest_params
        .signed_by(&honest, &pki.root.issuer())
        .unwrap()
        .der()
        .clone();
    let as_issuer = Ca {
        params: honest_params,
        key: honest,
        der: honest_der,
    };
    add(
        "59 a leaf as issuer",
        as_issuer.leaf(pki.id, &no_change).with(&[&as_issuer]),
    );
    add(
        "59 the authority itself",
        Shown {
            chain: vec![pki.root.der.clone()],
            key: pki.root.key.serialize_der(),
        },
    );
    let below = pki.root.below("below", &no_change);
    add(
        "59 an intermediate itself",
        Shown {
            chain: vec![below.der.clone()],
            key: below.key.serialize_der(),
        },
    );

    for id in [
        "spiffe://example.org",
        "spiffe://example.org/",
        "spiffe://example.org/workload/frontend/",
        "spiffe://example.org//workload/frontend",
        "spiffe://example.org/workload//frontend",
        "spiffe://example.org/./workload/frontend",
        "spiffe://example.org/workload/../workload/frontend",
        "spiffe://example.org/workload/%66rontend",
        "spiffe://example.org/workload/frontend?x=1",
        "spiffe://example.org/workload/frontend#x",
        "spiffe://example.org:443/workload/frontend",
        "spiffe://user@example.org/workload/frontend",
        "spiffe://example.org/workload/front end",
        "spiffe://example.org/workload/frontend\0",
        "spiffe://example.org\0.evil.test/workload/frontend",
        "spiffe://example.org/workload/frontend\r\nx: y",
        "spiffe://EXAMPLE.org/workload/frontend",
        "SPIFFE://example.org/workload/frontend",
        "spiffe:/example.org/workload/frontend",
        "spiffe:///workload/frontend",
        "//example.org/workload/frontend",
        "http://example.org/workload/frontend",
        "spiffe://example.org/workload/front,end",
        "spiffe://example.org/workload/front;end",
        "spiffe://example.org/workload/front=end",
        "spiffe://example.org/workload/front\"end",
        "spiffe://example.org/workload/front*end",
        "spiffe://ex%61mple.org/workload/frontend",
        "spiffe://[::1]/workload/frontend",
        " spiffe://example.org/workload/frontend",
        "",
    ] {
        add(&format!("60, 61 {id:?}"), pki.root.leaf(id, &no_change));
    }
    let long = format!("spiffe://example.org/{}", "a".repeat(2048 - 20));
    add("60 2,049 bytes", pki.root.leaf(&long, &no_change));
    add(
        "60 bytes beyond ASCII",
        leaf(&|params| {
            params.subject_alt_names.clear();
            params
                .custom_extensions
                .push(names(&[(URI, "spiffe://example.org/frönt".as_bytes())]));
        }),
    );

    let by = |one: &Ca| one.leaf(pki.id, &no_change);
    add("62 the intermediate is missing", by(&below));
    let expired = pki.root.below("expired", &|params| params.not_after = past);
    add(
        "62 the intermediate has expired",
        by(&expired).with(&[&expired]),
    );
    let no_ca = pki
        .root
        .below("no ca", &|params| params.is_ca = IsCa::ExplicitNoCa);
    add(
        "62 the intermediate is no authority",
        by(&no_ca).with(&[&no_ca]),
    );
    let says_nothing = pki
        .root
        .below("nothing", &|params| params.is_ca = IsCa::NoCa);
    add(
        "62 the intermediate does not say what it is",
        by(&says_nothing).with(&[&says_nothing]),
    );
    let no_sign = pki.root.below("no sign", &|params| {
        params.key_usages = vec![KeyUsagePurpose::CrlSign]
    });
    add(
        "62 the intermediate may not sign",
        by(&no_sign).with(&[&no_sign]),
    );
    let no_usage = pki
        .root
        .below("no usage", &|params| params.key_usages.clear());
    add(
        "62 the intermediate has no key usage",
        by(&no_usage).with(&[&no_usage]),
    );
    let short = pki.root.below("short", &|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))
    });
    let too_deep = short.below("too deep", &no_change);
    add(
        "62 the path is longer than allowed",
        by(&too_deep).with(&[&too_deep, &short]),
    );
    let foreign = pki.root.below("foreign", &|params| {
        params.subject_alt_names = vec![uri("spiffe://example.net")]
    });
    add(
        "62 the intermediate is of another trust domain",
        by(&foreign).with(&[&foreign]),
    );
    let with_path = pki.root.below("path", &|params| {
        params.subject_alt_names = vec![uri("spiffe://example.org/ca")]
    });
    add(
        "62 the intermediate is a workload",
        by(&with_path).with(&[&with_path]),
    );
    let mut chain = vec![pki.root.below("1", &no_change)];
    for depth in 2..=12 {
        let next = chain.last().unwrap().below(&depth.to_string(), &no_change);
        chain.push(next);
    }
    let all_above: Vec<&Ca> = chain.iter().rev().collect();
    add(
        "62 twelve intermediates",
        by(chain.last().unwrap()).with(&all_above),
    );

    let constrained = |permitted: &str| {
        let permitted = permitted.to_owned();
        pki.root.below("constrained", &move |params| {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName(permitted.clone())],
                excluded_subtrees: Vec::new(),
            });
        })
    };
    let named = constrained("good.test");
    let elsewhere = named.leaf(pki.id, &|params| {
        let name = SanType::DnsName("evil.test".try_into().unwrap());
        params.subject_alt_names.push(name);
    });
    add("63 a name constraint is broken", elsewhere.with(&[&named]));
    let by_uri = pki.root.below("by uri", &|params| {
        // permittedSubtrees: [6] example.org
        let der = [
            &[0x30, 0x11, 0xa0, 0x0f, 0x30, 0x0d, 0x86, 0x0b][..],
            b"example.org",
        ]
        .concat();
        let mut constraint = CustomExtension::from_oid_content(&[2, 5, 29, 30], der);
        constraint.set_criticality(true);
        params.custom_extensions.push(constraint);
    });
    add(
        "63 a constraint of URI names, kept",
        by(&by_uri).with(&[&by_uri]),
    );

    add(
        "64 an unknown critical extension",
        leaf(&|params| params.custom_extensions.push(extension(true, 2))),
    );
    let critical = pki.root.below("critical", &|params| {
        params.custom_extensions.push(extension(true, 2))
    });
    add(
        "64 an unknown critical extension above",
        by(&critical).with(&[&critical]),
    );

    let p256 = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    add("65 SHA-1", by_openssl(world, pki, &p256, "sha1"));
    add("65 SHA-224", by_openssl(world, pki, &p256, "sha224"));
    let p224 = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-224"];
    add("65 P-224", by_openssl(world, pki, &p224, "sha256"));
    let rsa = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"];
    add(
        "65 RSA of 1,024 bits",
        by_openssl(world, pki, &rsa, "sha256"),
    );

    add(
        "66 3,000 names",
        leaf(&|params| {
            for number in 0..3000 {
                let name = format!("name-{number}.example.org");
                params
                    .subject_alt_names
                    .push(SanType::DnsName(name.try_into().unwrap()));
            }
        }),
    );
    add(
        "66 an extension of 128 KB",
        leaf(&|params| params.custom_extensions.push(extension(false, 128 << 10))),
    );
    let strays: Vec<Ca> = (0..30)
        .map(|number| Ca::root("example.org", &format!("stray {number}"), &no_change))
        .collect();
    add(
        "66 thirty stray certificates",
        leaf(&no_change).with(&strays.iter().collect::<Vec<_>>()),
    );
    let namesakes: Vec<Ca> = (0..40)
        .map(|_| Ca::root("example.org", "Test Root", &no_change))
        .collect();
    let last = namesakes.last().unwrap().leaf(pki.id, &no_change);
    add(
        "66 forty authorities of one name",
        last.with(&namesakes.iter().collect::<Vec<_>>()),
    );
    all
}

fn certified(shown: &Shown) -> Option<CertifiedKey> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(shown.key.clone()));
    let key = default_provider().key_provider.load_private_key(key).ok()?;
    Some(CertifiedKey::new(shown.chain.clone(), key))
}

/// Shows the same chain whatever is asked for.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Always {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// Believes everybody.
#[derive(Debug)]
pub(super) struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// What somebody hears who shows this chain and asks.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Answer,
    Alert,
    Silence(String),
}

fn call(to: SocketAddr, shown: &Shown) -> Heard {
    let Some(certified) = certified(shown) else {
        // A key that nobody can use proves nothing.
        return Heard::Alert;
    };
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_client_cert_resolver(Arc::new(Always(Arc::new(certified))));
    let name = ServerName::from(to.ip());
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(to).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut stream = Stream::new(&mut connection, &mut socket);
    let asked =
        stream.write_all(b"GET /api/v1/x HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    if answer.starts_with(b"HTTP/1.1 200") {
        return Heard::Answer;
    }
    let errors = [asked.err(), read.err()].into_iter().flatten();
    for error in errors {
        if let Some(Error::AlertReceived(_)) = error.get_ref().and_then(|one| one.downcast_ref()) {
            return Heard::Alert;
        }
        // The alert may be overtaken by the end of the connection.
        if matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe
        ) {
            return Heard::Alert;
        }
    }
    Heard::Silence(String::from_utf8_lossy(&answer).into_owned())
}

const WORKLOADS: &str = "\
apiVersion: postern.dev/v1
kind: Workload
metadata: {name: frontend, namespace: production, labels: {app: frontend}}
spec: {spiffeID: 'spiffe://example.org/workload/frontend'}
---
apiVersion: postern.dev/v1
kind: Workload
metadata: {name: web, namespace: production, labels: {app: web}}
spec: {serviceAccount: web, addresses: [127.0.0.1], ports: [{name: http, port: PORT}]}
";

const POLICIES: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all, namespace: production}
spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{podSelector: {}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: production}
spec: {rules: [{from: [{source: {principals: ['example.org/*']}}]}]}
";

/// A proxy of this Workload, with an identity from files.
fn proxy(world: &mut World, pki: &Root, name: &str, id: &str, port: u16, more: &str) -> SocketAddr {
    let address = free_address().unwrap();
    let shown = pki.0.leaf(id, &no_change);
    let pem = |label: &str, der: &[u8]| {
        use base64::Engine as _;
        let text = base64::prelude::BASE64_STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    };
    let certificate = pem("CERTIFICATE", shown.chain.first().unwrap());
    world.write("own.crt", &certificate).unwrap();
    world
        .write("own.key", &pem("PRIVATE KEY", &shown.key))
        .unwrap();
    world
        .write("bundle.crt", &pem("CERTIFICATE", &pki.0.der))
        .unwrap();
    let workloads = WORKLOADS.replace("PORT", &port.to_string());
    world.write("workloads/w.yaml", &workloads).unwrap();
    world.write("policies/p.yaml", POLICIES).unwrap();
    let (admin, metrics) = (free_address().unwrap(), free_address().unwrap());
    let config = format!(
        "identity: {{files: {{certificate: own.crt, key: own.key, bundle: bundle.crt}}}}\n\
         workload: production/{name}\npolicies: {{directory: policies}}\n\
         workloads: {{directory: workloads}}\nadmin: {{listen: '{admin}'}}\n\
         metrics: {{listen: '{metrics}'}}\naccessLog: {{path: access.log}}\n{}",
        more.replace("ADDRESS", &address.to_string())
    );
    world.proxy("proxy", &config).unwrap();
    world.said("proxy", "ready").unwrap();
    address
}

struct Root(Ca);

#[test]
fn callers_with_a_wrong_chain_get_an_alert_and_good_ones_an_answer() {
    // FAULTS 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66
    let mut world = World::new().unwrap();
    let app = App::start().unwrap();
    let root = Root(Ca::root("example.org", "Test Root", &no_change));
    let more = format!(
        "inbound: {{listen: 'ADDRESS', forward: '{}'}}\n",
        app.address
    );
    let address = proxy(&mut world, &root, "web", WEB, app.address.port(), &more);
    let pki = Pki {
        root: root.0,
        id: FRONTEND,
        uses: [
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ],
    };
    let good = good(&pki);
    for (name, shown) in &good {
        assert_eq!(call(address, shown), Heard::Answer, "{name}");
    }
    let longest = format!("spiffe://example.org/{}", "a".repeat(2048 - 21));
    assert_eq!(longest.len(), 2048);
    let longest = pki.root.leaf(&longest, &no_change);
    // Nobody is called so, and so the network policy says no: after the handshake.
    assert_ne!(call(address, &longest), Heard::Answer);
    eventually("its line, with the identity that was believed", || {
        let log = std::fs::read_to_string(world.path().join("access.log")).unwrap();
        log.contains("aaaaaaaaaaaa").then_some(())
    })
    .unwrap();
    let (_, first) = good.first().unwrap();
    let wrong = wrong(&world, &pki);
    assert!(wrong.len() > 80, "{}", wrong.len());
    for (name, shown) in &wrong {
        let before = app.reached();
        assert_eq!(call(address, shown), Heard::Alert, "{name}");
        assert_eq!(app.reached(), before, "{name}: the app saw something");
    }
    assert_eq!(
        call(address, first),
        Heard::Answer,
        "and the good one still"
    );
}

/// A server that shows what it is told to, and counts what is said to it.
struct Server {
    address: SocketAddr,
    shows: Arc<Mutex<Shown>>,
    bytes: Arc<AtomicUsize>,
}

impl Server {
    fn start(first: Shown) -> Self {
        let listener = TcpListener::bind(free_address().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (shows, bytes) = (Arc::new(Mutex::new(first)), Arc::new(AtomicUsize::new(0)));
        let (shown, counter) = (shows.clone(), bytes.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let shown = shown.lock().unwrap().clone();
                let counter = counter.clone();
                std::thread::spawn(move || serve(socket, &shown, &counter));
            }
        });
        Self {
            address,
            shows,
            bytes,
        }
    }
}

fn serve(mut socket: TcpStream, shown: &Shown, counter: &AtomicUsize) {
    let Some(certified) = certified(shown) else {
        return;
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Always(Arc::new(certified))));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
    let mut stream = Stream::new(&mut connection, &mut socket);
    let mut request = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut request) {
        counter.fetch_add(read, Ordering::SeqCst);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nhello\n";
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}

#[test]
fn a_server_with_a_wrong_chain_is_told_nothing() {
    // FAULTS 69, 70
    let mut world = World::new().unwrap();
    let root = Root(Ca::root("example.org", "Test Root", &no_change));
    let server = Server::start(root.0.leaf(WEB, &no_change));
    let port = server.address.port();
    let more = "outbound: {listeners: [{listen: 'ADDRESS', to: production/web, port: http}]}\n\
                inbound: {listen: '127.0.0.1:0', forward: '127.0.0.1:1'}\n";
    let address = proxy(&mut world, &root, "frontend", FRONTEND, port, more);
    let pki = Pki {
        root: root.0,
        id: WEB,
        uses: [
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
    };
    let ask = || {
        let url = format!("http://{address}/api/v1/x");
        let arguments = [
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--max-time",
            "20",
            &url,
        ];
        let output = run("curl", &arguments).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.parse::<u16>().unwrap_or_default()
    };
    for (name, shown) in good(&pki) {
        *server.shows.lock().unwrap() = shown;
        assert_eq!(ask(), 200, "{name}");
    }
    let mut all = wrong(&world, &pki);
    all.push((
        "70 somebody else".into(),
        pki.root.leaf(FRONTEND, &no_change),
    ));
    for (name, shown) in all {
        let before = server.bytes.load(Ordering::SeqCst);
        *server.shows.lock().unwrap() = shown;
        let status = ask();
        assert!(matches!(status, 502 | 503), "{name}: {status}");
        let after = server.bytes.load(Ordering::SeqCst);
        assert_eq!(after, before, "{name}: it was told something");
    }
}
