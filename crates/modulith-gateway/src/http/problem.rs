//! What a client of the edge is told when it does not get what it asked for: an RFC 9457 problem document.
//!
//! Every answer of 400 and above that this crate or a module makes has this one shape, so that a client needs
//! one parser. A problem carries nothing of the inside: causes go to the log, where they are made.

use std::borrow::Cow;
use std::fmt;

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// A problem document: `type`, `title`, `status`, `detail` and extension members.
///
/// The type is the stable relative reference `/problems/<code>`. Codes are written in kebab-case, whatever
/// spelling they are given in: the refusal `sold_out` reads `/problems/sold-out`.
///
/// ```
/// use modulith_gateway::http::{Problem, StatusCode};
///
/// let problem = Problem::new(StatusCode::CONFLICT, "sold_out", "Sold out")
///     .detail("two of three lines are sold out")
///     .with("products", ["85123A"]);
/// assert_eq!(problem.code(), "sold-out");
/// ```
#[derive(Debug, Clone)]
pub struct Problem(Box<Document>);

// Boxed because handlers return it in the error half of small results.
#[derive(Debug, Clone)]
struct Document {
    status: StatusCode,
    code: Cow<'static, str>,
    title: Cow<'static, str>,
    detail: Option<Cow<'static, str>>,
    members: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

const STANDARD_MEMBERS: [&str; 5] = ["type", "title", "status", "detail", "instance"];

impl Problem {
    /// A problem of one kind. The title belongs to the code and does not change between occurrences.
    pub fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        title: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Box::new(Document {
            status,
            code: kebab(code.into()),
            title: title.into(),
            detail: None,
            members: Map::new(),
            headers: Vec::new(),
        }))
    }

    /// Says what happened this time, in a sentence for a person.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Adds an extension member. A name that RFC 9457 gives a meaning of its own (`type`, `title`, `status`,
    /// `detail`, `instance`) gets an underscore behind it, so that a refusal's field cannot change the document.
    ///
    /// # Panics
    ///
    /// If the value cannot be written as JSON (a map whose keys are no strings), which is a bug.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        let value = serde_json::to_value(value).expect("an extension member is JSON");
        self.member(name.to_owned(), value);
        self
    }

    /// Adds a header to the response, such as `Retry-After`.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The last segment of the type: `sold-out`.
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// 422 with `errors`: one `{"field": .., "reason": ..}` for each thing that is wrong.
    ///
    /// ```
    /// # use modulith_gateway::http::Problem;
    /// let problem = Problem::invalid([("quantity", "must be at least 1")]);
    /// assert_eq!(problem.status(), 422);
    /// ```
    pub fn invalid<F: Into<String>, R: Into<String>>(errors: impl IntoIterator<Item = (F, R)>) -> Self {
        let errors: Vec<Value> = (errors.into_iter())
            .map(|(field, reason)| serde_json::json!({ "field": field.into(), "reason": reason.into() }))
            .collect();
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "The request is not valid")
            .with("errors", errors)
    }

    /// 404: there is nothing here.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found")
    }

    /// 401 for a caller that showed nothing.
    pub(crate) fn sign_in() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "sign-in-required", "Sign in first")
            .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// 401 for a caller whose token counts for nothing. Why is not told: it would help only a forger.
    pub(crate) fn token_invalid() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "token-invalid", "The token is not valid or has expired")
            .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"invalid_token\""))
    }

    /// 403: known, and still not allowed.
    pub(crate) fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed")
    }

    pub(crate) fn too_large(body_bytes_max: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The body is too large")
            .with("body_bytes_max", body_bytes_max)
    }

    pub(crate) fn wrong_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed")
    }

    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something broke on our side")
    }

    /// 503 with `Retry-After: 1`: certainly not done.
    pub(crate) fn unavailable(code: &'static str) -> Self {
        Self::unavailable_for(code, None)
    }

    /// The same with the hint of whoever declined, in whole seconds and never too early.
    pub(crate) fn unavailable_for(code: &'static str, retry_after_ms: impl Into<Option<u32>>) -> Self {
        let seconds = retry_after_ms.into().unwrap_or(0).div_ceil(1000).max(1);
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, "Not available at the moment")
            .detail("Nothing was done. Trying again is safe.")
            .retry_after(seconds)
    }

    /// 504 of a request that certainly did nothing.
    pub(crate) fn deadline() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline-exceeded", "No answer in time")
    }

    /// A type of its own, because what a client has to do differs: repeat the key, not the request.
    pub(crate) fn outcome_unknown(status: StatusCode) -> Self {
        Self::new(status, "outcome-unknown", "It is not known whether this was done").detail(
            "It may have been done, or may still be. A repeat with the same Idempotency-Key tells how it ended.",
        )
    }

    /// 504 of a handler that did not answer: a read did nothing, anything else may have.
    pub(crate) fn late(method: &Method) -> Self {
        match method.is_safe() {
            true => Self::deadline(),
            false => Self::outcome_unknown(StatusCode::GATEWAY_TIMEOUT),
        }
    }

    pub(crate) fn retry_after(self, seconds: u32) -> Self {
        self.header(RETRY_AFTER, HeaderValue::from(seconds))
    }

    pub(crate) fn members(mut self, members: Map<String, Value>) -> Self {
        for (name, value) in members {
            self.member(name, value);
        }
        self
    }

    fn member(&mut self, mut name: String, value: Value) {
        if STANDARD_MEMBERS.contains(&name.as_str()) {
            name.push('_');
        }
        self.0.members.insert(name, value);
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let document = &*self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", &format_args!("/problems/{}", document.code))?;
        map.serialize_entry("title", &document.title)?;
        map.serialize_entry("status", &document.status.as_u16())?;
        if let Some(detail) = &document.detail {
            map.serialize_entry("detail", detail)?;
        }
        for (name, value) in &document.members {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).expect("texts and JSON values are JSON");
        let mut response = Response::new(body.into());
        *response.status_mut() = self.0.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        for (name, value) in self.0.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0.status.as_u16(), self.0.code)?;
        match &self.0.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

