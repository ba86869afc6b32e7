//! A card provider in the shape of Stripe's API: PaymentIntents, refunds, `Idempotency-Key`.
//!
//! What matters here is to say exactly what is known. A decline is certain. A connection that was never made is
//! *not run*. Everything else (a timeout, a lost reply, a 5xx) is *unknown*, and the same key asks again.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use modulith::{CallError, CallFault, Context, Found, Never, NotRun, NotRunReason, Unknown, UnknownReason};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use store_payments_contract::{ChargeId, ChargeRequest, Currency, Declined, Money, Payment, PaymentId};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// How long one attempt may take, and of that the connection.
const ATTEMPT: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: usize = 256 * 1024;

pub(crate) struct Provider {
    http: Client<HttpConnector, Full<Bytes>>,
    url: String,
    authorization: HeaderValue,
}

/// The provider, or a certain failure in a store whose cards are debited on the ledger.
pub(crate) fn of(provider: &Option<Provider>) -> Result<&Provider, NotRun> {
    let hint = "no card provider is configured; set `provider = \"stripe\"` in [module.payments]";
    provider.as_ref().ok_or_else(|| NotRun::new(NotRunReason::Incompatible, hint))
}

#[derive(Deserialize)]
struct PaymentIntent {
    id: String,
    status: String,
    amount: i64,
    currency: String,
    metadata: Metadata,
    /// Why the card was declined.
    last_payment_error: Option<FailureDetail>,
}

/// What was noted with a charge.
#[derive(Deserialize)]
struct Metadata {
    payment: PaymentId,
}

#[derive(Deserialize)]
struct SearchResult {
    data: Vec<PaymentIntent>,
}

#[derive(Deserialize)]
struct Refunded {
    status: String,
}

/// The provider's certain *no*: 402 for a card that is declined, 400 for a request that makes no sense.
#[derive(Deserialize)]
struct Failure {
    error: FailureDetail,
}

#[derive(Deserialize)]
struct FailureDetail {
    #[serde(rename = "type")]
    kind: String,
    code: Option<String>,
    decline_code: Option<String>,
}

