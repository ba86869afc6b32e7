//! Calls between services: JSON over kept-alive connections, repeated when the connection fails.
//!
//! Every call here is idempotent by the id in its path, so a repeat is always safe.

use std::time::Duration;

use axum::http::StatusCode;
use peers::problem::Problem;
use reqwest::Method;
use serde::Deserialize;
use serde::Serialize;

const ATTEMPTS: usize = 3;

/// A client that keeps its connections.
pub(crate) fn client() -> anyhow::Result<reqwest::Client> {
    let client = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(1))
        .timeout(Duration::from_secs(10))
        .tcp_nodelay(true);
    Ok(client.build()?)
}

/// One service, as another sees it.
#[derive(Clone)]
pub(crate) struct Remote {
    client: reqwest::Client,
    base: String,
}

/// What of a problem document is passed on.
#[derive(Deserialize)]
struct Refusal {
    detail: String,
}

impl Remote {
    pub(crate) fn new(client: &reqwest::Client, base: &str) -> Self {
        Self {
            client: client.clone(),
            base: base.to_owned(),
        }
    }

    /// Calls `path`; a refusal of the service comes back as its own problem.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<reqwest::Response, Problem> {
        let body = serde_json::to_vec(body)?;
        let url = format!("{}{path}", self.base);
        let mut attempt = 1;
        let answer = loop {
            let request = self.client.request(method.clone(), &url);
            let request = request
                .header("content-type", "application/json")
                .body(body.clone());
            match request.send().await {
                Ok(answer) => break answer,
                Err(error) if attempt == ATTEMPTS => return Err(error.into()),
                Err(_) => attempt += 1,
            }
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        if status.is_server_error() {
            return Err(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "try again with the same key",
            ));
        }
        let refusal: Refusal = answer.json().await?;
        Err(Problem::new(status, refusal.detail))
    }
}