/// Gathers everything that is wrong with a request, so that a client mends it in one go.
///
/// ```
/// # use modulith_gateway::http::{Invalid, Problem};
/// # fn check(quantity: i64, note: &str) -> Result<(), Problem> {
/// let mut invalid = Invalid::default();
/// invalid.check(quantity >= 1, "quantity", "must be at least 1");
/// invalid.check(note.len() <= 200, "note", "must have at most 200 bytes");
/// invalid.finish()
/// # }
/// # assert!(check(0, "").is_err() && check(1, "").is_ok());
/// ```
#[derive(Debug, Default)]
pub struct Invalid(Vec<(String, String)>);

impl Invalid {
    /// Notes a field that is wrong.
    pub fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.0.push((field.into(), reason.into()));
    }

    /// Notes the field unless the condition holds.
    pub fn check(&mut self, holds: bool, field: &str, reason: &str) {
        if !holds {
            self.add(field, reason);
        }
    }

    /// # Errors
    ///
    /// The 422 problem with everything noted, if anything was.
    pub fn finish(self) -> Result<(), Problem> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(Problem::invalid(self.0)),
        }
    }
}

/// Lower-case letters, digits and hyphens only, so that a code is a URI segment as it stands.
fn kebab(code: Cow<'static, str>) -> Cow<'static, str> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if code.bytes().all(plain) {
        return code;
    }
    let plain_char = |c: char| if c.is_ascii() && plain(c as u8) { c } else { '-' };
    Cow::Owned(code.chars().map(|c| plain_char(c.to_ascii_lowercase())).collect())
}

/// Makes every answer of a module's router a problem where it would be an empty 404 or 405. Call it once, when
/// all routes are there. A 405 keeps the `Allow` header that the router computes.
pub fn finish(router: axum::Router) -> axum::Router {
    router
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::wrong_method())
}
