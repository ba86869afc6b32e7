//! Calls to services that are none of ours: JSON over HTTP, and what their answers mean.
//!
//! They are asked as `POST {url}/call/{contract}/{method}`, in the words in which this application is asked by others.
//! What they say is taken at its word only as far as it does no harm: a refusal has to name a `code`, "certainly not
//! done" has to be said as we say it, and everything that is not understood may have run.

use std::future::ready;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::response::Parts;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use modulith_core::{
    BoxFuture, CallFault, Context, ContractModel, Encode, JsonCodec, Kind, NotRun, NotRunReason, Outcome,
    RefusalRecord, RemoteCall, RemoteCalls, StepKey, Trace, Unknown, UnknownReason,
};
use modulith_gateway::http::IDEMPOTENCY_KEY;
use modulith_gateway::{AccessToken, CALL, KeyError, REQUEST_TIMEOUT_MS};
use modulith_transport::{Circuit, Ending, Priority, RepeatBudget, Snapshot};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tracing::Instrument;

use super::link::repeated;
use super::peers::fault_of;
use crate::hosted::{ProcessKeys, client_step_key, effect_key};
use crate::metrics::{ContractMeters, Ended, PeerMeters};
use crate::spans;
use crate::topology::{ExternalSection, Topology};

/// Connecting to an external service.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(1);
/// Connections that wait for a request, of one service.
const IDLE_MAX: usize = 32;
/// Shorter than what servers usually keep a silent connection for.
const IDLE_TIME_MAX: Duration = Duration::from_secs(20);
/// Calls in flight to one service: one that answers slowly must not gather all of the process.
const IN_FLIGHT_MAX: usize = 256;
/// What is read of an answer: 1 MiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The external services of a topology.
pub(crate) struct Externals {
    services: Vec<Arc<External>>,
    keys: Arc<ProcessKeys>,
}

/// One of them, and what is counted of calls to it.
pub(crate) struct External {
    name: String,
    pub(crate) meters: PeerMeters,
    /// `http://host:port`, without a slash at the end.
    url: String,
    authorization: Option<HeaderValue>,
    http: Client<HttpConnector, Full<Bytes>>,
    in_flight: Semaphore,
    circuit: Circuit,
    budget: RepeatBudget,
}

impl Externals {
    /// Those that serve one of `needed`. Reads their tokens; connects to none.
    ///
    /// # Errors
    ///
    /// A token that cannot be read, by its file.
    pub(crate) fn new(
        topology: &Topology,
        needed: &[ContractModel],
        data: &Path,
        keys: Arc<ProcessKeys>,
    ) -> Result<Self, KeyError> {
        let mut services = Vec::new();
        let serves = |section: &&ExternalSection| {
            needed.iter().any(|need| section.contracts.iter().any(|served| served == need.name))
        };
        for section in topology.externals.iter().filter(serves) {
            let token = section.token_file.as_ref().map(|file| AccessToken::load(&data.join(file)));
            let authorization = token.transpose()?.map(|token| {
                let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
                    .expect("a token is visible ASCII");
                value.set_sensitive(true);
                value
            });
            let mut connector = HttpConnector::new();
            connector.set_connect_timeout(Some(CONNECT_TIME_MAX));
            connector.set_nodelay(true);
            let http = Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIME_MAX)
                .pool_max_idle_per_host(IDLE_MAX)
                .build(connector);
            let served =
                needed.iter().filter(|need| section.contracts.iter().any(|served| served == need.name));
            services.push(Arc::new(External {
                name: section.name.clone(),
                meters: PeerMeters::new(section.name.clone(), served),
                url: section.url.trim_end_matches('/').to_owned(),
                authorization,
                http,
                in_flight: Semaphore::new(IN_FLIGHT_MAX),
                circuit: Circuit::new(Arc::default()),
                budget: RepeatBudget::new(Instant::now()),
            }));
        }
        Ok(Self { services, keys })
    }

    /// A client's way to the service that serves a contract.
    pub(crate) fn link(&self, contract: &str) -> Option<ExternalLink> {
        let serves = |service: &Arc<External>| {
            Some((service.clone(), service.meters.calls.contract(contract)?.clone()))
        };
        let (service, meters) = self.services.iter().find_map(serves)?;
        Some(ExternalLink { service, keys: self.keys.clone(), meters })
    }

    /// All of them, for telemetry.
    pub(crate) fn all(&self) -> Vec<Arc<External>> {
        self.services.clone()
    }
}

