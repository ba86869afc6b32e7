//! Hashing passwords: argon2id, one at a time, off the async workers, with a short queue before it.

use std::sync::{Arc, LazyLock};

use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc};
use argon2::{Algorithm, Argon2, Params, Version};
use modulith::Secret;
use modulith::http::{HeaderValue, Problem, StatusCode, header};
use tokio::sync::Semaphore;

use crate::accounts::PasswordHash;

/// Callers that may wait; the next one is told to come back.
const QUEUE_MAX: usize = 64;

/// The one of OWASP's equal settings for argon2id with the least memory (KiB), since the whole store shares
/// one process. <https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html>
const MEMORY_KIB: u32 = 7_168;
const PASSES: u32 = 5;

/// Compared with when nobody has the address, so that the time of an answer does not tell who is a customer.
static NOBODY: LazyLock<PasswordHash> =
    LazyLock::new(|| digest(&Secret::new("nobody's password".to_owned())));

#[derive(Clone)]
pub(crate) struct Passwords {
    queue: Arc<Semaphore>,
    turn: Arc<Semaphore>,
}

impl Passwords {
    pub(crate) fn new() -> Self {
        Self { queue: Arc::new(Semaphore::new(QUEUE_MAX)), turn: Arc::new(Semaphore::new(1)) }
    }

    pub(crate) async fn hash(&self, password: Secret<String>) -> Result<PasswordHash, Problem> {
        self.in_turn(move || digest(&password)).await
    }

    /// Whether the password is the one; of nobody, none is. Takes the same time either way.
    pub(crate) async fn verify(
        &self,
        password: Secret<String>,
        hash: Option<PasswordHash>,
    ) -> Result<bool, Problem> {
        self.in_turn(move || {
            let known = hash.is_some();
            let hash = hash.unwrap_or_else(|| NOBODY.clone());
            let matches = phc::PasswordHash::new(hash.0.expose()).is_ok_and(|hash| {
                Argon2::default().verify_password(password.expose().as_bytes(), &hash).is_ok()
            });
            matches && known
        })
        .await
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let _place = self.queue.try_acquire().map_err(|_| busy())?;
        // The permit goes with the work: a caller that hangs up does not let a second hash start beside it.
        let turn = self.turn.clone().acquire_owned().await.map_err(|_| busy())?;
        let work = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        work.await.map_err(|_| busy())
    }
}

fn busy() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "sign-in-busy", "Too many people are signing in")
        .header(header::RETRY_AFTER, HeaderValue::from_static("1"))
}

fn digest(password: &Secret<String>) -> PasswordHash {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).expect("the settings are within argon2's limits");
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2
        .hash_password(password.expose().as_bytes())
        .expect("a password of at most 200 characters is hashed");
    PasswordHash(Secret::new(hash.to_string()))
}
