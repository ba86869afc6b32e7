//! Who asks, for handlers: what the edge verified, never what the request says.

use std::sync::Arc;

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use http::Extensions;
use http::request::Parts;
use modulith_core::{Context, Principal};

use super::Problem;

/// A signed-in user, by its id. A guest gets 401 `sign-in-required`, an operator 403.
///
/// `Option<SignedIn>` lets guests (and operators) in as `None`. A bad token never gets that far: the edge
/// answers 401 for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedIn(pub Arc<str>);

impl SignedIn {
    pub fn id(&self) -> &str {
        &self.0
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        match principal(&parts.extensions) {
            Some(Principal::User(id)) => Ok(Self(id)),
            Some(Principal::Admin | Principal::Caller(_)) => Err(Problem::forbidden()),
            None => Err(Problem::sign_in()),
        }
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Problem> {
        Ok(match principal(&parts.extensions) {
            Some(Principal::User(id)) => Some(Self(id)),
            Some(Principal::Admin | Principal::Caller(_)) | None => None,
        })
    }
}

/// An operator with the admin token. The edge admits only operators to `/admin/…`; elsewhere a guest gets 401
/// and a user 403.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admin;

impl<S: Send + Sync> FromRequestParts<S> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        match principal(&parts.extensions) {
            Some(Principal::Admin) => Ok(Self),
            Some(Principal::User(_) | Principal::Caller(_)) => Err(Problem::forbidden()),
            None => Err(Problem::sign_in()),
        }
    }
}

/// Who calls contracts over HTTP: a program that is none of ours by its name in the topology, or an operator (`None`).
/// Others get 401 and 403, as at the edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calling(pub Option<Arc<str>>);

impl<S: Send + Sync> FromRequestParts<S> for Calling {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        match principal(&parts.extensions) {
            Some(Principal::Caller(name)) => Ok(Self(Some(name))),
            Some(Principal::Admin) => Ok(Self(None)),
            Some(Principal::User(_)) => Err(Problem::forbidden()),
            None => Err(Problem::sign_in()),
        }
    }
}

/// From the request that the edge marked, or else from the task.
pub(super) fn principal(extensions: &Extensions) -> Option<Principal> {
    match extensions.get::<Context>() {
        Some(context) => context.principal.clone(),
        None => Context::current().principal,
    }
}
