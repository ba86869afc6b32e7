//! Sessions: tokens that say who a user is, signed by one key of the data folder.
//!
//! A token is a JWT in compact form, signed with Ed25519 and nothing else: the algorithm is a property of the
//! key, never taken from the token (RFC 8725, 3.1). It is refused without an expiry, and at its expiry, without
//! leeway: who issues it and who verifies it share a clock or an installation.
//!
//! Written on `ring` and not on `jsonwebtoken`: its crypto provider can be chosen once per process, by a global.
//! An application that mounts a modulith and has tokens of its own would find them verified by our provider,
//! which knows Ed25519 only, or would fail to install its own. What is needed of JWS is forty lines.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use parking_lot::Mutex;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::secret::{self, KeyError};

const FILE: &str = "session.key";
const ISSUER: &str = "modulith";
const HEADER: &str = r#"{"alg":"EdDSA","typ":"JWT"}"#;
/// Longer ones are refused unread.
const TOKEN_BYTES_MAX: usize = 4096;
const SUBJECT_BYTES_MAX: usize = 255;
/// Of each of the two generations of verified tokens.
const GENERATION_MAX: usize = 10_000;

/// Issues and verifies session tokens.
///
/// To verify costs an Ed25519 verification (about 50 us) the first time and a SHA-256 and a look-up after that:
/// up to 20,000 verified tokens are remembered, by their digest, and their expiry is checked at every use.
pub struct SessionKeys {
    pair: Ed25519KeyPair,
    verified: Mutex<Generations>,
}

/// What a token says, once it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub subject: Arc<str>,
    pub expires_at: SystemTime,
}

/// Why a token counts for nothing. For logs: a client is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("not a token of this issuer")]
    Malformed,
    #[error("signed with another algorithm than EdDSA")]
    Algorithm,
    #[error("signature does not fit")]
    Signature,
    #[error("expired")]
    Expired,
}

/// Why no token is issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    #[error("a subject has 1 to {SUBJECT_BYTES_MAX} bytes and no control characters")]
    Subject,
    #[error("the expiry is no time")]
    Expiry,
}

#[derive(Serialize, Deserialize)]
struct Claims<'a> {
    #[serde(borrow)]
    iss: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    sub: std::borrow::Cow<'a, str>,
    iat: u64,
    exp: u64,
}

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: std::borrow::Cow<'a, str>,
    /// Names extensions that a reader must understand (RFC 7515, 4.1.11). We understand none.
    crit: Option<IgnoredAny>,
}

impl SessionKeys {
    /// Reads `dir/session.key` (PKCS#8), or makes it with mode 0600. The folder must exist. Blocks.
    ///
    /// # Errors
    ///
    /// [`KeyError`], naming the file: others can read it, or it holds no key.
    pub fn load_or_create(dir: &Path) -> Result<Self, KeyError> {
        let pkcs8 = secret::load_or_create(dir, FILE, || {
            let pkcs8 =
                Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::NoRandomness)?;
            Ok(pkcs8.as_ref().to_vec())
        })?;
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8)
            .map_err(|_| KeyError::Unreadable { path: dir.join(FILE), why: "no Ed25519 key in PKCS#8" })?;
        Ok(Self { pair, verified: Mutex::default() })
    }

    /// A token for a user, good for `ttl` in whole seconds from now.
    ///
    /// # Errors
    ///
    /// If the subject is empty, longer than 255 bytes or has control characters, or the time cannot be told.
    pub fn issue(&self, subject: &str, ttl: Duration) -> Result<String, IssueError> {
        if !(1..=SUBJECT_BYTES_MAX).contains(&subject.len()) || subject.chars().any(char::is_control) {
            return Err(IssueError::Subject);
        }
        let now = seconds(SystemTime::now());
        let exp = now.checked_add(ttl.as_secs()).ok_or(IssueError::Expiry)?;
        let claims = Claims { iss: ISSUER.into(), sub: subject.into(), iat: now, exp };
        let claims = serde_json::to_vec(&claims).expect("texts and numbers are JSON");
        Ok(self.sign(HEADER, &claims))
    }

    /// Who the token was issued to, if it was issued here and has not expired.
    ///
    /// # Errors
    ///
    /// [`TokenError`].
    pub fn verify(&self, token: &str) -> Result<Verified, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let mut name = [0; SHA256_OUTPUT_LEN];
        name.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let known = self.verified.lock().get(&name);
        let verified = match known {
            Some(verified) => verified,
            None => {
                let verified = self.read(token)?;
                self.verified.lock().put(name, verified.clone());
                verified
            }
        };
        match SystemTime::now() < verified.expires_at {
            true => Ok(verified),
            false => Err(TokenError::Expired),
        }
    }

    fn read(&self, token: &str) -> Result<Verified, TokenError> {
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
        if claims.contains('.') {
            return Err(TokenError::Malformed);
        }
        let header = decode(header)?;
        let header: Header<'_> = serde_json::from_slice(&header).map_err(|_| TokenError::Malformed)?;
        if header.alg != "EdDSA" {
            return Err(TokenError::Algorithm);
        }
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        UnparsedPublicKey::new(&ED25519, self.pair.public_key())
            .verify(message.as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Signature)?;
        let claims = decode(claims)?;
        let claims: Claims<'_> = serde_json::from_slice(&claims).map_err(|_| TokenError::Malformed)?;
        if claims.iss != ISSUER || claims.sub.is_empty() {
            return Err(TokenError::Malformed);
        }
        let expires_at =
            UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp)).ok_or(TokenError::Malformed)?;
        Ok(Verified { subject: claims.sub.into(), expires_at })
    }

    fn sign(&self, header: &str, claims: &[u8]) -> String {
        let mut token = BASE64URL.encode(header);
        token.push('.');
        BASE64URL.encode_string(claims, &mut token);
        let signature = self.pair.sign(token.as_bytes());
        token.push('.');
        BASE64URL.encode_string(signature, &mut token);
        token
    }
}

