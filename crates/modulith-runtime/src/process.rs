//! The processes of a topology: the monolith, one service of a split, the gateway.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::handler::Handler;
use axum::response::Response;
use axum::routing::get;
use modulith_core::Context;
use modulith_gateway::http::{Query, finish};
use modulith_gateway::{
    BACK_OFF_MAX, Edge, Gateway, Limits, Merged, Pressure, RouteTable, Target, Upstream, serve, serve_stream,
};
use modulith_transport::{Hello, HttpTask, Token, operating_system};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tower::Layer;

use crate::app::App;
use crate::calls::{about, admit, put_http};
use crate::control::Control;
use crate::expose;
use crate::host::{self, HEALTH, Host, Keys, Known, StartError, readiness};
use crate::metrics::{self, HttpMeters, Metered, Metrics, Shown};
use crate::model::ModuleModel;
use crate::operate::{self, Listed, Wanted};
use crate::topology::{GATEWAY, Topology};

/// How long the gateway waits for a service's word about its health.
const HEALTH_TIME_MAX: Duration = Duration::from_secs(2);
/// How long what they said is told to others.
const HEALTH_KEPT: Duration = Duration::from_millis(100);

/// What the gateway reads of a service's metrics: 8 MiB, some 5,000 methods.
const METRICS_BYTES_MAX: usize = 8 << 20;

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
    let shown = host.shown.clone();
    let scrape = move || std::future::ready(metrics::answer(shown.text()));
    show_metrics(topology, scrape, &connections).await?;
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
    let mut listener = modulith_transport::Listener::bind(&address)
        .await
        .map_err(|error| StartError::Listen { address: address.to_string(), error })?
        .for_users(&topology.trust.unix_uids);
    let is_tcp = matches!(address, modulith_transport::Address::Tcp(_));
    if let Some(trust) = host.trust.clone().filter(|_| is_tcp && topology.is_over_tls(section)) {
        listener = listener.over_tls(trust);
    }
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
        // Health is for whoever can reach the socket: systemd, a container's probe. Over TLS that is nobody without a
        // certificate. Everything else comes in frames.
        let modules = Merged::new(host.routes.clone());
        let open = |router: Router, path: &'static str| router.route_service(path, modules.clone());
        let door = finish(HEALTH.into_iter().fold(Router::new(), open));
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
        modulith_transport::Limits { drain_max: topology.gateway.drain(), ..Default::default() },
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