/// A client's way to a service that is none of ours.
pub(crate) struct ExternalLink {
    service: Arc<External>,
    keys: Arc<ProcessKeys>,
    /// Of the contract.
    meters: Arc<ContractMeters>,
}

impl RemoteCalls for ExternalLink {
    fn call<'a>(
        &'a self,
        call: RemoteCall,
        request: &dyn Encode,
    ) -> BoxFuture<'a, Result<Outcome, CallFault>> {
        let (meter, started) = (self.meters.of(call.method), Instant::now());
        let mut encoded = Vec::new();
        if let Err(fault) = request.encode_onto(&mut encoded) {
            meter.ended(Ended::NotRun, started.elapsed());
            return Box::pin(ready(Err(NotRun::from(fault).into())));
        }
        let mut context = Context::current();
        context.trace = context.trace.map(Trace::next);
        let span = spans::call(context.trace.as_ref(), &context.request_id, call.contract, call.method);
        let asked = async move {
            let deadline = context.deadline_or_default();
            let key = match (call.kind, &call.key) {
                (Kind::Query, _) => None,
                (Kind::Effect, Some(key)) => Some(client_step_key(key, call.contract, call.method)),
                (Kind::Effect, None) => {
                    Some(effect_key(&context, &self.keys, call.contract, call.method, &encoded))
                }
                // `check` refuses a contract that has one.
                (Kind::Command, _) => {
                    let detail = format!("external {} has no inbox for a command", self.service.name);
                    return Err(NotRun::new(NotRunReason::Incompatible, detail).into());
                }
            };
            let body = Bytes::from((call.json.write_request)(&encoded).map_err(NotRun::from)?);
            let (service, call, context, body) = (&self.service, &call, &context, &body);
            service.budget.earn();
            let spend = || service.budget.spend(Instant::now());
            let attempt = || service.guarded(call, context, key, body.clone(), deadline);
            match attempt().await {
                Ok(outcome) => Ok(outcome),
                Err(fault) => {
                    let retried = || service.meters.retries.add(1);
                    repeated(call.kind, fault, &context.repeats, deadline, spend, retried, attempt).await
                }
            }
        };
        let counted = async move {
            let result = asked.await;
            meter.ended(Ended::of(&result), started.elapsed());
            result
        };
        Box::pin(counted.instrument(span))
    }
}

