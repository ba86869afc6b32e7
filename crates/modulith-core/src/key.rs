//! The keys that make a repeat harmless.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Identifies one step of one saga, or one call, for ever: the key of its inbox row, and the idempotency key
/// that an effect shows its provider on every attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct StepKey {
    pub origin: Origin,
    /// Who numbers: the coordinator's database for sagas, the process for calls, a hash for client keys.
    pub src: uuid::Uuid,
    pub seq: i64,
    pub step: u16,
    pub direction: Direction,
}

impl StepKey {
    /// The key of the undo of this step.
    pub fn undo(self) -> Self {
        Self { direction: Direction::Undo, ..self }
    }
}

/// Printed as `s-<src>-<seq>-<step>-d`: stable, and safe as an `Idempotency-Key`.
impl std::fmt::Display for StepKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let origin = match self.origin {
            Origin::Client => 'c',
            Origin::Process => 'p',
            Origin::Saga => 's',
        };
        let direction = match self.direction {
            Direction::Do => 'd',
            Direction::Undo => 'u',
        };
        write!(f, "{origin}-{}-{}-{}-{direction}", self.src.simple(), self.seq, self.step)
    }
}

/// Who made a key. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Origin {
    /// A caller's own key; kept for a stated time.
    Client = 0,
    /// An automatic key of a call outside a saga; lives as long as the caller's process.
    Process = 1,
    /// A step of a saga.
    Saga = 2,
}

/// Whether a step is done or undone. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Direction {
    Do = 0,
    Undo = 1,
}

/// A client's own idempotency key with what it stands for. Both digests are keyed again with a secret of the
/// database before they are stored, since a request's body may hold what can be guessed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClientKey {
    /// SHA-256 of principal, route and key.
    pub name: [u8; 32],
    /// SHA-256 of the request's body.
    pub body: [u8; 32],
}

impl ClientKey {
    /// `route` is the method and path pattern; `principal` the caller's identity, empty for a guest.
    pub fn new(principal: &str, route: &str, key: &str, body: &[u8]) -> Self {
        let mut name = ring::digest::Context::new(&ring::digest::SHA256);
        for part in [principal, route, key] {
            name.update(&(part.len() as u64).to_le_bytes());
            name.update(part.as_bytes());
        }
        Self { name: digest(name.finish()), body: digest(ring::digest::digest(&ring::digest::SHA256, body)) }
    }
}

impl ClientKey {
    /// The part of the body's digest that an inbox keeps.
    pub fn body_hash(&self) -> [u8; 16] {
        std::array::from_fn(|at| self.body[at])
    }
}

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientKey(..)")
    }
}

fn digest(digest: ring::digest::Digest) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}
