//! Session tokens: JWT with HMAC-SHA-256, verified on every request by whoever holds the key.
//!
//! HS256 costs about a microsecond and Ed25519 some fifty. The peers get the cheap one, so that
//! nothing in the comparison is won by the choice of a signature.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::{FromRef, FromRequestParts};
use axum::http::{StatusCode, header::AUTHORIZATION, request::Parts};
use hmac::{Hmac, Mac};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use signature::{Error, Signer, Verifier};
use uuid::Uuid;

use crate::database::now_ms;
use crate::problem::Problem;

/// How long a session lasts.
pub const EXPIRES_IN_S: u64 = 3_600;

/// Issues and verifies tokens.
#[derive(Clone)]
pub struct Tokens(Arc<Keys>);

struct Keys {
    sign: EncodingKey,
    verify: DecodingKey,
    header: Header,
    validation: Validation,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: Uuid,
    exp: u64,
}

impl Tokens {
    /// Takes the key from `file`, or makes one that only its owner can read.
    ///
    /// # Errors
    ///
    /// When the file can neither be read nor made.
    pub fn open(file: &Path) -> anyhow::Result<Self> {
        let mut secret = [0; 32];
        if let Ok(mut new) = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)
        {
            File::open("/dev/urandom")?.read_exact(&mut secret)?;
            std::io::Write::write_all(&mut new, &secret)?;
        }
        let found = File::open(file).and_then(|mut found| found.read_exact(&mut secret));
        found.with_context(|| format!("reading {}", file.display()))?;
        // A second installation in one process changes nothing: it is the same provider.
        let _ = PROVIDER.install_default();
        Ok(Self(Arc::new(Keys {
            sign: EncodingKey::from_secret(&secret),
            verify: DecodingKey::from_secret(&secret),
            header: Header::new(Algorithm::HS256),
            validation: Validation::new(Algorithm::HS256),
        })))
    }

    /// A token for `user` that lasts [`EXPIRES_IN_S`].
    ///
    /// # Errors
    ///
    /// 500 when it cannot be signed.
    pub fn issue(&self, user: Uuid) -> Result<String, Problem> {
        let claims = Claims {
            sub: user,
            exp: now_ms().unsigned_abs() / 1_000 + EXPIRES_IN_S,
        };
        encode(&self.0.header, &claims, &self.0.sign)
            .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error))
    }
}

/// The user whose token came with the request; without a valid one the request ends with 401.
pub struct Principal(
    /// The user's id.
    pub Uuid,
);

impl<S: Send + Sync> FromRequestParts<S> for Principal
where
    Tokens: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let keys = Tokens::from_ref(state).0;
        let header = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let token = header.and_then(|text| text.strip_prefix("Bearer "));
        let claims = token.and_then(|token| decode::<Claims>(token, &keys.verify, &keys.validation).ok());
        claims
            .map(|found| Self(found.claims.sub))
            .ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "a valid bearer token is needed"))
    }
}

/// HS256 and nothing else: the crate's own pure-Rust provider would bring RSA with it.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, key| Ok(Box::new(Hs256::new(key.as_bytes()))),
    verifier_factory: |_, key| Ok(Box::new(Hs256::new(key.try_get_as_bytes()?))),
    key_utils: KeyUtils::new_unimplemented(),
};

struct Hs256(Hmac<Sha256>);

impl Hs256 {
    fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
    }
}

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self
            .0
            .clone()
            .chain_update(message)
            .finalize()
            .into_bytes()
            .to_vec())
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), Error> {
        self.0
            .clone()
            .chain_update(message)
            .verify_slice(signature)
            .map_err(Error::from_source)
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}