impl Provider {
    pub(crate) fn new(url: &str, secret_key: &str) -> Result<Self, &'static str> {
        let url = url.trim_end_matches('/').to_owned();
        if !url.starts_with("http://") {
            return Err("`url` begins with http://; let a proxy speak TLS to the provider");
        }
        let mut authorization = HeaderValue::try_from(format!("Bearer {secret_key}"))
            .map_err(|_| "secret_key_file holds more than one line of text")?;
        authorization.set_sensitive(true);
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        Ok(Self { http: Client::builder(TokioExecutor::new()).build(connector), url, authorization })
    }

    /// The key is noted with the charge too, so that [`Provider::refund_step`] finds it.
    pub(crate) async fn charge(
        &self,
        key: &str,
        request: ChargeRequest,
    ) -> Result<Payment, CallError<Declined>> {
        let amount = request.amount.amount.to_string();
        let payment = request.payment.0.to_string();
        let form = [
            ("amount", amount.as_str()),
            ("currency", code(request.amount.currency)),
            ("payment_method", &request.card.0),
            ("confirm", "true"),
            // Nobody is there to answer a question of the card's bank: it declines instead.
            ("error_on_requires_action", "true"),
            ("metadata[payment]", &payment),
            ("metadata[step]", key),
        ];
        match self.ask::<PaymentIntent>(Method::POST, "/v1/payment_intents", &form, Some(key)).await? {
            Ok(intent) if intent.status == "succeeded" => {
                Ok(Payment { id: request.payment, amount: request.amount, charge: Some(ChargeId(intent.id)) })
            }
            Ok(intent) => Err(unknown(format!("payment intent {} is {}", intent.id, intent.status)).into()),
            Err(failure) if failure.kind != "card_error" => {
                Err(not_run(format!("the provider said {failure}")).into())
            }
            Err(failure) => Err(CallError::Refused(declined(&failure))),
        }
    }

    /// What was charged under the key of a step. It is asked when the last attempt is long over, so that the search
    /// shows all there is. One key makes one intent, which stays when its card is declined.
    pub(crate) async fn find_charge(&self, step: &str) -> Result<Found<Payment, Declined>, CallError<Never>> {
        let Some(intent) = self.search(step).await?.into_iter().next() else {
            return Ok(Found::Nothing);
        };
        match (intent.status.as_str(), &intent.last_payment_error, currency_of(&intent.currency)) {
            ("succeeded", _, Some(currency)) => Ok(Found::Done(Payment {
                id: intent.metadata.payment,
                amount: Money::new(intent.amount, currency),
                charge: Some(ChargeId(intent.id)),
            })),
            ("requires_payment_method", Some(failure), _) => Ok(Found::Refused(declined(failure))),
            (status, ..) => {
                Err(unknown(format!("payment intent {} is {status} {}", intent.id, intent.currency)).into())
            }
        }
    }

    /// Only a charge that was made is undone, so one that cannot be found is not missing: the provider's search
    /// lags behind by up to a minute. That is *unknown*, and the undo is repeated.
    pub(crate) async fn refund_step(&self, key: &str, step: &str) -> Result<(), CallError<Never>> {
        match self.search(step).await?.into_iter().find(|intent| intent.status == "succeeded") {
            Some(intent) => self.post_refund(key, &[("payment_intent", &intent.id)]).await,
            None => Err(unknown(format!("no charge is found yet for {step}")).into()),
        }
    }

    async fn search(&self, step: &str) -> Result<Vec<PaymentIntent>, CallFault> {
        let query = [("query", format!("metadata['step']:'{step}'"))];
        let query = serde_urlencoded::to_string(query).map_err(|error| unknown(error.to_string()))?;
        let path = format!("/v1/payment_intents/search?{query}");
        let found = self.ask::<SearchResult>(Method::GET, &path, &[], None).await?.map_err(impossible)?;
        Ok(found.data)
    }

    pub(crate) async fn refund(
        &self,
        key: &str,
        charge: &ChargeId,
        amount: Money,
    ) -> Result<(), CallError<Never>> {
        self.post_refund(key, &[("payment_intent", &charge.0), ("amount", &amount.amount.to_string())]).await
    }

    async fn post_refund(&self, key: &str, form: &[(&str, &str)]) -> Result<(), CallError<Never>> {
        match self.ask::<Refunded>(Method::POST, "/v1/refunds", form, Some(key)).await? {
            Ok(refund) if matches!(refund.status.as_str(), "succeeded" | "pending") => Ok(()),
            Ok(refund) => Err(unknown(format!("the refund is {}", refund.status)).into()),
            Err(failure) if failure.code.as_deref() == Some("charge_already_refunded") => Ok(()),
            Err(failure) => Err(impossible(failure).into()),
        }
    }

    /// One attempt. The inner error is the provider's certain *no*.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        form: &[(&str, &str)],
        key: Option<&str>,
    ) -> Result<Result<T, FailureDetail>, CallFault> {
        let body = serde_urlencoded::to_string(form).map_err(|error| not_run(error.to_string()))?;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(AUTHORIZATION, &self.authorization)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(key) = key {
            request = request.header(IDEMPOTENCY_KEY, key);
        }
        for (name, value) in Context::current().trace_headers() {
            request = request.header(name, value);
        }
        let request = request.body(Full::from(body)).map_err(|error| not_run(error.to_string()))?;
        let exchange = async {
            let response = self.http.request(request).await.map_err(|error| {
                let cause = error.source().map_or(String::new(), |cause| format!(": {cause}"));
                let detail = format!("{}: {error}{cause}", self.url);
                if error.is_connect() { CallFault::from(not_run(detail)) } else { unknown(detail).into() }
            })?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| unknown(error.to_string()))?;
            Ok::<_, CallFault>((status, body.to_bytes()))
        };
        let late = |_| unknown(format!("no answer within {ATTEMPT:?}"));
        let (status, body) = tokio::time::timeout(ATTEMPT, exchange).await.map_err(late)??;
        match status {
            StatusCode::OK => Ok(Ok(read(&body)?)),
            StatusCode::PAYMENT_REQUIRED | StatusCode::BAD_REQUEST => Ok(Err(read::<Failure>(&body)?.error)),
            // Turned away at the door: by the key of the account, or by the rate limit.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
                Err(not_run(format!("the provider answered {status}")).into())
            }
            _ => Err(unknown(format!("the provider answered {status}")).into()),
        }
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Unknown> {
    serde_json::from_slice(body)
        .map_err(|error| unknown(format!("the provider's answer cannot be read: {error}")))
}

fn not_run(detail: String) -> NotRun {
    NotRun::new(NotRunReason::Unavailable, detail)
}

fn unknown(detail: String) -> Unknown {
    Unknown::new(UnknownReason::Provider, detail)
}

/// A refund that is refused cannot be ended by a program: it is repeated, and raises attention.
fn impossible(failure: FailureDetail) -> Unknown {
    unknown(format!("the provider said {failure}"))
}

impl std::fmt::Display for FailureDetail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.code.as_deref().unwrap_or("without a code"))
    }
}

fn declined(failure: &FailureDetail) -> Declined {
    match failure.decline_code.as_deref() {
        Some("insufficient_funds") => Declined::InsufficientFunds,
        _ => Declined::CardDeclined,
    }
}

/// Stripe writes currencies in lower case.
fn code(currency: Currency) -> &'static str {
    match currency {
        Currency::Gbp => "gbp",
        Currency::Eur => "eur",
        Currency::Usd => "usd",
    }
}

fn currency_of(text: &str) -> Option<Currency> {
    [Currency::Gbp, Currency::Eur, Currency::Usd].into_iter().find(|currency| code(*currency) == text)
}

#[cfg(test)]
mod tests;
