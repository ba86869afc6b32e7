//! The operator's side of the store's admin interface.

use std::time::Duration;

use anyhow::Context;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

/// Attempts at one request. All of them may be repeated: the store knows an invoice by its number.
const ATTEMPTS_MAX: u32 = 8;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// How long the store may take for one request.
const REQUEST_TIMEOUT_MS: &str = "60000";

/// A running store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Target {
    http: Client<HttpConnector, Full<Bytes>>,
    url: String,
    authorization: HeaderValue,
}

impl Target {
    /// `url` without a path: `http://127.0.0.1:8080`.
    pub(crate) fn new(url: &str, admin_token: &str) -> anyhow::Result<Self> {
        let mut authorization =
            HeaderValue::try_from(format!("Bearer {admin_token}")).context("the admin token")?;
        authorization.set_sensitive(true);
        let http = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), authorization })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// The body is JSON already.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: Bytes) -> anyhow::Result<T> {
        self.call(Method::POST, path, body).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<T> {
        let mut pause = PAUSE_FIRST;
        let mut attempt = 1;
        loop {
            let last = match self.attempt(&method, path, body.clone()).await {
                Ok((status, answer)) if status.is_success() => {
                    let answer = if answer.is_empty() { b"null" } else { &answer[..] };
                    return serde_json::from_slice(answer)
                        .with_context(|| format!("answer of {method} {path}"));
                }
                Ok((status, answer)) => {
                    let error =
                        anyhow::anyhow!("{method} {path}: {status}: {}", String::from_utf8_lossy(&answer));
                    let passing = status == StatusCode::CONFLICT || status.is_server_error();
                    if !passing {
                        return Err(error);
                    }
                    error
                }
                Err(error) => error.context(format!("{method} {}{path}", self.url)),
            };
            if attempt == ATTEMPTS_MAX {
                return Err(last);
            }
            attempt += 1;
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    async fn attempt(&self, method: &Method, path: &str, body: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(AUTHORIZATION, &self.authorization)
            .header(CONTENT_TYPE, "application/json")
            .header("request-timeout-ms", REQUEST_TIMEOUT_MS)
            .body(Full::new(body))?;
        let response = self.http.request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }
}
