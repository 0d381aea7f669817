//! The authority's state on disk: one file, replaced whole.
//!
//! Written to a new file, synced, renamed over the old one, the folder synced: after a crash at
//! any instant there is the old state or the new one. What cannot be read is an error and stays as
//! it is: a new root in its place would cut every workload off from its peers.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use postern_spiffe::{TrustDomain, X509Bundle};
use rustix::fs::{FlockOperation, flock};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::guarded;

use super::{
    issue::{hex, validity},
    jwt::JwtKey,
    keys::SigningKey,
    signers::{Lived, Signer, Signers},
    upstream::Above,
};

/// Everything the authority must not forget.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) roots: Signers<Root>,
    /// Those that sign no more, and whose lists are still asked for: peers trust the authority above
    /// them.
    pub(super) former: Signers<Root>,
    pub(super) jwt_keys: Signers<JwtKey>,
    pub(super) revoked: Vec<Revoked>,
    pub(super) list_number: u64,
    /// Grows with every change of what the bundle holds.
    pub(super) sequence: u64,
}

/// A root, or one that an authority above vouches for, and its key.
pub(super) struct Root {
    pub(super) certificate: Vec<u8>,
    pub(super) key: SigningKey,
    pub(super) above: Option<Above>,
    /// Shared by all that it signs.
    pub(super) serial: Arc<[u8]>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Lived for Root {
    fn id(&self) -> String {
        hex(&self.serial)
    }

    fn not_before(&self) -> SystemTime {
        self.not_before
    }

    fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl Root {
    pub(super) fn new(
        certificate: Vec<u8>,
        key: SigningKey,
        above: Option<Above>,
    ) -> Result<Self, StateError> {
        let (not_before, not_after) = validity(&certificate)?;
        let (_, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|_| StateError::damaged("a root certificate cannot be read"))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(StateError::damaged(
                "a root certificate and its key do not belong together",
            ));
        }
        Ok(Self {
            serial: parsed.raw_serial().into(),
            not_before,
            not_after,
            key,
            above,
            certificate,
        })
    }

    /// What peers must trust to believe what this one signs.
    pub(super) fn anchors(&self) -> impl Iterator<Item = &[u8]> {
        let above = self.above.iter().flat_map(|above| &above.anchors);
        let own = self.above.is_none().then_some(&self.certificate);
        above.chain(own).map(Vec::as_slice)
    }
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root")
            .field("not_after", &self.not_after)
            .field("key", &"<secret>")
            .finish_non_exhaustive()
    }
}

/// An SVID that was taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Revoked {
    pub(super) serial: Vec<u8>,
    pub(super) issuer: Vec<u8>,
    pub(super) at: SystemTime,
    pub(super) expires: SystemTime,
}

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system refused.
    #[error("cannot {action} `{path}`: {cause}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },
    /// Another agent uses the folder.
    #[error("another agent uses the state in `{}`", .0.display())]
    InUse(PathBuf),
    /// The file is not what this program wrote.
    #[error(
        "the state `authority.json` is damaged ({0}); it was left as it is: restore it from a backup, or \
         move it away to begin with a new root, which every peer must then learn"
    )]
    Damaged(String),
    /// The state belongs to another trust domain.
    #[error("the state is that of trust domain `{found}`, and the configuration says `{wanted}`")]
    OtherTrustDomain {
        /// In the file.
        found: String,
        /// In the configuration.
        wanted: TrustDomain,
    },
    /// The authority above cannot be used.
    #[error("the authority above (`authority.upstream`): {0}")]
    Upstream(String),
    /// There is no root that may sign now.
    #[error("there is no root that may sign now")]
    NoRoot,
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Crypto(#[from] rcgen::Error),
    /// There is no key that may sign tokens now.
    #[error("there is no key that may sign tokens now")]
    NoJwtKey,
    /// A token could not be made.
    #[error("cannot sign a token")]
    Token,
    /// One is prepared already.
    #[error("the next one is prepared already; `activate` has it sign")]
    AlreadyPrepared,
    /// There is nothing to activate.
    #[error("nothing is prepared; `prepare` makes the next one")]
    NothingPrepared,
    /// It signs now.
    #[error("`{0}` signs now; `prepare` and `activate` another one before")]
    Signs(String),
    /// It is trusted.
    #[error("`{0}` is not tainted; `taint` has all that it signed replaced before it goes")]
    NotTainted(String),
    /// There is no such root or key.
    #[error("there is no root and no key `{0}`; `show` lists them")]
    Unknown(String),
    /// There are no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

impl StateError {
    pub(super) fn damaged(why: impl Into<String>) -> Self {
        Self::Damaged(why.into())
    }
}

/// The folder, locked for this process.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Held open: the lock is the file's.
    _lock: File,
}

