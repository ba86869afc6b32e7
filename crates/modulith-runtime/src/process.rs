//! The processes of a topology: the monolith, one service of a split, the gateway.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::get;
use modulith_core::Context;
use modulith_gateway::http::{Query, finish};
use modulith_gateway::{
    Address, Edge, Gateway, Internal, Limits, Merged, RouteTable, Target, Upstream, serve, serve_stream,
};
use modulith_transport::HttpTask;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::Layer;

use crate::app::App;
use crate::control::Control;
use crate::expose;
use crate::host::{HEALTH, Host, Keys, StartError, readiness};
use crate::model::ModuleModel;
use crate::operate::{self, Listed, Wanted};
use crate::topology::{ServiceSection, Topology};

/// How long the gateway waits for a service's word about its health.
const HEALTH_TIME_MAX: Duration = Duration::from_secs(2);

/// What the gateway reads of a service's answer to a question of its own: 1 MiB. A page of sagas is the longest.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Everything in one process, until it is told to stop.
pub(crate) async fn monolith(
    app: &App,
    topology: &Topology,
    data: &Path,
    listen: &str,
    control: Control,
) -> Result<(), StartError> {
    let stop = control.stop_token().map_err(|error| listen_error("signals", error))?;
    let host = Host::start(app, topology, &topology.services[0].name, data).await?;
    let (listener, address) = bind(listen).await?;
    if !control.is_controlled() {
        eprint!("{}", crate::graph::table(&host.model, topology));
    }
    let url = format!("http://{address}");
    let health = host.health();
    tokio::spawn(async move { control.announce(|| health.missing(), || ready(control, &url)).await });
    let drain = topology.gateway.drain();
    let connections = CancellationToken::new();
    let served = tokio::spawn(serve(listener, host.edge(), connections.clone()));
    until_stop(&stop, &host).await?;
    wind_down(host, drain, control, async {
        connections.cancel();
        // Errors of a connection are its own; the loop itself does not fail.
        let _ = served.await;
    })
    .await;
    Ok(())
}

/// One service of a split, until it is told to stop.
pub(crate) async fn service(
    app: &App,
    topology: &Topology,
    name: &str,
    data: &Path,
    control: Control,
) -> Result<(), StartError> {
    let stop = control.stop_token().map_err(|error| listen_error("signals", error))?;
    let host = Host::start(app, topology, name, data).await?;
    let section = topology.service(name).expect("the host has started it");
    let address = topology.listen_address(section, data);
    topology.make_socket_folders(data).map_err(|error| listen_error(&address.to_string(), error))?;
    let listener = modulith_transport::Listener::bind(&address)
        .await
        .map_err(|error| StartError::Listen { address: address.to_string(), error })?;
    let health = host.health();
    let (said, service) = (address.to_string(), host.name.clone());
    tokio::spawn(async move {
        let ready = || {
            tracing::info!("service {service} is ready on {said}");
            control.tell("ready");
        };
        control.announce(|| health.missing(), ready).await;
    });
    let connections = CancellationToken::new();
    let http: HttpTask = {
        let modules = Merged::new(host.routes.clone());
        let door = Internal::new(host.keys.internal.clone(), Limits::default()).layer(modules.clone());
        // Health is for whoever can reach the socket: systemd, a container's probe.
        let door = HEALTH
            .into_iter()
            .fold(Router::new(), |router, path| router.route_service(path, modules.clone()))
            .fallback_service(door);
        let connections = connections.clone();
        Arc::new(move |stream| {
            let (door, stop) = (door.clone(), connections.clone());
            Box::pin(serve_stream(stream, door, stop))
        })
    };
    let served = tokio::spawn(modulith_transport::serve(
        listener,
        host.hello.clone(),
        host.admit.clone(),
        modulith_transport::Limits::default(),
        host.answers.clone(),
        Some(http),
        connections.clone(),
    ));
    until_stop(&stop, &host).await?;
    wind_down(host, topology.gateway.drain(), control, async {
        connections.cancel();
        let _ = served.await;
    })
    .await;
    Ok(())
}

