//! What travels with a request: who asks, until when, under which id and key.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::key::StepKey;
use crate::repeats::Repeats;
use crate::trace::Trace;

/// Who asks, as the edge verified it. Callers of the edge cannot set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Principal {
    /// A signed-in user, by the subject of its token.
    User(Arc<str>),
    /// An operator with the admin token of the data folder.
    Admin,
    /// A program that is none of ours, by its name in the topology (`[caller.NAME]`).
    Caller(Arc<str>),
}

impl Principal {
    /// The user's id, if it is a user.
    pub fn user(&self) -> Option<&str> {
        match self {
            Principal::User(id) => Some(id),
            Principal::Admin | Principal::Caller(_) => None,
        }
    }
}

/// The context of the work at hand. Clients read it from the task they are called in, so that a deadline and a
/// principal reach the callee without being passed by hand. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Context {
    pub principal: Option<Principal>,
    /// When the caller stops waiting. A call that has none gets [`Context::DEADLINE_DEFAULT`].
    pub deadline: Option<Instant>,
    /// Follows a request through every service's log.
    pub request_id: Arc<str>,
    /// In an effect: the key of the attempt, the same on every attempt.
    pub key: Option<StepKey>,
    /// How many of its calls may still be repeated. None in work that another service or a saga asked for: they repeat
    /// it themselves.
    pub repeats: Repeats,
    /// The trace it belongs to. Every request from outside has one, whether or not it is sampled.
    pub trace: Option<Trace>,
}

tokio::task_local! {
    /// Shared, since the task's every turn moves it in and out.
    static CURRENT: Arc<Context>;
}

impl Context {
    /// The deadline of a request that brings none: 10 seconds.
    pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);

    /// A context of its own, for work that no request began.
    pub fn background(request_id: impl Into<Arc<str>>) -> Self {
        Self {
            principal: None,
            deadline: None,
            request_id: request_id.into(),
            key: None,
            trace: None,
            repeats: Repeats::default(),
        }
    }

    /// The context of the running task, or a background context outside of any.
    pub fn current() -> Self {
        Self::with(Clone::clone)
    }

    /// Looks at the context of the running task, or at a background context outside of any, without a clone of it.
    pub fn with<T>(look: impl Fn(&Self) -> T) -> T {
        CURRENT.try_with(|context| look(context)).unwrap_or_else(|_| look(&Self::background("")))
    }

    /// Whether the running task's deadline has passed: work that has not begun is then not begun.
    pub fn is_late() -> bool {
        let deadline = CURRENT.try_with(|context| context.deadline);
        deadline.is_ok_and(|deadline| deadline.is_some_and(clock::has_passed))
    }

    /// Runs a future within this context.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(Arc::new(self), future)
    }

    /// When a call made now has to be over.
    pub fn deadline_or_default(&self) -> Instant {
        self.deadline.unwrap_or_else(|| Instant::now() + Self::DEADLINE_DEFAULT)
    }

    /// The headers by which a request to somebody else's service, a provider's say, belongs to this trace:
    /// `traceparent`, and `tracestate` if there is one. Nothing without a trace.
    pub fn trace_headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let parent = self.trace.as_ref().map(|trace| (Trace::PARENT, trace.traceparent()));
        let state = self.trace.as_ref().and_then(|trace| trace.state.as_ref());
        parent.into_iter().chain(state.map(|state| (Trace::STATE, state.to_string())))
    }

    /// The idempotency key to show a provider. Only effects have one.
    ///
    /// # Panics
    ///
    /// Outside of an effect, which is a bug.
    pub fn idempotency_key(&self) -> String {
        self.key.expect("an idempotency key exists in effects only").to_string()
    }
}