impl Folder {
    /// Makes the folder if need be, for its owner alone, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |action| {
            move |cause| StateError::Io {
                action,
                path: path.to_owned(),
                cause,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("make the folder"))?;
        let found = fs::metadata(path).map_err(failed("look at"))?;
        let own = rustix::process::geteuid().as_raw();
        let refused = |why: &'static str| {
            failed("trust")(io::Error::new(io::ErrorKind::PermissionDenied, why))
        };
        if ![0, own].contains(&found.uid()) {
            return Err(refused("it belongs to somebody else; `chown` it"));
        }
        if found.mode() & 0o022 != 0 {
            return Err(refused(
                "others may have put files into it; look at what lies there, then `chmod 700` it",
            ));
        }
        let was_open = found.mode() & 0o077 != 0;
        if was_open && found.uid() != own {
            return Err(refused(
                "others can enter it and it is not ours to close; `chmod 700` it",
            ));
        }
        guarded::check(path).map_err(failed("trust"))?;
        let lock = options().open(path.join(LOCK)).map_err(failed("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StateError::InUse(path.to_owned()))?;
        close(path, was_open)?;
        // Last, so that what was refused is refused at the next start, too.
        if was_open {
            fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed("close"))?;
            tracing::warn!(path = %path.display(), "the state could be read by others; now it cannot");
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Reads the state, if there is any.
    pub(super) fn read(&self, trust_domain: &TrustDomain) -> Result<Option<State>, StateError> {
        let path = self.path.join(FILE);
        let failed = |action| {
            move |cause| StateError::Io {
                action,
                path: self.path.join(FILE),
                cause,
            }
        };
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(failed("open"))?,
        };
        let mut text = Zeroizing::new(String::new());
        file.read_to_string(&mut text).map_err(failed("read"))?;
        let written: Written = serde_json::from_str(&text)
            .map_err(|error| StateError::damaged(format!("line {}", error.line())))?;
        written.meaning(trust_domain).map(Some)
    }

    /// Replaces the state.
    pub(super) fn write(
        &self,
        trust_domain: &TrustDomain,
        state: &State,
    ) -> Result<(), StateError> {
        let path = self.path.join(FILE);
        let text = Zeroizing::new(
            serde_json::to_vec_pretty(&Written::of(trust_domain, state))
                .map_err(|error| StateError::damaged(error.to_string()))?,
        );
        replace_file(&path, &text).map_err(|cause| StateError::Io {
            action: "replace",
            path,
            cause,
        })
    }
}

