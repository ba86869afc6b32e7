//! The edge: what every request from outside passes, in a monolith and in a gateway alike.
//!
//! It decides who asks, until when and how much may be sent, and puts that into the task as a [`Context`]. What
//! a client says about these itself counts only where it can do no harm: a shorter deadline, a request id of
//! sane letters. Headers that speak for the inside (`modulith-…`) are dropped, so that no identity can be
//! forged. It refuses what it cannot judge: a bad token is 401 even where guests are welcome, and a path with
//! `//`, `.` or `..` segments or an escaped slash is 404, because two readers could take it for two paths.

use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::{AUTHORIZATION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use modulith_core::{Context, Principal, Trace};
use tower::{Layer, Service};
use tracing::Instrument;

use crate::guard::{self, Line};
use crate::http::Problem;
use crate::limited::{self, Overflow};
use crate::pressure::{Place, Pressure, RETRY_AFTER_MS};
use crate::request_id::RequestId;
use crate::{AccessToken, Sampling, SessionKeys, routes};

/// The header that shortens the deadline, or lengthens it up to [`Limits::deadline_max`]: whole milliseconds.
pub const REQUEST_TIMEOUT_MS: HeaderName = HeaderName::from_static("request-timeout-ms");

/// The limits of one door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a client that says nothing waits. Default 10 s.
    pub deadline_default: Duration,
    /// What a client can ask for at most. Default 60 s.
    pub deadline_max: Duration,
    /// What a request's body may have. Default 1 MiB.
    pub body_bytes_max: usize,
    /// How long after its deadline a handler may still answer, since its own answer tells more than ours.
    /// Default 250 ms.
    pub grace: Duration,
}

impl Limits {
    pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;

    /// Tells the extractors of the limit, ours and axum's, which has one of its own. Those who find nothing take
    /// the default, which costs no allocation.
    pub(crate) fn mark(self, request: &mut Request) {
        if self.body_bytes_max != Self::BODY_BYTES_MAX {
            DefaultBodyLimit::disable().apply(request);
            request.extensions_mut().insert(self);
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline_default: Context::DEADLINE_DEFAULT,
            deadline_max: Duration::from_secs(60),
            body_bytes_max: Self::BODY_BYTES_MAX,
            grace: Duration::from_millis(250),
        }
    }
}

/// The middleware of the edge: a [`Layer`] over a router or any other service.
///
/// - `Authorization: Bearer` with a session token makes the caller a user; without the header it is a guest; any
///   other content is 401. The header ends here: modules see the principal only.
/// - `/admin` and below asks for the admin token: 401 without it, 403 for a user's session.
/// - `/call` and below, and `/openapi.json`, ask for the token of a [`Caller`] or the admin token, likewise. A caller's
///   token counts nowhere else.
/// - `x-request-id` of 1 to 64 letters, digits, `_`, `.`, `-` is kept, else a UUIDv7 is made. The response has it.
/// - `traceparent` and `tracestate` are taken up if they are valid, else a trace is begun; whether it is sampled is
///   decided by [`Sampling`]. Modules find it in [`Context::trace`].
/// - `Request-Timeout-Ms` sets the deadline, see [`Limits`]. A handler that does not answer by then gets a 504,
///   and is dropped; the body of an answer that has begun may take longer.
/// - A process that cannot keep up refuses a share with 503 and `Retry-After`, before it does anything else for them; see
///   [`Pressure`]. Health and `/admin` are for those who look after it, and are never refused.
/// - A body over the limit is 413, with or without `Content-Length`.
/// - A panic is a 500 and a logged error.
#[derive(Clone)]
pub struct Edge(Arc<Door>);

#[derive(Clone)]
struct Door {
    sessions: Arc<SessionKeys>,
    admin: AccessToken,
    callers: Vec<Caller>,
    limits: Limits,
    sampling: Sampling,
    pressure: Pressure,
}

/// A program that is none of ours and may call contracts, by the token that it shows.
#[derive(Clone)]
pub struct Caller {
    pub name: Arc<str>,
    pub token: AccessToken,
}

/// Where programs that are none of ours call contracts: `/call/{contract}/{method}`.
pub const CALL: &str = "/call";
/// What they may call, as an OpenAPI document.
pub const OPENAPI: &str = "/openapi.json";

impl Edge {
    pub fn new(sessions: Arc<SessionKeys>, admin: AccessToken, limits: Limits, sampling: Sampling) -> Self {
        let pressure = Pressure::default();
        Self(Arc::new(Door { sessions, admin, callers: Vec::new(), limits, sampling, pressure }))
    }

    /// The same edge, which also knows these programs.
    #[must_use]
    pub fn callers(self, callers: Vec<Caller>) -> Self {
        Self(Arc::new(Door { callers, ..Arc::unwrap_or_clone(self.0) }))
    }

    /// The same edge, whose requests count together with others of this process.
    #[must_use]
    pub fn under(self, pressure: Pressure) -> Self {
        Self(Arc::new(Door { pressure, ..Arc::unwrap_or_clone(self.0) }))
    }
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edge").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for Edge {
    type Service = Edged<S>;