impl External {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// As of a service of ours, without replicas: nobody knows them.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let (breaker, breaker_opened) = self.circuit.state();
        let in_flight = IN_FLIGHT_MAX - self.in_flight.available_permits();
        Snapshot { breaker, breaker_opened, in_flight, replicas: Vec::new() }
    }

    /// An attempt, unless too many before it have ended badly.
    async fn guarded(
        &self,
        call: &RemoteCall,
        context: &Context,
        key: Option<StepKey>,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Outcome, CallFault> {
        if left_ms(deadline) == 0 {
            return Err(self.not_run(NotRunReason::Deadline, "no time is left").into());
        }
        let leave = self.circuit.enter(Instant::now(), Priority::Ordinary);
        let leave = leave.map_err(|barred| fault_of(&self.name, barred.into()))?;
        let result = self.attempt(call, context, key, body, deadline).await;
        leave.ended(match &result {
            Ok(_) => Ending::Good,
            Err(CallFault::Unknown(_)) => Ending::Bad,
            Err(CallFault::NotRun(not_run)) => match not_run.reason {
                // Nobody listens there, so there is nobody to be spared, and the next attempt costs nothing.
                NotRunReason::Unavailable => Ending::Neutral,
                NotRunReason::Overloaded => Ending::Overloaded,
                NotRunReason::Deadline => Ending::Bad,
                _ => Ending::Good,
            },
        });
        result
    }

    async fn attempt(
        &self,
        call: &RemoteCall,
        context: &Context,
        key: Option<StepKey>,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Outcome, CallFault> {
        let _place = self.in_flight.try_acquire().map_err(|_| {
            self.not_run(NotRunReason::Overloaded, format!("{IN_FLIGHT_MAX} calls are in flight"))
        })?;
        let mut request = Request::post(format!("{}{CALL}/{}/{}", self.url, call.contract, call.method))
            .header(CONTENT_TYPE, "application/json")
            .header(REQUEST_TIMEOUT_MS, left_ms(deadline).max(1));
        if !context.request_id.is_empty() {
            request = request.header("x-request-id", &*context.request_id);
        }
        for (name, value) in context.trace_headers() {
            request = request.header(name, value);
        }
        if let Some(key) = key {
            request = request.header(IDEMPOTENCY_KEY, key.to_string());
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| self.not_run(NotRunReason::Fault, error.to_string()))?;
        let exchange = async {
            let response = self.http.request(request).await.map_err(|error| match error.is_connect() {
                true => CallFault::from(self.not_run(NotRunReason::Unavailable, chain(&error))),
                false => self.unknown(UnknownReason::ConnectionLost, chain(&error)).into(),
            })?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| {
                let reason = match error.is::<http_body_util::LengthLimitError>() {
                    true => UnknownReason::Unreadable,
                    false => UnknownReason::ConnectionLost,
                };
                self.unknown(reason, error.to_string())
            })?;
            Ok::<_, CallFault>((parts, body.to_bytes()))
        };
        let (parts, body) = tokio::time::timeout_at(deadline.into(), exchange)
            .await
            .map_err(|_late| self.unknown(UnknownReason::Deadline, "no answer in time"))??;
        self.told(call.kind, &call.json, &parts, &body)
    }

    /// What an answer means.
    fn told(
        &self,
        asked: Kind,
        json: &JsonCodec,
        Parts { status, headers, .. }: &Parts,
        body: &[u8],
    ) -> Result<Outcome, CallFault> {
        let status = *status;
        if status.is_success() {
            let answer = (json.read_answer)(body);
            return answer
                .map(Outcome::Done)
                .map_err(|error| self.unknown(UnknownReason::Unreadable, error.to_string()).into());
        }
        let problem: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
        if let Some(record) = refused(json, status, &problem) {
            return Ok(Outcome::Refused(record));
        }
        let kind = problem.get("type").and_then(Value::as_str).unwrap_or_default();
        let kind = kind.rsplit('/').next().unwrap_or_default();
        let said = format!("it answered {} {kind}", status.as_u16());
        Err(match (status.as_u16(), kind) {
            (_, "outcome-unknown") => self.unknown(UnknownReason::Provider, said).into(),
            // A proxy says 503 also of what it has passed on, so of what must not happen twice only a service's own word
            // counts.
            (503, kind)
                if asked == Kind::Effect && !["overloaded", "service-unavailable"].contains(&kind) =>
            {
                self.unknown(UnknownReason::Provider, said).into()
            }
            (503 | 429, _) => {
                self.not_run(NotRunReason::Overloaded, said).retry_after_ms(retry_after_ms(headers)).into()
            }
            (504, "deadline-exceeded") => self.not_run(NotRunReason::Deadline, said).into(),
            (504, _) => self.unknown(UnknownReason::Deadline, said).into(),
            (409, "still-running") => self.not_run(NotRunReason::Running, said).into(),
            (422, "idempotency-key-reused") => self.not_run(NotRunReason::KeyReused, said).into(),
            // Turned away for what was sent: it will not be done however often it comes.
            (400 | 401 | 403 | 404 | 405 | 413 | 415 | 422, _) => {
                self.not_run(NotRunReason::Incompatible, said).into()
            }
            _ => self.unknown(UnknownReason::Provider, said).into(),
        })
    }

    fn not_run(&self, reason: NotRunReason, detail: impl AsRef<str>) -> NotRun {
        NotRun::new(reason, format!("external {}: {}", self.name, detail.as_ref()))
    }

    fn unknown(&self, reason: UnknownReason, detail: impl AsRef<str>) -> Unknown {
        Unknown::new(reason, format!("external {}: {}", self.name, detail.as_ref()))
    }
}