/// Has what lies in the folder be its owner's alone. Where others could come in and write to a file, nobody knows
/// what it says.
fn close(folder: &Path, was_open: bool) -> Result<(), StateError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |cause| StateError::Io {
            action,
            path,
            cause,
        }
    };
    for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
        let path = entry.map_err(failed("read", folder))?.path();
        let found = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
        let is_ours = found.uid() == rustix::process::geteuid().as_raw();
        if !is_ours && found.mode() & 0o022 == 0 {
            // Root's own, such as the `lost+found` of a volume.
            continue;
        }
        if found.mode() & 0o022 != 0 && was_open && !found.is_symlink() {
            let why = "others may have written to it; look at what it says, then `chmod 600` it";
            let cause = io::Error::new(io::ErrorKind::PermissionDenied, why);
            return Err(failed("trust", &path)(cause));
        }
        if found.mode() & 0o077 != 0 && !found.is_symlink() {
            let mode = if found.is_dir() { 0o700 } else { 0o600 };
            fs::set_permissions(&path, Permissions::from_mode(mode))
                .map_err(failed("close", &path))?;
            tracing::warn!(path = %path.display(), "the state could be read by others; now it cannot");
        }
        if found.is_dir() {
            close(&path, was_open)?;
        }
    }
    Ok(())
}

/// Replaces a file whole, for its owner alone: after a crash at any instant there is the old one or
/// the new one.
pub fn replace_file(path: &Path, contents: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(FRESH);
    // What lies there may be somebody's link, or open in somebody's hands.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = options().create_new(true).open(&fresh)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(folder)?.sync_all()
}

/// For the owner alone, whatever the umask says.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// The state as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    version: u32,
    trust_domain: String,
    roots: Vec<WrittenRoot>,
    /// From version 3 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<WrittenRoot>,
    /// From version 2 on.
    #[serde(default)]
    jwt_keys: Vec<WrittenJwtKey>,
    revoked: Vec<WrittenRevoked>,
    list_number: u64,
    /// From version 3 on.
    #[serde(default)]
    sequence: u64,
}

/// Certificate and key in base64 of DER; the time in seconds since 1970.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenRoot {
    certificate: String,
    key: Zeroizing<String>,
    active_from: u64,
    #[serde(default)]
    tainted: bool,
    /// Of one that an authority above vouches for, from version 3 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    above: Option<WrittenAbove>,
}

/// Certificates in base64 of DER.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenAbove {
    chain: Vec<String>,
    anchors: Vec<String>,
}

/// The key in base64 of PKCS#8; times in seconds since 1970.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenJwtKey {
    id: String,
    key: Zeroizing<String>,
    not_before: u64,
    active_from: u64,
    not_after: u64,
    #[serde(default)]
    tainted: bool,
}

/// Serial numbers in base64; times in seconds since 1970.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenRevoked {
    serial: String,
    issuer: String,
    at: u64,
    expires: u64,
}

impl Written {
    fn of(trust_domain: &TrustDomain, state: &State) -> Self {
        Self {
            version: VERSION,
            trust_domain: trust_domain.to_string(),
            roots: state.roots.iter().map(WrittenRoot::of).collect(),
            former: state.former.iter().map(WrittenRoot::of).collect(),
            jwt_keys: state
                .jwt_keys
                .iter()
                .map(|key| WrittenJwtKey {
                    id: key.id.clone(),
                    key: Zeroizing::new(BASE64_STANDARD.encode(&*key.pkcs8)),
                    not_before: seconds(key.not_before),
                    active_from: seconds(key.active_from),
                    not_after: seconds(key.not_after),
                    tainted: key.tainted,
                })
                .collect(),
            revoked: state
                .revoked
                .iter()
                .map(|one| WrittenRevoked {
                    serial: BASE64_STANDARD.encode(&one.serial),
                    issuer: BASE64_STANDARD.encode(&one.issuer),
                    at: seconds(one.at),
                    expires: seconds(one.expires),
                })
                .collect(),
            list_number: state.list_number,
            sequence: state.sequence,
        }
    }