    fn layer(&self, inner: S) -> Edged<S> {
        Edged { edge: self.clone(), inner }
    }
}

/// A service behind the [`Edge`].
#[derive(Debug, Clone)]
pub struct Edged<S> {
    edge: Edge,
    inner: S,
}

impl<S> Service<Request> for Edged<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut task::Context<'_>) -> task::Poll<Result<(), Infallible>> {
        // The clone that takes a request is made ready there.
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let door = self.edge.0.clone();
        // Nothing is made for a request that is not taken: when there is no time for it, neither is there for refusing.
        let place = match door.place(&request) {
            Ok(place) => place,
            Err(TooMany) => return Box::pin(ready(Ok(overloaded(&request)))),
        };
        let inner = self.inner.clone();
        Box::pin(async move { Ok(door.pass(request, place, inner).await) })
    }
}

/// What a path asks of who comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Realm {
    /// Guests and users.
    Public,
    /// Operators.
    Admin,
    /// Operators, and programs that are none of ours.
    Calls,
}

impl Realm {
    fn of(path: &str) -> Self {
        match path {
            _ if routes::covers("/admin", path) => Self::Admin,
            _ if routes::covers(CALL, path) || routes::covers(OPENAPI, path) => Self::Calls,
            _ => Self::Public,
        }
    }
}

impl Door {
    async fn pass<S>(&self, request: Request, mut place: Option<Place>, inner: S) -> Response
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let line = Line::of(&request);
        if let Some(place) = &mut place {
            place.turn().await;
        }
        let (mut parts, body) = request.into_parts();
        let id = RequestId::of(&parts.headers);
        let trace = self.sampling.trace(&mut parts.headers);
        let span = guard::span(Some(&trace), &id.text);
        // A deadline is the client's, whose time ran while the request waited to be seen.
        let came = line.started.checked_sub(self.pressure.wait()).unwrap_or(line.started);
        let mut response = match self.admit(&mut parts, &id, trace, came) {
            Ok(context) => self.limit(parts, body, context, inner).instrument(span.clone()).await,
            Err(problem) => problem.into_response(),
        };
        span.in_scope(|| line.log(&id.text, response.status()));
        response.headers_mut().insert(RequestId::HEADER, id.header);
        response
    }

    /// The place of a request among those in progress, if there is one. Operators need none.
    fn place(&self, request: &Request) -> Result<Option<Place>, TooMany> {
        if routes::is_operators(request.uri().path()) {
            return Ok(None);
        }
        // One that cannot be read is refused later, as any other.
        let time = || self.time(request.headers()).unwrap_or(self.limits.deadline_default);
        match self.pressure.enter(Instant::now(), time) {
            Some(place) => Ok(Some(place)),
            None => Err(TooMany),
        }
    }

    /// How long the client waits.
    fn time(&self, headers: &HeaderMap) -> Result<Duration, Problem> {
        let time = match headers.get(REQUEST_TIMEOUT_MS) {
            None => self.limits.deadline_default,
            Some(value) => timeout_ms(value)?,
        };
        Ok(time.min(self.limits.deadline_max))
    }

    /// Who asks and until when, or why not.
    fn admit(
        &self,
        parts: &mut Parts,
        id: &RequestId,
        trace: Trace,
        now: Instant,
    ) -> Result<Context, Problem> {
        strip_inner_headers(&mut parts.headers);
        origin_form(&mut parts.uri, &mut parts.headers);
        if !routes::is_plain(parts.uri.path()) {
            return Err(Problem::not_found());
        }
        let principal = self.principal(&mut parts.headers, Realm::of(parts.uri.path()))?;
        let time = self.time(&parts.headers)?;
        Ok(Context {
            principal,
            deadline: Some(now + time),
            trace: Some(trace),
            ..Context::background(id.text.clone())
        })
    }

    fn principal(&self, headers: &mut HeaderMap, realm: Realm) -> Result<Option<Principal>, Problem> {
        let authorization = match headers.entry(AUTHORIZATION) {
            http::header::Entry::Occupied(entry) if entry.iter().nth(1).is_some() => {
                return Err(Problem::token_invalid());
            }
            http::header::Entry::Occupied(entry) => entry.remove(),
            http::header::Entry::Vacant(_) if realm == Realm::Public => return Ok(None),
            http::header::Entry::Vacant(_) => return Err(Problem::sign_in()),
        };
        let token = bearer(&authorization).ok_or_else(Problem::token_invalid)?;
        if realm != Realm::Public && self.admin.matches(token) {
            return Ok(Some(Principal::Admin));
        }
        if realm == Realm::Calls
            && let Some(caller) = self.callers.iter().find(|caller| caller.token.matches(token))
        {
            return Ok(Some(Principal::Caller(caller.name.clone())));
        }
        match self.sessions.verify(token) {
            Ok(verified) if realm == Realm::Public => Ok(Some(Principal::User(verified.subject))),
            Ok(_) => Err(Problem::forbidden()),
            Err(why) => {
                tracing::debug!(%why, "token refused");
                Err(Problem::token_invalid())
            }
        }
    }

    /// Runs the inner service on a body that ends at the limit.
    async fn limit<S>(&self, parts: Parts, body: Body, context: Context, inner: S) -> Response
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let max = self.limits.body_bytes_max;
        let (body, overflow) = match limited::body(body, max) {
            Ok(limited) => limited,
            Err(body) => {
                if !parts.headers.contains_key(EXPECT) {
                    limited::discard(body, max).await;
                }
                return Problem::too_large(max).into_response();
            }
        };
        let mut request = Request::from_parts(parts, body);
        self.limits.mark(&mut request);
        request.extensions_mut().insert(context.clone());
        let response = guard::run(inner, request, context, self.limits.grace).await;
        match overflow.as_ref().is_some_and(Overflow::happened)
            && response.status() >= StatusCode::BAD_REQUEST
        {
            // Whoever read the body saw it end in an error, and cannot always tell which.
            true => Problem::too_large(max).into_response(),
            false => response,
        }
    }
}

