//! Encryption of images: one fresh key for each folder, XChaCha20-Poly1305.
//!
//! Who holds the key is not decided here. Every text is bound to the name of its file and to its place in it, so that pieces
//! cannot be exchanged for others.
use chacha20poly1305::aead::{Aead, KeyInit};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

/// What an encrypted file begins with.
pub const MAGIC: &[u8; 8] = b"STASISE1";
/// Bytes that encryption adds to a text: the tag.
pub const TAG: usize = 16;

/// The key of a folder, or of one of its files.
#[derive(Clone)]
pub struct Key {
    secret: [u8; 32],
    cipher: XChaCha20Poly1305,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// A key of random bytes.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self {
            secret: *secret,
            cipher: XChaCha20Poly1305::new(secret.into()),
        }
    }
    /// A nonce for the place of a text; no two texts of a file have the same, and each folder has a key of its own.
    fn nonce(at: u64) -> XNonce {
        let mut n = [0; 24];
        n[..8].copy_from_slice(&at.to_le_bytes());
        n.into()
    }
    /// The key of one file: places in different files are the same numbers (HKDF, RFC 5869).
    pub fn of_file(&self, name: &str) -> Self {
        let mut secret = [0; 32];
        let made = hkdf::Hkdf::<sha2::Sha256>::new(None, &self.secret);
        // one hash long: always possible
        let _ = made.expand(name.as_bytes(), &mut secret);
        Self::new(&secret)
    }
    /// Encrypts; `None` for a text too long for the cipher.
    pub fn seal(&self, at: u64, text: &[u8]) -> Option<Vec<u8>> {
        self.cipher.encrypt(&Self::nonce(at), text).ok()
    }
    /// Decrypts; `None` if it is not what was encrypted for this place with this key.
    pub fn open(&self, at: u64, sealed: &[u8]) -> Option<Vec<u8>> {
        self.cipher.decrypt(&Self::nonce(at), sealed).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_opens_only_in_its_place() {
        let key = Key::new(&[7; 32]).of_file("a.img");
        let sealed = key.seal(4096, b"secret").unwrap();
        assert_eq!(sealed.len(), 6 + TAG);
        assert_eq!(key.open(4096, &sealed).unwrap(), b"secret");
        assert!(key.open(0, &sealed).is_none());
        assert!(
            Key::new(&[7; 32])
                .of_file("b.img")
                .open(4096, &sealed)
                .is_none()
        );
        assert!(
            Key::new(&[8; 32])
                .of_file("a.img")
                .open(4096, &sealed)
                .is_none()
        );
        let mut bad = sealed.clone();
        bad[2] ^= 1;
        assert!(key.open(4096, &bad).is_none());
    }
}