    fn meaning(self, wanted: &TrustDomain) -> Result<State, StateError> {
        if !(FIRST_VERSION..=VERSION).contains(&self.version) {
            return Err(StateError::damaged(format!(
                "it has version {}, and this program knows versions {FIRST_VERSION} to {VERSION}",
                self.version
            )));
        }
        if self.trust_domain != wanted.as_str() {
            let (found, wanted) = (self.trust_domain, wanted.clone());
            return Err(StateError::OtherTrustDomain { found, wanted });
        }
        let roots = self.roots.into_iter().map(WrittenRoot::meaning);
        let roots: Signers<Root> = roots.collect::<Result<_, _>>()?;
        let certificates = roots
            .iter()
            .map(|root| CertificateDer::from(root.certificate.clone()))
            .collect();
        X509Bundle::new(wanted.clone(), certificates)
            .map_err(|error| StateError::damaged(error.to_string()))?;
        let former = self.former.into_iter().map(WrittenRoot::meaning);
        let revoked = self.revoked.into_iter().map(WrittenRevoked::meaning);
        let jwt_keys = self.jwt_keys.into_iter().map(WrittenJwtKey::meaning);
        Ok(State {
            roots,
            former: former.collect::<Result<_, _>>()?,
            jwt_keys: jwt_keys.collect::<Result<_, _>>()?,
            revoked: revoked.collect::<Result<_, _>>()?,
            list_number: self.list_number,
            sequence: self.sequence,
        })
    }
}

impl WrittenRoot {
    fn of(root: &Signer<Root>) -> Self {
        let all = |all: &[Vec<u8>]| all.iter().map(|one| BASE64_STANDARD.encode(one)).collect();
        let key = root.key.pkcs8();
        Self {
            certificate: BASE64_STANDARD.encode(&root.certificate),
            key: Zeroizing::new(BASE64_STANDARD.encode(key.as_slice())),
            active_from: seconds(root.active_from),
            tainted: root.tainted,
            above: root.above.as_ref().map(|above| WrittenAbove {
                chain: all(&above.chain),
                anchors: all(&above.anchors),
            }),
        }
    }

    fn meaning(self) -> Result<Signer<Root>, StateError> {
        let key = Zeroizing::new(decode(&self.key)?);
        let key = SigningKey::from_pkcs8(&key)
            .map_err(|_| StateError::damaged("a root's key cannot be read"))?;
        let all = |texts: Vec<String>| texts.iter().map(|text| decode(text)).collect();
        let above = self.above.map(|above| {
            let (chain, anchors): (Result<_, StateError>, Result<_, StateError>) =
                (all(above.chain), all(above.anchors));
            Ok::<_, StateError>(Above {
                chain: chain?,
                anchors: anchors?,
            })
        });
        let root = Root::new(decode(&self.certificate)?, key, above.transpose()?)?;
        Ok(Signer::new(root, time(self.active_from), self.tainted))
    }
}

impl WrittenJwtKey {
    fn meaning(self) -> Result<Signer<JwtKey>, StateError> {
        let pkcs8 = Zeroizing::new(decode(&self.key)?);
        let life = [self.not_before, self.not_after].map(time);
        let key = JwtKey::of(self.id, pkcs8, life)
            .map_err(|_| StateError::damaged("a key that signs tokens cannot be read"))?;
        Ok(Signer::new(key, time(self.active_from), self.tainted))
    }
}

impl WrittenRevoked {
    fn meaning(self) -> Result<Revoked, StateError> {
        Ok(Revoked {
            serial: decode(&self.serial)?,
            issuer: decode(&self.issuer)?,
            at: time(self.at),
            expires: time(self.expires),
        })
    }
}

fn decode(text: &str) -> Result<Vec<u8>, StateError> {
    BASE64_STANDARD
        .decode(text)
        .map_err(|_| StateError::damaged("a value is no base64"))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn time(seconds: u64) -> SystemTime {
    // What does not fit any clock is as good as never.
    UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(UNIX_EPOCH)
}

const FILE: &str = "authority.json";
/// Put behind the name of a file while its successor is written.
const FRESH: &str = ".new";
const LOCK: &str = "lock";
/// What is written. Version 1 had no keys that sign tokens, version 2 no authority above.
const VERSION: u32 = 3;
const FIRST_VERSION: u32 = 1;