/// Names that RFC 9457 has taken, and ours: a refusal's field of such a name has an underscore behind it.
const TAKEN: [&str; 6] = ["type", "title", "status", "detail", "instance", "code"];

/// What is kept of a refusal's text.
const REFUSAL_TEXT_CHARS_MAX: usize = 1000;

/// `Retry-After` in seconds; a date is as good as nothing here.
fn retry_after_ms(headers: &HeaderMap) -> Option<u32> {
    let seconds: u32 = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(seconds.saturating_mul(1000))
}

/// A problem with a `code` is a refusal; one of a case that this build does not know only with a status that says the
/// same, since a server's own failure may have a code too.
fn refused(json: &JsonCodec, status: StatusCode, problem: &Map<String, Value>) -> Option<RefusalRecord> {
    let code = problem.get("code")?.as_str()?;
    let taken = |name: &str| TAKEN.contains(&name);
    let fields = problem.iter().filter(|(name, _)| !taken(name)).map(|(name, value)| {
        let plain = name.strip_suffix('_').filter(|plain| taken(plain));
        (plain.unwrap_or(name).to_owned(), value.clone())
    });
    if let Some(record) = (json.read_refusal)(code, &fields.collect()) {
        return Some(record);
    }
    if !status.is_client_error() {
        return None;
    }
    let text = |name| problem.get(name).and_then(Value::as_str);
    let text = text("detail").or(text("title")).unwrap_or(code);
    Some(RefusalRecord {
        code: code.to_owned(),
        text: text.chars().take(REFUSAL_TEXT_CHARS_MAX).collect(),
        status: status.as_u16(),
        body: Vec::new(),
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn left_ms(deadline: Instant) -> u64 {
    deadline.saturating_duration_since(Instant::now()).as_millis() as u64
}

#[cfg(test)]
mod tests {
    use modulith_core::Never;
    use modulith_transport::BreakerState;

    use super::*;

    fn external() -> External {
        External {
            name: "r".to_owned(),
            meters: PeerMeters::new("r".to_owned(), []),
            url: "http://127.0.0.1:1".to_owned(),
            authorization: None,
            http: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
            circuit: Circuit::new(Arc::default()),
            budget: RepeatBudget::new(Instant::now()),
        }
    }

    /// What is made of an answer to a method that answers a number.
    fn told(kind: Kind, status: u16, retry_after: Option<&str>, body: &str) -> String {
        let mut response = http::Response::builder().status(status);
        if let Some(when) = retry_after {
            response = response.header(RETRY_AFTER, when);
        }
        let (parts, ()) = response.body(()).expect("well formed").into_parts();
        match external().told(kind, &JsonCodec::of::<(), u32, Never>(), &parts, body.as_bytes()) {
            Ok(Outcome::Done(_)) => "done".to_owned(),
            Ok(Outcome::Refused(record)) => format!("refused: {} {}", record.code, record.text),
            Err(CallFault::NotRun(fault)) => {
                format!("not run: {:?} {:?}", fault.reason, fault.retry_after_ms)
            }
            Err(CallFault::Unknown(fault)) => format!("unknown: {:?}", fault.reason),
        }
    }

    /// The program answers with the key that it was shown.
    #[tokio::test]
    async fn an_effect_that_is_attempted_again_shows_the_same_key() {
        let shown = async |headers: HeaderMap| {
            let key = headers["idempotency-key"].to_str().expect("ASCII");
            ([(CONTENT_TYPE, "application/json")], format!("\"{key}\""))
        };
        let program = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", program.local_addr().expect("a bound address"));
        tokio::spawn(async move { axum::serve(program, axum::Router::new().fallback(shown)).await });

        let bank = ContractModel { name: "bank", version: 1, methods: Vec::new() };
        let meters = PeerMeters::new("r".to_owned(), [&bank]);
        let link = ExternalLink {
            meters: meters.calls.contract("bank").expect("it is served").clone(),
            service: Arc::new(External { url, meters, ..external() }),
            keys: Arc::new(ProcessKeys::new()),
        };
        let attempt = async |key: Option<StepKey>, amount: u32| {
            let json = JsonCodec::of::<u32, String, Never>();
            let call = RemoteCall { contract: "bank", method: "charge", kind: Kind::Effect, key: None, json };
            let within = Context { key, ..Context::background("test") };
            match within.scope(async { link.call(call, &amount).await }).await {
                Ok(Outcome::Done(key)) => key,
                other => panic!("{other:?}"),
            }
        };
        let outer = Some(link.keys.next());
        let first = attempt(outer, 1).await;
        assert_eq!(attempt(outer, 1).await, first);
        assert_ne!(attempt(outer, 2).await, first);
        assert_ne!(attempt(None, 1).await, attempt(None, 1).await);
    }

    /// What there was no time for says nothing about the service.
    #[tokio::test]
    async fn calls_without_time_open_no_breaker() {
        let external = external();
        let json = JsonCodec::of::<(), u32, Never>();
        let call = RemoteCall { contract: "related", method: "of", kind: Kind::Query, key: None, json };
        let context = Context::background("test");
        for _ in 0..40 {
            let asked = external.guarded(&call, &context, None, Bytes::new(), Instant::now());
            assert!(
                matches!(asked.await, Err(CallFault::NotRun(late)) if late.reason == NotRunReason::Deadline)
            );
        }
        assert_eq!(external.snapshot().breaker, BreakerState::Closed);
    }

    #[test]
    fn only_what_it_says_in_our_words_is_certainly_not_done() {
        use Kind::{Effect, Query};
        let problem = |name: &str| format!(r#"{{"type":"/problems/{name}"}}"#);
        for (kind, status, retry_after, body, expected) in [
            (Query, 200, None, "7".to_owned(), "done"),
            (Effect, 201, None, "7".to_owned(), "done"),
            (Query, 200, None, "seven".to_owned(), "unknown: Unreadable"),
            (Query, 503, Some("2"), String::new(), "not run: Overloaded Some(2000)"),
            (Query, 503, Some("Sat, 21 Nov 2026 10:00:00 GMT"), String::new(), "not run: Overloaded None"),
            // A proxy in between says so, too, of what it has passed on.
            (Effect, 503, Some("2"), String::new(), "unknown: Provider"),
            (Effect, 503, Some("2"), "<h1>Bad gateway</h1>".to_owned(), "unknown: Provider"),
            (Effect, 503, Some("1"), problem("overloaded"), "not run: Overloaded Some(1000)"),
            (Effect, 503, None, problem("outcome-unknown"), "unknown: Provider"),
            (Effect, 429, None, String::new(), "not run: Overloaded None"),
            (Query, 500, None, String::new(), "unknown: Provider"),
            (Query, 500, None, r#"{"code":"oops"}"#.to_owned(), "unknown: Provider"),
            (Query, 302, None, String::new(), "unknown: Provider"),
            (Effect, 504, None, problem("deadline-exceeded"), "not run: Deadline None"),
            (Effect, 504, None, String::new(), "unknown: Deadline"),
            (Effect, 409, None, problem("still-running"), "not run: Running None"),
            (Effect, 422, None, problem("idempotency-key-reused"), "not run: KeyReused None"),
            (
                Effect,
                409,
                None,
                r#"{"code":"sold_out","title":"none left"}"#.to_owned(),
                "refused: sold_out none left",
            ),
            (Effect, 404, None, String::new(), "not run: Incompatible None"),
            (Effect, 409, None, String::new(), "unknown: Provider"),
        ] {
            assert_eq!(told(kind, status, retry_after, &body), expected, "{kind:?} {status} {body}");
        }
    }
}
