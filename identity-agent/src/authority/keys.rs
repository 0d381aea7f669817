//! Keys that sign certificates, wiped when they are let go.
//!
//! The library keeps a key twice: as the cryptographic provider has it, which wipes what it frees, and
//! as PKCS #8, which nobody wipes unasked. That is asked for here. What remains out of reach is listed
//! in ARCHITECTURE.md.

use std::{fmt, ops::Deref};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::PrivatePkcs8KeyDer;
use zeroize::{Zeroize as _, Zeroizing};

/// An ECDSA key on P-256, or whatever an authority above has.
pub(super) struct SigningKey(KeyPair);

impl SigningKey {
    /// Makes a new one.
    ///
    /// # Errors
    /// The provider's own.
    pub(super) fn generate() -> Result<Self, rcgen::Error> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self)
    }

    /// Reads PKCS #8 in DER.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn from_pkcs8(der: &[u8]) -> Result<Self, rcgen::Error> {
        KeyPair::try_from(&PrivatePkcs8KeyDer::from(der)).map(Self)
    }

    /// Reads PEM.
    ///
    /// # Errors
    /// There is no key in it.
    pub(super) fn from_pem(pem: &str) -> Result<Self, rcgen::Error> {
        KeyPair::from_pem(pem).map(Self)
    }

    /// The key as PKCS #8 in DER.
    pub(super) fn pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }
}

impl Deref for SigningKey {
    type Target = KeyPair;

    fn deref(&self) -> &KeyPair {
        &self.0
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl Drop for SigningKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use rcgen::PublicKeyData as _;
    use zeroize::Zeroize as _;

    use super::SigningKey;

    #[test]
    fn a_key_is_the_same_after_it_was_written_and_is_never_shown() {
        let key = SigningKey::generate().unwrap();
        let read = SigningKey::from_pkcs8(&key.pkcs8()).unwrap();
        assert_eq!(read.der_bytes(), key.der_bytes());
        let read = SigningKey::from_pem(&key.serialize_pem()).unwrap();
        assert_eq!(read.der_bytes(), key.der_bytes());
        assert_eq!(format!("{key:?}"), "<secret>");
        assert!(SigningKey::from_pkcs8(b"no key").is_err());
    }

    #[test]
    fn what_dropping_wipes_is_all_that_the_library_would_tell() {
        let mut key = SigningKey::generate().unwrap();
        assert!(!key.pkcs8().is_empty());
        key.0.zeroize();
        assert!(key.pkcs8().is_empty());
    }
}