/// There is no place for a request.
struct TooMany;

/// The refusal of one request too many. It is counted; a warning for each would cost more than the refusal itself.
fn overloaded(request: &Request) -> Response {
    static DOCUMENT: LazyLock<(HeaderMap, Bytes)> = LazyLock::new(|| {
        let problem = Problem::unavailable_for("overloaded", RETRY_AFTER_MS);
        let document = serde_json::to_vec(&problem).expect("texts are JSON");
        (problem.into_response().into_parts().0.headers, document.into())
    });
    let id = RequestId::of(request.headers());
    tracing::debug!(request_id = %id.text, path = request.uri().path(), "refused: the process cannot keep up");
    let (headers, document) = &*DOCUMENT;
    let mut response = Response::new(Body::from(document.clone()));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    *response.headers_mut() = headers.clone();
    response.headers_mut().insert(RequestId::HEADER, id.header);
    response
}

/// `GET http://host/path` as `GET /path` with that `Host`, which it overrides (RFC 9112, 3.2.2): modules see one
/// form.
fn origin_form(uri: &mut Uri, headers: &mut HeaderMap) {
    if let Some(authority) = uri.authority() {
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            headers.insert(HOST, host);
        }
        *uri = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")).into();
    }
}

fn strip_inner_headers(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| name.as_str().starts_with("modulith-")).cloned() {
        headers.remove(name);
    }
}

fn timeout_ms(value: &HeaderValue) -> Result<Duration, Problem> {
    match value.to_str().ok().and_then(|text| text.parse().ok()) {
        Some(ms @ 1..) => Ok(Duration::from_millis(ms)),
        _ => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "request-timeout-invalid",
            "Request-Timeout-Ms is no time",
        )
        .detail("Send a whole number of milliseconds, at least 1.")),
    }
}

/// The token of `Bearer <token>`; the scheme in any case (RFC 9110, 11.1).
pub(crate) fn bearer(authorization: &HeaderValue) -> Option<&str> {
    let (scheme, token) = authorization.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' '))
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use http::header::RETRY_AFTER;

    use super::*;
    use crate::pressure::IN_PROGRESS_MAX;

    #[tokio::test]
    async fn one_request_too_many_is_a_problem_at_once_and_operators_still_come_in() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Arc::new(SessionKeys::load_or_create(dir.path()).unwrap());
        let admin = AccessToken::load_or_create(dir.path(), "admin.token").unwrap();
        let pressure = Pressure::default();
        let edge = Edge::new(sessions, admin, Limits::default(), Sampling::default()).under(pressure.clone());
        let inner = tower::service_fn(async |_| Ok::<_, Infallible>(StatusCode::OK.into_response()));
        let mut door = edge.layer(inner);
        let request = |path: &str| {
            let request = Request::get(path).header("x-request-id", "mine");
            // A bad token is 401, unless nobody has looked at it.
            request.header(AUTHORIZATION, "Bearer bad").body(Body::empty()).unwrap()
        };
        let mut waiting: Vec<_> = (0..IN_PROGRESS_MAX).map(|_| door.call(request("/orders"))).collect();

        // Some were refused before all places were taken, since nobody had a turn.
        let refused = loop {
            let Ok(answer) = door.call(request("/orders")).await;
            if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
                break answer;
            }
        };
        assert_eq!(refused.headers()[RETRY_AFTER], "1");
        assert_eq!(refused.headers()["x-request-id"], "mine");
        let document = to_bytes(refused.into_body(), 1000).await.unwrap();
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!((&document["type"], &document["status"]), (&"/problems/overloaded".into(), &503.into()));
        for path in ["/admin/metrics", "/healthz", "/readyz"] {
            let Ok(answer) = door.call(request(path)).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
        }
        let Ok(answer) = waiting.swap_remove(0).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "it had its place");
        assert!(pressure.snapshot().refused > 0);
        drop(waiting);
        assert_eq!(pressure.snapshot().in_progress, 0);
        let Ok(answer) = door.call(request("/orders")).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "there are places again");
    }
}