/// `GET /metrics` on a port of its own, if the topology names one: without a token, so on loopback only.
async fn show_metrics<T: 'static>(
    topology: &Topology,
    scrape: impl Handler<T, ()>,
    stop: &CancellationToken,
) -> Result<(), StartError> {
    if let Some(listen) = &topology.telemetry.listen {
        let (listener, address) = bind(&listen.to_string()).await?;
        tracing::info!("metrics are shown on http://{address}/metrics");
        let router = finish(Router::new().route("/metrics", get(scrape)));
        tokio::spawn(serve(listener, router, stop.clone()));
    }
    Ok(())
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
    let about = about(&[], &[])?;
    let hello = Hello {
        service: GATEWAY.to_owned(),
        incarnation: *uuid::Uuid::new_v4().as_bytes(),
        token: Token::new(keys.internal.expose()),
        about: about.clone(),
    };
    let admit = admit(about);
    let trust = host::trust(app.name, topology, GATEWAY)?;
    let watched = trust.clone().map(|trust| tokio::spawn(host::watch(trust)));
    let known = Known {
        model: &model,
        hello: &hello,
        admit: &admit,
        trust: trust.as_ref(),
        resolve: operating_system(),
    };
    let doors: Vec<Door> = (topology.services.iter())
        .map(|service| {
            let limits = modulith_transport::Limits { back_off_max: BACK_OFF_MAX, ..Default::default() };
            let peer = known.peer(topology, service, data, limits);
            let upstream = Upstream::new(&service.name, peer, put_http);
            Door { modules: service.modules.clone(), upstream }
        })
        .collect();
    let mut routes = Vec::new();
    for (service, door) in topology.services.iter().zip(&doors) {
        let hosted =
            model.modules.iter().filter(|module| service.modules.iter().any(|name| name == module.name));
        for module in hosted {
            let target = || Target::Service(door.upstream.clone());
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
    let doors = Arc::new(Doors(doors));
    let begins_sagas = |module: &&ModuleModel| !module.plans.is_empty();
    let mut of_sagas: Vec<String> =
        model.modules.iter().filter(begins_sagas).map(|module| module.name.to_owned()).collect();
    of_sagas.sort();
    let alive = Router::new().route("/healthz", get(|| async { "alive\n" }));
    let readyz = Router::new().route(
        "/readyz",
        get({
            let (doors, lately) = (doors.clone(), Arc::new(Lately::default()));
            // Anybody may ask, as often as he wants.
            move || async move { readiness(lately.found(HEALTH_KEPT, doors.missing()).await) }
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
    routes.extend(expose::document(&model, topology).map(|(path, router)| (path, Target::Here(router))));
    let here = [("/healthz", alive), ("/readyz", readyz), (operate::PATH, sagas)];
    let prefixes = routes.iter().map(|(prefix, _)| &**prefix).chain(here.iter().map(|(prefix, _)| *prefix));
    let http = HttpMeters::new(prefixes.chain([metrics::PATH])).map_err(StartError::Routes)?;
    let own = Metrics::new(GATEWAY, &[], []);
    let upstreams = doors.0.iter().map(|door| &door.upstream);
    let peers = upstreams.map(|service| (service.name().to_owned(), service.peer().clone())).collect();
    let pressure = Pressure::default();
    let shown = Shown {
        metrics: Arc::new(own),
        http: Arc::new(http),
        pressure: pressure.clone(),
        peers,
        externals: Vec::new(),
        hosts: None,
    };
    let scrape = {
        let (doors, shown) = (doors.clone(), shown.clone());
        move || {
            let (doors, shown) = (doors.clone(), shown.clone());
            async move { metrics::answer(doors.metrics(shown.text()).await) }
        }
    };
    for (prefix, router) in here {
        routes.push((prefix.to_owned(), Target::Here(finish(router))));
    }
    let scraped = Router::new().route(metrics::PATH, get(scrape.clone()));
    routes.push((metrics::PATH.to_owned(), Target::Here(finish(scraped))));
    let routes = RouteTable::new(routes).map_err(StartError::Routes)?;
    let callers = expose::callers(topology, data)?;
    let sampling = topology.telemetry.sampling;
    let edge = Edge::new(keys.sessions.clone(), keys.admin.clone(), Limits::default(), sampling);
    let edge = edge.callers(callers).under(pressure);
    let door = Metered::new(shown.http, edge.layer(Gateway::new(routes)));

    let (listener, address) = bind(listen).await?;
    let url = format!("http://{address}");
    for door in &doors.0 {
        let peer = door.upstream.peer().clone();
        // Connecting begins now and goes on by itself, so that no first request waits for it.
        tokio::spawn(async move { peer.connected(Instant::now() + HEALTH_TIME_MAX).await });
    }
    // The gateway is ready when it listens; whether the services are is what /readyz tells.
    ready(control, &url);
    let connections = CancellationToken::new();
    let served = tokio::spawn(serve(listener, door, connections.clone()));
    show_metrics(topology, scrape, &connections).await?;
    stop.cancelled().await;
    tracing::info!("stopping");
    control.tell("stopping");
    if let Some(watched) = watched {
        watched.abort();
    }
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
    modules: Vec<String>,
    upstream: Upstream,
}

struct Doors(Vec<Door>);

impl Door {
    async fn ask(&self, path: &str) -> Response {
        let request = Request::get(path).body(Body::empty()).expect("what is asked here is a path");
        let context = Context {
            deadline: Some(Instant::now() + HEALTH_TIME_MAX),
            ..Context::background("gateway-health")
        };
        self.upstream.ask(request, &context).await
    }
}

/// What was found last, which is told to all who ask soon after; those who ask meanwhile wait for it.
#[derive(Default)]
struct Lately<T>(Mutex<Option<(Instant, T)>>);

impl<T: Clone> Lately<T> {
    /// What was found at most `kept` ago, or what `find` finds now.
    async fn found(&self, kept: Duration, find: impl Future<Output = T>) -> T {
        let mut last = self.0.lock().await;
        let found = match last.take() {
            Some((at, found)) if at.elapsed() < kept => (at, found),
            _ => {
                let found = find.await;
                (Instant::now(), found)
            }
        };
        last.insert(found).1.clone()
    }
}

impl Doors {
    async fn missing(&self) -> Vec<String> {
        let asked = self.0.iter().map(|door| async move {
            let response = door.ask("/readyz").await;
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
            missing.into_iter().map(|what| format!("service `{}`: {what}", door.upstream.name())).collect()
        });
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// The metrics of all processes, `own` among them. A service that does not answer in time has `up` at 0 and no more.
    async fn metrics(&self, own: String) -> String {
        let asked = self.0.iter().map(|door| async move {
            let response = door.ask(metrics::PATH).await;
            if !response.status().is_success() {
                return None;
            }
            let body = axum::body::to_bytes(response.into_body(), METRICS_BYTES_MAX).await.ok()?;
            String::from_utf8(body.into()).ok()
        });
        let answers = futures_util::future::join_all(asked).await;
        let services = self.0.iter().map(|door| door.upstream.name());
        let up = metrics::up(services.zip(answers.iter().map(Option::is_some)));
        metrics::merged([&*up, &own].into_iter().chain(answers.iter().flatten().map(String::as_str)))
    }

    /// One page of a module's sagas, from the service that hosts it.
    async fn sagas(&self, module: &str, wanted: &Wanted) -> Result<Listed, String> {
        let hosts = |door: &&Door| door.modules.iter().any(|name| name == module);
        let door = self.0.iter().find(hosts).ok_or("no service hosts it")?;
        let response = door.ask(&format!("{}/{module}?{}", operate::PATH, wanted.query())).await;
        let service = door.upstream.name();
        let status = response.status();
        match json::<Listed>(response).await {
            Some(page) if status.is_success() => Ok(page),
            _ if !status.is_success() => Err(format!("service `{service}` answers {status}")),
            _ => Err(format!("the answer of service `{service}` cannot be read, or is too long")),
        }
    }
}

/// A service's short answer.
async fn json<T: serde::de::DeserializeOwned>(response: Response) -> Option<T> {
    let body = axum::body::to_bytes(response.into_body(), ANSWER_BYTES_MAX).await.ok()?;
    serde_json::from_slice(&body).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn those_who_ask_at_once_are_told_what_one_has_found() {
        let (lately, asked) = (Lately::default(), AtomicU32::new(0));
        let find = || async {
            tokio::task::yield_now().await;
            asked.fetch_add(1, Ordering::Relaxed)
        };
        let day = Duration::from_secs(86_400);
        let ask = |kept| lately.found(kept, find());
        assert_eq!(futures_util::future::join_all((0..10).map(|_| ask(day))).await, [0; 10]);
        assert_eq!(ask(day).await, 0);
        assert_eq!((ask(Duration::ZERO).await, ask(day).await), (1, 1));

        // Who goes away while he is the one who asks leaves it to the next.
        let mut gone = Box::pin(ask(Duration::ZERO));
        assert!(futures_util::poll!(&mut gone).is_pending());
        drop(gone);
        assert_eq!(ask(day).await, 2);
    }
}