/// Returns when the process is told to stop, or with an error when its database has failed.
async fn until_stop(stop: &CancellationToken, host: &Host) -> Result<(), StartError> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        reason = host.broken() => Err(StartError::Broken(reason)),
    }
}

/// Not ready from now on; finishes what runs, for at most `drain`.
async fn wind_down(host: Host, drain: Duration, control: Control, connections: impl Future<Output = ()>) {
    tracing::info!("stopping");
    control.tell("stopping");
    host.begin_stop();
    let until = Instant::now() + drain;
    if tokio::time::timeout(drain, connections).await.is_err() {
        tracing::warn!("requests were still running after {} s and are cut", drain.as_secs());
    }
    host.stop(until.saturating_duration_since(Instant::now()).max(Duration::from_millis(100))).await;
}

fn ready(control: Control, url: &str) {
    control.tell(&format!("ready {url}"));
    tracing::info!("ready on {url}");
}

fn listen_error(address: &str, error: std::io::Error) -> StartError {
    StartError::Listen { address: address.to_owned(), error }
}

async fn bind(listen: &str) -> Result<(TcpListener, SocketAddr), StartError> {
    let listener = TcpListener::bind(listen).await.map_err(|error| listen_error(listen, error))?;
    let address = listener.local_addr().map_err(|error| listen_error(listen, error))?;
    Ok((listener, address))
}

/// The front door of a split, until it is told to stop. It hosts no module.
pub(crate) async fn gateway(
    app: &App,
    topology: &Topology,
    data: &Path,
    listen: &str,
    control: Control,
) -> Result<(), StartError> {
    let stop = control.stop_token().map_err(|error| listen_error("signals", error))?;
    let (_, model) = app.declare(topology)?;
    let keys = Keys::load_or_create(data)?;
    let doors: Vec<Door> =
        topology.services.iter().map(|service| Door::of(service, topology, data)).collect();
    let mut routes = Vec::new();
    for (service, door) in topology.services.iter().zip(&doors) {
        let hosted =
            model.modules.iter().filter(|module| service.modules.iter().any(|name| name == module.name));
        for module in hosted {
            let target = || Target::Service(Arc::from([door.upstream.clone()]));
            routes.extend(module.prefixes.iter().map(|prefix| ((*prefix).to_owned(), target())));
            routes.push((format!("/admin/{}", module.name), target()));
            if !module.plans.is_empty() {
                routes.push((format!("{}/{}", operate::PATH, module.name), target()));
            }
            let exposed = module
                .contracts
                .iter()
                .filter(|contract| topology.exposed.iter().any(|name| name == contract.name));
            routes.extend(exposed.map(|contract| (expose::prefix(contract.name), target())));
        }
    }
    let doors = Arc::new(Doors { doors, token: keys.internal.clone() });
    let begins_sagas = |module: &&ModuleModel| !module.plans.is_empty();
    let mut of_sagas: Vec<String> =
        model.modules.iter().filter(begins_sagas).map(|module| module.name.to_owned()).collect();
    of_sagas.sort();
    let alive = Router::new().route("/healthz", get(|| async { "alive\n" }));
    let readyz = Router::new().route(
        "/readyz",
        get({
            let doors = doors.clone();
            move || async move { readiness(doors.missing().await) }
        }),
    );
    let sagas = Router::new().route(
        operate::PATH,
        get({
            let doors = doors.clone();
            move |Query(wanted): Query<Wanted>| async move {
                operate::listed(&of_sagas, &wanted, |module, wanted| {
                    let doors = doors.clone();
                    async move { doors.sagas(&module, &wanted).await }
                })
                .await
            }
        }),
    );
    for (prefix, router) in [("/healthz", alive), ("/readyz", readyz), (operate::PATH, sagas)] {
        routes.push((prefix.to_owned(), Target::Here(finish(router))));
    }
    routes.extend(expose::document(&model, topology).map(|(path, router)| (path, Target::Here(router))));
    let routes = RouteTable::new(routes).map_err(StartError::Routes)?;
    let callers = expose::callers(topology, data)?;
    let sampling = topology.telemetry.sampling;
    let edge = Edge::new(keys.sessions.clone(), keys.admin.clone(), Limits::default(), sampling);
    let edge = edge.callers(callers);
    let door = edge.layer(Gateway::new(routes, &keys.internal));

    let (listener, address) = bind(listen).await?;
    let url = format!("http://{address}");
    // The gateway is ready when it listens; whether the services are is what /readyz tells.
    ready(control, &url);
    let connections = CancellationToken::new();
    let served = tokio::spawn(serve(listener, door, connections.clone()));
    stop.cancelled().await;
    tracing::info!("stopping");
    control.tell("stopping");
    connections.cancel();
    if tokio::time::timeout(topology.gateway.drain(), served).await.is_err() {
        tracing::warn!(
            "requests were still running after {} s and are cut",
            topology.gateway.drain().as_secs()
        );
    }
    Ok(())
}

