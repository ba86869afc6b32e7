//! What other modules may ask of users: who somebody is.

use std::fmt;
use std::str::FromStr;

use modulith::{Answer, Column, Refusal, Snapshot, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[contract(name = "users", version = 1)]
pub trait Users {
    #[query]
    fn user(&self, db: &Snapshot<'_>, id: UserId) -> Answer<User, NoSuchUser>;
}

/// The subject of a session's token.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, Column,
)]
#[serde(transparent)]
pub struct UserId(pub Uuid);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for UserId {
    type Err = uuid::Error;

    fn from_str(subject: &str) -> Result<Self, uuid::Error> {
        subject.parse().map(Self)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct User {
    pub id: UserId,
    /// None: a customer of an imported order book, who cannot sign in.
    pub email: Option<String>,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum NoSuchUser {
    #[refused(404, "no such user")]
    NoSuchUser,
}
