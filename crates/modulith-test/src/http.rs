//! A plain HTTP client for tests: one request, one whole response.

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A client of one application. Each request has a connection of its own: a pool would send a request again that
/// met a server's end, behind the back of a test that counts.
#[derive(Clone)]
pub struct Http {
    /// Host and port.
    authority: String,
    admin: String,
}

/// A request, built up in one line.
pub struct Request {
    method: http::Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
    admin: bool,
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
    /// Null if the body is no JSON.
    pub json: Value,
}

impl Response {
    /// The stable part of a problem's type: `sold-out`.
    pub fn problem(&self) -> &str {
        self.json["type"].as_str().and_then(|kind| kind.rsplit('/').next()).unwrap_or("")
    }
}

impl Request {
    pub fn new(method: http::Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: Bytes::new(), admin: false }
    }

    pub fn get(path: impl Into<String>) -> Self {
        Self::new(http::Method::GET, path)
    }

    pub fn post(path: impl Into<String>, json: &Value) -> Self {
        Self::new(http::Method::POST, path).json(json)
    }

    pub fn put(path: impl Into<String>, json: &Value) -> Self {
        Self::new(http::Method::PUT, path).json(json)
    }

    pub fn json(self, json: &Value) -> Self {
        self.header("content-type", "application/json").body(json.to_string())
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// As a signed-in user.
    pub fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// As an operator.
    pub fn admin(mut self) -> Self {
        self.admin = true;
        self
    }

    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }
}

impl Http {
    pub fn new(url: &str, admin: &str) -> Self {
        let authority = url.strip_prefix("http://").unwrap_or(url);
        Self { authority: authority.to_owned(), admin: admin.to_owned() }
    }

    /// # Errors
    ///
    /// No whole response came.
    pub async fn send(&self, request: Request) -> anyhow::Result<Response> {
        let mut builder =
            http::Request::builder().method(request.method).uri(request.path).header("host", &self.authority);
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        if request.admin {
            builder = builder.header("authorization", format!("Bearer {}", self.admin));
        }
        let request = builder.body(Full::new(request.body))?;
        let stream = TcpStream::connect(&self.authority).await.context("no connection")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // What goes wrong with it is told to the request. It ends when the sender is dropped.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.context("no response")?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.context("the response was cut")?.to_bytes();
        let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body, json })
    }
}
