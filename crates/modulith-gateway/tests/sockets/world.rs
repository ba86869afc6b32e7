//! An application of two modules, run whole or split, and a client that sends exactly the bytes it is given.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use modulith_core::{Context, Principal};
use modulith_gateway::http::{
    Admin, Json, Keyed, Path as PathOf, Problem, Query, SignedIn, finish, get, post,
};
use modulith_gateway::{
    AccessToken, Backend, Edge, Gateway, Limits, Merged, RouteTable, Sampling, SessionKeys, Target, Upstream,
    serve,
};
use modulith_transport::Address;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service};

use crate::services;

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) sessions: Arc<SessionKeys>,
    pub(crate) admin: AccessToken,
    pub(crate) limits: Limits,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            sessions: Arc::new(SessionKeys::load_or_create(dir.path()).unwrap()),
            admin: AccessToken::load_or_create(dir.path(), "admin.token").unwrap(),
            dir,
            limits: Limits::default(),
        }
    }

    pub(crate) fn edge(&self) -> Edge {
        Edge::new(self.sessions.clone(), self.admin.clone(), self.limits, Sampling::default())
    }

    pub(crate) fn session(&self, user: &str) -> String {
        self.sessions.issue(user, Duration::from_secs(60)).unwrap()
    }

    pub(crate) async fn monolith(&self) -> SocketAddr {
        let modules = [("/orders", orders()), ("/products", products()), ("/admin/orders", admin())];
        tcp(self.edge().layer(Merged::new(RouteTable::new(modules).unwrap()))).await
    }

    /// Orders behind TCP, products behind a Unix socket.
    pub(crate) async fn split(&self) -> SocketAddr {
        let hosted = RouteTable::new([("/orders", orders()), ("/admin/orders", admin())]).unwrap();
        let orders = self.upstream(self.backend("127.0.0.1:0", hosted).await);
        static SPLITS: AtomicU32 = AtomicU32::new(0);
        let socket = format!("products-{}.sock", SPLITS.fetch_add(1, Ordering::Relaxed));
        let socket = format!("unix:{}", self.dir.path().join(socket).display());
        let hosted = RouteTable::new([("/products", products())]).unwrap();
        let products = self.upstream(self.backend(&socket, hosted).await);
        self.gateway([("/orders", orders.clone()), ("/admin/orders", orders), ("/products", products)]).await
    }

    /// A service with these routes; its address.
    pub(crate) async fn backend(&self, listen: &str, routes: RouteTable<Router>) -> Address {
        services::listen(listen, services::routed(Backend::new(routes, self.limits))).await
    }

    pub(crate) fn upstream(&self, address: Address) -> Upstream {
        services::upstream(vec![address])
    }

    pub(crate) async fn gateway<const N: usize>(&self, services: [(&str, Upstream); N]) -> SocketAddr {
        let services = services.map(|(prefix, upstream)| (prefix, Target::Service(upstream)));
        tcp(self.edge().layer(Gateway::new(RouteTable::new(services).unwrap()))).await
    }
}

pub(crate) async fn tcp<S>(service: S) -> SocketAddr
where
    S: Service<Request, Response = Response, Error = std::convert::Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, service, CancellationToken::new()));
    address
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    lines: Vec<Line>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    product: String,
    quantity: u32,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    after: u32,
    count: u32,
}

pub(crate) fn orders() -> Router {
    let router = Router::new()
        .route("/orders", get(async |page: Query<Page>| Json((page.0.after, page.0.count))))
        .route("/orders", post(async |order: Json<Order>| order))
        .route("/orders/keyed", post(keyed).put(keyed))
        .route("/orders/{id}", get(async |id: PathOf<u32>| Json(id.0)).delete(async || ()))
        .route("/orders/who", get(who))
        .route("/orders/mine", get(async |user: SignedIn| Json(user.id().to_owned())))
        .route(
            "/orders/guests",
            get(async |user: Option<SignedIn>| Json(user.map(|user| user.id().to_owned()))),
        )
        .route("/orders/operators", get(async |_: Admin| "operator"))
        .route("/orders/bytes", post(async |body: axum::body::Bytes| Json(body.len())))
        .route("/orders/none", get(async || http::StatusCode::NO_CONTENT))
        .route(
            "/orders/refused",
            post(async || Problem::new(http::StatusCode::GONE, "gone_by", "Gone").with("id", 7)),
        )
        .route("/orders/panic", get(async || -> () { panic!("secret of the inside") }))
        .route("/orders/never", get(async || std::future::pending::<()>().await))
        .route("/orders/never", post(async || std::future::pending::<()>().await))
        .route("/orders/echo", post(echo));
    finish(router)
}

