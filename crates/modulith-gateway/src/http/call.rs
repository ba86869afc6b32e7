//! How a failed call of a contract reads to a client of the edge.
//!
//! The four ways of failing stay apart: a refusal keeps its own status, code and fields; what certainly did not
//! run is a 503, 504, 409 or 422 that says so; an unknown outcome is a 504 with a type of its own. Details are
//! for the log, under the request's id, and never reach the client.

use http::StatusCode;
use modulith_core::{CallError, Context, NotRun, NotRunReason, Refusal, RefusalRecord, Unknown};

use super::Problem;

impl Problem {
    /// The problem of a refusal: its status, its code, its text, and its fields as extension members.
    pub fn refused<E: Refusal>(refusal: &E) -> Self {
        match refusal.record() {
            Ok(record) => record.into(),
            Err(fault) => {
                // The refusal is certain; only its fields are lost.
                tracing::error!(code = refusal.code(), fault = %fault, "refusal without fields");
                Self::plain(refusal.status(), refusal.code().to_owned(), refusal.text())
            }
        }
    }

    fn plain(status: u16, code: String, text: String) -> Self {
        // A refusal says no. A contract that calls it a success or an impossible status gets the default.
        let status = StatusCode::from_u16(status).ok().filter(|status| status.as_u16() >= 400);
        let title = title(&code);
        Self::new(status.unwrap_or(StatusCode::CONFLICT), code, title).detail(text)
    }
}

impl<E: Refusal> From<CallError<E>> for Problem {
    fn from(error: CallError<E>) -> Self {
        match error {
            CallError::Refused(refusal) => Problem::refused(&refusal),
            CallError::RefusedOther(record) => record.into(),
            CallError::NotRun(not_run) => not_run.into(),
            CallError::Unknown(unknown) => unknown.into(),
        }
    }
}

impl From<RefusalRecord> for Problem {
    fn from(record: RefusalRecord) -> Self {
        let fields = record.fields();
        Problem::plain(record.status, record.code, record.text).members(fields)
    }
}

impl From<NotRun> for Problem {
    fn from(not_run: NotRun) -> Self {
        let request_id = &*Context::current().request_id;
        let NotRun { reason, detail, retry_after_ms } = &not_run;
        match reason {
            NotRunReason::Fault | NotRunReason::Panicked | NotRunReason::Incompatible => {
                tracing::error!(request_id, ?reason, detail, "call not run");
            }
            NotRunReason::Unavailable
            | NotRunReason::Overloaded
            | NotRunReason::Stopping
            | NotRunReason::Deadline
            | NotRunReason::Aborted => tracing::warn!(request_id, ?reason, detail, "call not run"),
            // The client's own doing.
            NotRunReason::Expired | NotRunReason::KeyReused | NotRunReason::Running => {
                tracing::debug!(request_id, ?reason, detail, "call not run");
            }
        }
        match reason {
            NotRunReason::Unavailable | NotRunReason::Stopping => {
                Problem::unavailable_for("service-unavailable", *retry_after_ms)
            }
            NotRunReason::Overloaded => Problem::unavailable_for("overloaded", *retry_after_ms),
            NotRunReason::Fault | NotRunReason::Panicked | NotRunReason::Incompatible => {
                Problem::unavailable("unavailable")
            }
            NotRunReason::Deadline => Problem::deadline().detail("Nothing was done. Trying again is safe."),
            NotRunReason::KeyReused => Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "The Idempotency-Key was used with another request",
            ),
            NotRunReason::Running => Problem::new(
                StatusCode::CONFLICT,
                "still-running",
                "The first request with this key still runs",
            )
            .retry_after(1),
            NotRunReason::Aborted => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "aborted", "It could not be completed")
                    .detail("What had begun is undone. Try again later, with a new Idempotency-Key.")
            }
            NotRunReason::Expired => Problem::new(
                StatusCode::CONFLICT,
                "idempotency-key-expired",
                "The Idempotency-Key is older than what is kept",
            ),
        }
    }
}

impl From<Unknown> for Problem {
    fn from(unknown: Unknown) -> Self {
        let request_id = &*Context::current().request_id;
        tracing::warn!(request_id, reason = ?unknown.reason, detail = unknown.detail, "outcome unknown");
        Problem::outcome_unknown(StatusCode::GATEWAY_TIMEOUT)
    }
}

/// `sold_out` as a title: `Sold out`.
fn title(code: &str) -> String {
    let words = code.replace(['_', '-'], " ");
    let mut chars = words.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => words,
    }
}