impl std::fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKeys(..)")
    }
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    BASE64URL.decode(part).map_err(|_| TokenError::Malformed)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Verified tokens: a young generation that fills up, and the one before it, which is dropped when the young
/// one is full. What is used survives; nothing has to be ordered by age.
#[derive(Default)]
struct Generations {
    young: HashMap<[u8; SHA256_OUTPUT_LEN], Verified>,
    old: HashMap<[u8; SHA256_OUTPUT_LEN], Verified>,
}

impl Generations {
    fn get(&mut self, name: &[u8; SHA256_OUTPUT_LEN]) -> Option<Verified> {
        if let Some(verified) = self.young.get(name) {
            return Some(verified.clone());
        }
        let verified = self.old.remove(name)?;
        self.put(*name, verified.clone());
        Some(verified)
    }

    fn put(&mut self, name: [u8; SHA256_OUTPUT_LEN], verified: Verified) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, verified);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn keys() -> SessionKeys {
        SessionKeys::load_or_create(tempfile::tempdir().unwrap().path()).unwrap()
    }

    #[test]
    fn a_token_comes_back_as_its_subject_and_expiry() {
        let keys = keys();
        let before = seconds(SystemTime::now());
        let token = keys.issue("zoë", HOUR).unwrap();
        for _ in 0..2 {
            let verified = keys.verify(&token).unwrap();
            assert_eq!(&*verified.subject, "zoë");
            assert!((before + 3600..=before + 3602).contains(&seconds(verified.expires_at)));
        }
        for subject in ["", "a\nb", "\0admin", &"x".repeat(256)] {
            assert_eq!(keys.issue(subject, HOUR), Err(IssueError::Subject));
        }
        assert_eq!(keys.issue("ada", Duration::MAX), Err(IssueError::Expiry));
    }

    #[test]
    fn what_another_key_or_hand_made_counts_for_nothing() {
        let keys = keys();
        let token = keys.issue("ada", HOUR).unwrap();
        let [header, claims, signature]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();

        let other = self::keys().issue("ada", HOUR).unwrap();
        assert_eq!(keys.verify(&other), Err(TokenError::Signature));

        let root = BASE64URL
            .encode(String::from_utf8(BASE64URL.decode(claims).unwrap()).unwrap().replace("ada", "eve"));
        assert_eq!(keys.verify(&format!("{header}.{root}.{signature}")), Err(TokenError::Signature));

        for alg in ["none", "None", "HS256", "EdDSA\",\"crit\":[\"b64\"],\"x\":\""] {
            let header = format!("{{\"alg\":\"{alg}\",\"typ\":\"JWT\"}}");
            let claims = BASE64URL.decode(claims).unwrap();
            let signed = keys.sign(&header, &claims);
            let unsigned = format!("{}.{}.", BASE64URL.encode(&header), BASE64URL.encode(&claims));
            let expected = if alg.contains("crit") { TokenError::Malformed } else { TokenError::Algorithm };
            assert_eq!(keys.verify(&signed), Err(expected), "{alg}");
            assert_eq!(keys.verify(&unsigned), Err(expected), "{alg}");
        }
        assert_eq!(keys.verify(&format!("{header}.{claims}.")), Err(TokenError::Signature));
        let long = format!("{token}{}", "a".repeat(TOKEN_BYTES_MAX));
        for broken in
            ["", ".", "..", "a.b", "a.b.c.d", &format!("{token}="), &format!("{token}.{token}"), &long]
        {
            assert_eq!(keys.verify(broken), Err(TokenError::Malformed), "{broken}");
        }
        // Signed with the right key, but not what we issue.
        for claims in [
            r#"{"iss":"modulith","sub":"ada","iat":1}"#,
            r#"{"iss":"elsewhere","sub":"ada","iat":1,"exp":99999999999}"#,
            r#"{"iss":"modulith","sub":"","iat":1,"exp":99999999999}"#,
            r#"{"iss":"modulith","sub":"ada","iat":1,"exp":18446744073709551615}"#,
        ] {
            assert_eq!(
                keys.verify(&keys.sign(HEADER, claims.as_bytes())),
                Err(TokenError::Malformed),
                "{claims}"
            );
        }
    }

    #[test]
    fn a_token_ends_at_its_expiry_also_when_it_is_remembered() {
        let keys = keys();
        assert_eq!(keys.verify(&keys.issue("ada", Duration::ZERO).unwrap()), Err(TokenError::Expired));
        let token = keys.issue("ada", HOUR).unwrap();
        keys.verify(&token).unwrap();
        for verified in keys.verified.lock().young.values_mut() {
            verified.expires_at = SystemTime::now();
        }
        assert_eq!(keys.verify(&token), Err(TokenError::Expired));
    }

    #[test]
    fn remembered_tokens_are_bounded_and_the_used_ones_survive() {
        let mut generations = Generations::default();
        let verified = Verified { subject: "ada".into(), expires_at: UNIX_EPOCH };
        let name = |n: usize| {
            let mut name = [0; SHA256_OUTPUT_LEN];
            name[..8].copy_from_slice(&n.to_le_bytes());
            name
        };
        for n in 0..5 * GENERATION_MAX {
            generations.put(name(n), verified.clone());
            assert!(generations.get(&name(0)).is_some());
            assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION_MAX);
        }
        assert!(generations.get(&name(1)).is_none());
    }
}