pub(crate) fn products() -> Router {
    finish(Router::new().route("/products/{name}", get(async |name: PathOf<String>| Json(name.0))))
}

pub(crate) fn admin() -> Router {
    finish(Router::new().route("/admin/orders", get(async |_: Admin| "operator")))
}

async fn keyed(order: Keyed<Order>) -> Json<Value> {
    Json(json!({ "key": order.key.name, "body": order.key.body, "lines": order.body.lines.len() }))
}

async fn echo(request: Request) -> Body {
    Body::from_stream(request.into_body().into_data_stream())
}

/// What a handler learns, from the task and from the request.
async fn who(request: Request) -> Json<Value> {
    let context = Context::current();
    let principal = match &context.principal {
        Some(Principal::User(id)) => json!(id),
        Some(Principal::Admin) => json!("(admin)"),
        Some(Principal::Caller(name)) => json!(format!("(caller {name})")),
        None => Value::Null,
    };
    let extension = request.extensions().get::<Context>().expect("the context is in the request");
    assert_eq!(extension.principal, context.principal);
    let left = context.deadline.unwrap() - Instant::now();
    let names: Vec<_> =
        request.headers().keys().filter(|name| *name != "connection").map(|name| name.as_str()).collect();
    Json(json!({
        "principal": principal,
        "request_id": &*context.request_id,
        "left_s": left.as_secs_f64().round(),
        "headers": names,
        "target": request.uri().to_string(),
    }))
}

#[derive(Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The last segment of the problem's type, once it is sure to be a whole problem document.
    #[track_caller]
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let document = self.json();
        assert_eq!(document["status"], self.status, "{document}");
        assert!(document["title"].is_string(), "{document}");
        document["type"].as_str().unwrap().strip_prefix("/problems/").unwrap().to_owned()
    }
}

/// Sends a head (lines joined by CRLF, `Host` and `Connection: close` added) and a body on a new connection.
pub(crate) async fn ask(address: SocketAddr, head: &str, body: impl AsRef<[u8]>) -> Reply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = head.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\r\n");
    stream
        .write_all(format!("{head}\r\nhost: shop.test\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    // A server that answers early may close while we still send.
    let _ = stream.write_all(body.as_ref()).await;
    read_reply(&mut stream, head.starts_with("HEAD")).await
}

pub(crate) async fn post_json(address: SocketAddr, path: &str, extra: &str, body: &str) -> Reply {
    let head = format!(
        "POST {path} HTTP/1.1\ncontent-type: application/json\ncontent-length: {}\n{extra}",
        body.len()
    );
    ask(address, &head, body).await
}

pub(crate) async fn get_path(address: SocketAddr, path: &str, extra: &str) -> Reply {
    ask(address, &format!("GET {path} HTTP/1.1\n{extra}"), "").await
}

pub(crate) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> (u16, Vec<(String, String)>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap_or_else(|error| {
            panic!("{error} after {:?}", String::from_utf8_lossy(&head));
        }));
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    (status, headers)
}

pub(crate) async fn read_chunk(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut length = Vec::new();
    while !length.ends_with(b"\r\n") {
        length.push(stream.read_u8().await.unwrap());
    }
    let length = usize::from_str_radix(std::str::from_utf8(&length).unwrap().trim_end(), 16).unwrap();
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk).await.unwrap();
    chunk.truncate(length);
    chunk
}

pub(crate) async fn read_reply(stream: &mut (impl AsyncRead + Unpin), bodiless: bool) -> Reply {
    let (status, headers) = read_head(stream).await;
    let mut reply = Reply { status, headers, body: Vec::new() };
    if bodiless || status == 204 {
        return reply;
    }
    match reply.header("content-length") {
        Some(length) => {
            reply.body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut reply.body).await.unwrap();
        }
        None => loop {
            let chunk = read_chunk(stream).await;
            if chunk.is_empty() {
                break;
            }
            reply.body.extend(chunk);
        },
    }
    reply
}