/// The gateway's way to one service.
struct Door {
    name: String,
    modules: Vec<String>,
    upstream: Upstream,
}

impl Door {
    fn of(service: &ServiceSection, topology: &Topology, data: &Path) -> Self {
        let address = match topology.listen_address(service, data) {
            modulith_transport::Address::Tcp(host) => Address::Tcp(host),
            modulith_transport::Address::Unix(path) => Address::Unix(path),
        };
        Self {
            name: service.name.clone(),
            modules: service.modules.clone(),
            upstream: Upstream::new(address),
        }
    }
}

struct Doors {
    doors: Vec<Door>,
    token: modulith_gateway::AccessToken,
}

impl Doors {
    async fn ask(&self, door: &Door, path: &str) -> Response {
        let request = Request::get(path).body(Body::empty()).expect("what is asked here is a path");
        let context = Context {
            deadline: Some(Instant::now() + HEALTH_TIME_MAX),
            ..Context::background("gateway-health")
        };
        door.upstream.forward(request, &self.token, &context).await
    }

    async fn missing(&self) -> Vec<String> {
        let asked = self.doors.iter().map(|door| async move {
            let response = self.ask(door, "/readyz").await;
            if response.status().is_success() {
                return Vec::new();
            }
            #[derive(serde::Deserialize)]
            struct NotReady {
                missing: Vec<String>,
            }
            let missing = match json::<NotReady>(response).await {
                Some(body) => body.missing,
                None => vec!["does not answer".to_owned()],
            };
            missing.into_iter().map(|what| format!("service `{}`: {what}", door.name)).collect()
        });
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// One page of a module's sagas, from the service that hosts it.
    async fn sagas(&self, module: &str, wanted: &Wanted) -> Result<Listed, String> {
        let hosts = |door: &&Door| door.modules.iter().any(|name| name == module);
        let door = self.doors.iter().find(hosts).ok_or("no service hosts it")?;
        let response = self.ask(door, &format!("{}/{module}?{}", operate::PATH, wanted.query())).await;
        let status = response.status();
        match json::<Listed>(response).await {
            Some(page) if status.is_success() => Ok(page),
            _ if !status.is_success() => Err(format!("service `{}` answers {status}", door.name)),
            _ => Err(format!("the answer of service `{}` cannot be read, or is too long", door.name)),
        }
    }
}

/// A service's short answer.
async fn json<T: serde::de::DeserializeOwned>(response: Response) -> Option<T> {
    let body = axum::body::to_bytes(response.into_body(), ANSWER_BYTES_MAX).await.ok()?;
    serde_json::from_slice(&body).ok()
}
