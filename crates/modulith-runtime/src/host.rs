//! One service: the modules it hosts, their database, their links, their routes, their health.
//!
//! The same code hosts all modules of a monolith, one module of a split, and an application that is mounted in
//! somebody else's program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use modulith_core::{CallFault, Client, ContractModel, PlanModel};
use modulith_data::ModuleCode;
use modulith_data::participant::Participant;
use modulith_data::saga::Modules;
use modulith_data::sqlite::{Database, OpenError, WriterLimits, may_pass};
use modulith_gateway::http::{Problem, finish};
use modulith_gateway::{
    AccessToken, Backend, Caller, Edge, KeyError, Limits, Merged, Pressure, RouteProblem, RouteTable,
    Sampling, SessionKeys,
};
use modulith_transport::{Hello, HelloInfo, Peer, Resolve, Token, Trust, TrustError, operating_system};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::calls::{Answers, Externals, Methods, Peers, RemoteLink, about, admit, resolver};
use crate::check::missing_certificates;
use crate::expose;
use crate::hosted::{Hosted, ProcessKeys};
use crate::metrics::{self, Hosts, HttpMeters, Metered, Metrics, Shown};
use crate::model::AppModel;
use crate::module::{Links, Module};
use crate::operate::service::Operated;
use crate::operate::{self, Contracts};
use crate::placement::{self, PlacementError};
use crate::sagas::{Driven, Sagas};
use crate::topology::{Problems, ServiceSection, Topology};
use crate::world::Surroundings;

/// The paths of the framework's own health endpoints.
pub(crate) const HEALTH: [&str; 2] = ["/healthz", "/readyz"];
/// How often a failed database is looked for.
const BROKEN_EVERY: Duration = Duration::from_millis(100);
/// How often certificates are looked at while nobody connects, so that their end is told in time.
pub(crate) const CERTIFICATES_EVERY: Duration = Duration::from_secs(60 * 60);
/// How often keys and sagas whose retention is over are deleted.
const PRUNE_EVERY: Duration = Duration::from_secs(1);

/// Why a service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Problems(#[from] Problems),
    #[error("{0}")]
    Placement(#[from] PlacementError),
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("{0}")]
    Key(#[from] KeyError),
    #[error("{0}")]
    Trust(#[from] TrustError),
    #[error("HTTP routes: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Routes(Vec<RouteProblem>),
    #[error("no service `{name}` in {topology}; it has: {services}")]
    NoService { name: String, topology: String, services: String },
    #[error("{path}: {error}", path = path.display())]
    Folder { path: PathBuf, error: std::io::Error },
    #[error("cannot listen on {address}: {error}")]
    Listen { address: String, error: std::io::Error },
    #[error("the database cannot be used any more: {0}")]
    Broken(String),
    #[error("{0}")]
    Call(#[from] CallFault),
    #[error("{0}")]
    Fault(#[from] modulith_core::Fault),
}

impl StartError {
    /// Whether starting again cannot help, since what is wrong is written somewhere.
    pub(crate) fn is_configuration(&self) -> bool {
        match self {
            StartError::Open(error) => !error.may_pass(),
            StartError::Folder { error, .. }
            | StartError::Key(KeyError::Io { source: error, .. })
            | StartError::Placement(PlacementError::Io { error, .. }) => !may_pass(error),
            StartError::Broken(_) | StartError::Call(_) | StartError::Listen { .. } => false,
            _ => true,
        }
    }
}

/// The secrets of an installation, in `<data>/keys`, files of mode 0600 made at the first start.
pub(crate) struct Keys {
    pub(crate) sessions: Arc<SessionKeys>,
    pub(crate) admin: AccessToken,
    pub(crate) internal: AccessToken,
}

impl Keys {
    pub(crate) fn load_or_create(data: &Path) -> Result<Self, StartError> {
        let folder = data.join("keys");
        create_private(&folder)?;
        Ok(Self {
            sessions: Arc::new(SessionKeys::load_or_create(&folder)?),
            admin: AccessToken::load_or_create(&folder, "admin.token")?,
            internal: AccessToken::load_or_create(&folder, "internal.token")?,
        })
    }
}

/// Makes the data folder, and refuses a topology that puts a module's data elsewhere than it is.
pub(crate) fn remember(data: &Path, topology: &Topology, model: &AppModel) -> Result<(), StartError> {
    create_private(data)?;
    Ok(placement::remember(data, topology, model)?)
}

/// Makes a folder that nobody else can look into.
pub(crate) fn create_private(folder: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| StartError::Folder { path: folder.to_owned(), error })
}

/// A running service, without its listeners.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) model: AppModel,
    pub(crate) keys: Keys,
    callers: Vec<Caller>,
    pub(crate) routes: RouteTable<Router>,
    pub(crate) answers: Arc<Answers>,
    pub(crate) hello: Hello,
    pub(crate) admit: modulith_transport::Admit,
    /// There if the topology needs certificates.
    pub(crate) trust: Option<Trust>,
    sampling: Sampling,
    pub(crate) shown: Shown,
    health: Arc<Health>,
    database: Arc<Database>,
    walks: TaskTracker,
    background: TaskTracker,
    stop: CancellationToken,
}

/// What readiness is made of.
pub(crate) struct Health {
    recovered: AtomicBool,
    stopping: CancellationToken,
    peers: Arc<Peers>,
    database: Arc<Database>,
}

impl Health {
    /// What is missing; nothing when the service is ready.
    pub(crate) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.stopping.is_cancelled() {
            missing.push("the service stops".to_owned());
        }
        if !self.recovered.load(Ordering::Relaxed) {
            missing.push("unfinished sagas are being looked up".to_owned());
        }
        if let Some(broken) = self.database.broken() {
            missing.push(format!("database: {broken}"));
        }
        missing
            .extend(self.peers.missing().into_iter().map(|(name, why)| format!("service `{name}`: {why}")));
        missing
    }
}

impl Host {
    /// Opens the database, resolves every need, builds the routes and begins to walk unfinished sagas.
    pub(crate) async fn start(
        app: &App,
        topology: &Topology,
        name: &str,
        data: &Path,
    ) -> Result<Self, StartError> {
        let (modules, model) = app.declare(topology)?;
        let section = topology.service(name).ok_or_else(|| StartError::NoService {
            name: name.to_owned(),
            topology: source(topology),
            services: topology.services.iter().map(|service| &*service.name).collect::<Vec<_>>().join(", "),
        })?;
        remember(data, topology, &model)?;
        let keys = Keys::load_or_create(data)?;
        // In a split it is the gateway that lets them in.
        let callers = if topology.is_monolith() { expose::callers(topology, data)? } else { Vec::new() };
        let trust = trust(app.name, topology, name)?;

        let (mut hosted_modules, plans) = sort_out(modules, &section.modules);
        let migrations: Vec<_> =
            hosted_modules.iter().map(|module| (Arc::from(module.name), module.migrations)).collect();
        let path = topology.database_path(section, data);
        let database =
            tokio::task::spawn_blocking(move || Database::open(&path, &migrations, WriterLimits::default()))
                .await
                .expect("opening a database does not panic")?;
        let database = Arc::new(database);

        let codes: Vec<_> = hosted_modules
            .iter_mut()
            .map(|module| Arc::new(ModuleCode::new(module.name, std::mem::take(&mut module.serves))))
            .collect();
        let process_keys = Arc::new(ProcessKeys::new());
        let modules = Modules::new(&codes);
        let needs: Vec<ContractModel> =
            hosted_modules.iter().flat_map(|module| module.needs.clone()).collect();
        let serves: Vec<ContractModel> = codes
            .iter()
            .flat_map(|code| code.contracts.iter().map(|served| served.contract.clone()))
            .collect();
        let about = about(&serves, &needs)?;
        let admit = admit(about.clone());
        let hello = Hello {
            service: name.to_owned(),
            incarnation: *process_keys.incarnation().as_bytes(),
            token: Token::new(keys.internal.expose()),
            about,
        };
        let known = Known {
            model: &model,
            hello: &hello,
            admit: &admit,
            trust: trust.as_ref(),
            resolve: operating_system(),
        };
        let peers = Arc::new(connect_peers(topology, data, &needs, &modules, &known));
        let called = peers.services().enumerate().map(|(at, (peer, _))| {
            let at_peer = |need: &&ContractModel| peers.of(need.name) == Some(at);
            (peer.to_owned(), needs.iter().filter(at_peer).collect())
        });
        let metrics = Arc::new(Metrics::new(name, &serves, called));
        let stopping = CancellationToken::new();
        let world = Arc::new(Surroundings {
            database: database.clone(),
            peers: peers.clone(),
            stopping: stopping.clone(),
            metrics: metrics.clone(),
        });
        let participant = Arc::new(Participant::new(world, modules, plans));
        let hosted = Arc::new(Hosted {
            database: database.clone(),
            participant,
            keys: process_keys.clone(),
            metrics: metrics.clone(),
        });

        let externals = Externals::new(topology, &needs, data, process_keys.clone())?;
        let (walks, background) = (TaskTracker::new(), TaskTracker::new());
        let (mut routers, sagas) =
            build_modules(hosted_modules, &hosted, &peers, &externals, &process_keys, &keys, &walks);
        let health = Arc::new(Health {
            recovered: AtomicBool::new(false),
            stopping,
            peers: peers.clone(),
            database: database.clone(),
        });
        let operated = Operated { sagas: sagas.clone(), contracts: Contracts::new(&model, topology) };
        routers.extend(framework_routes(health.clone(), operated));
        routers.extend(expose::routes(&model, topology, &hosted));
        if topology.is_monolith() {
            routers.extend(expose::document(&model, topology));
        }
        let prefixes = routers.iter().map(|(prefix, _)| &**prefix).chain([metrics::PATH]);
        let http = Arc::new(HttpMeters::new(prefixes).map_err(StartError::Routes)?);
        let hosts = Hosts { database: database.clone(), sagas: sagas.clone() };
        let called = peers.services().map(|(name, peer)| (name.to_owned(), peer.clone())).collect();
        let pressure = Pressure::default();
        let shown = Shown {
            metrics,
            http,
            pressure: pressure.clone(),
            peers: called,
            externals: externals.all(),
            hosts: Some(hosts),
        };
        routers.push(metrics::routes(shown.clone()));
        let routes = RouteTable::new(routers).map_err(StartError::Routes)?;
        let http = Backend::new(routes.clone(), Limits::default()).under(pressure);
        let methods = Methods::new(&hosted)?;

        let host = Self {
            name: name.to_owned(),
            model,
            keys,
            callers,
            routes,
            answers: Arc::new(Answers { methods, hosted: hosted.clone(), http }),
            hello,
            admit,
            trust,
            sampling: topology.telemetry.sampling,
            shown,
            health: health.clone(),
            database,
            walks,
            background,
            stop: CancellationToken::new(),
        };
        host.begin_background(peers, sagas, hosted, health);
        Ok(host)
    }

    fn begin_background(
        &self,
        peers: Arc<Peers>,
        sagas: Vec<Driven>,
        hosted: Arc<Hosted>,
        health: Arc<Health>,
    ) {
        let until_stop = |work| {
            let stop = self.stop.clone();
            self.background.spawn(async move { stop.run_until_cancelled(work).await });
        };
        if let Some(trust) = self.trust.clone() {
            let connect: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(watch(trust));
            until_stop(connect);
        }
        let connect: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(async move { peers.connect().await });
        until_stop(connect);
        until_stop(Box::pin({
            let sagas = sagas.clone();
            async move {
                for sagas in &sagas {
                    if let Err(fault) = sagas.sweep().await {
                        tracing::error!(
                            module = sagas.sagas.module(),
                            "cannot look up unfinished sagas: {fault}"
                        );
                        return;
                    }
                }
                health.recovered.store(true, Ordering::Relaxed);
            }
        }));
        until_stop(Box::pin(async move {
            let mut ticks = tokio::time::interval(PRUNE_EVERY);
            let mut set_back = None;
            loop {
                ticks.tick().await;
                if let Some(behind) = modulith_data::clock::set_back()
                    && set_back.replace(behind).is_none()
                {
                    let seconds = behind.as_secs();
                    tracing::warn!(seconds, "the wall clock was set back; this process does not follow it");
                }
                for Driven { sagas, .. } in &sagas {
                    if let Err(fault) = sagas.prune().await {
                        tracing::warn!(module = sagas.module(), "cannot prune sagas: {fault}");
                    }
                }
                if let Err(fault) = hosted.participant.prune().await {
                    tracing::warn!("cannot prune keys: {fault}");
                }
            }
        }));
    }

    pub(crate) fn health(&self) -> Arc<Health> {
        self.health.clone()
    }

    /// The public edge over the modules of this process, for a monolith.
    pub(crate) fn edge(
        &self,
    ) -> impl tower::Service<
        axum::extract::Request,
        Response = axum::response::Response,
        Error = std::convert::Infallible,
        Future: Send,
    > + Clone
    + Send
    + Sync
    + 'static {
        let (sessions, admin) = (self.keys.sessions.clone(), self.keys.admin.clone());
        let edge = Edge::new(sessions, admin, Limits::default(), self.sampling);
        let edge = edge.callers(self.callers.clone()).under(self.shown.pressure.clone());
        let edged = tower::Layer::layer(&edge, Merged::new(self.routes.clone()));
        Metered::new(self.shown.http.clone(), edged)
    }

    /// Returns when the database has failed a sync: what it holds is known only after it is opened again, so the
    /// process has to end and start again.
    pub(crate) async fn broken(&self) -> String {
        loop {
            match self.database.broken() {
                Some(reason) => return reason,
                None => tokio::time::sleep(BROKEN_EVERY).await,
            }
        }
    }

    /// From now on the service is not ready; what runs goes on.
    pub(crate) fn begin_stop(&self) {
        self.health.stopping.cancel();
    }

    /// Lets walks end for at most `drain`, then closes the database. A walk that is cut goes on at the next start.
    pub(crate) async fn stop(self, drain: Duration) {
        self.begin_stop();
        self.walks.close();
        if tokio::time::timeout(drain, self.walks.wait()).await.is_err() {
            tracing::info!(sagas = self.walks.len(), "sagas go on at the next start");
        }
        self.stop.cancel();
        self.background.close();
        self.background.wait().await;
        let database = self.database.clone();
        if tokio::task::spawn_blocking(move || database.close()).await.is_err() {
            tracing::error!("closing the database panicked");
        }
    }
}

/// The modules to host, and the plans of the whole application.
fn sort_out(
    modules: Vec<Module>,
    hosted: &[String],
) -> (Vec<Module>, BTreeMap<&'static str, Arc<PlanModel>>) {
    let plans = modules.iter().flat_map(|module| &module.plans);
    let plans =
        plans.filter_map(|entry| entry.plan.as_ref().ok()).map(|plan| (plan.name, Arc::new(plan.clone())));
    let plans = plans.collect();
    let hosted = modules.into_iter().filter(|module| hosted.iter().any(|name| name == module.name)).collect();
    (hosted, plans)
}

/// What a process knows of itself and of others when it connects.
pub(crate) struct Known<'a> {
    pub(crate) model: &'a AppModel,
    pub(crate) hello: &'a Hello,
    pub(crate) admit: &'a modulith_transport::Admit,
    pub(crate) trust: Option<&'a Trust>,
    pub(crate) resolve: Resolve,
}

impl Known<'_> {
    /// The way to a service, where the topology says that it listens, over TLS if it has to be, and to one process of what
    /// stores something.
    pub(crate) fn peer(
        &self,
        topology: &Topology,
        service: &ServiceSection,
        data: &Path,
        limits: modulith_transport::Limits,
    ) -> Peer {
        let addresses = topology.call_addresses(service, data);
        let (hello, admit) = (self.hello.clone(), only(&service.name, self.admit.clone()));
        let trust = self.trust.filter(|_| topology.is_over_tls(service));
        let tls = trust.map(|trust| (trust.clone(), service.name.clone()));
        let resolve = resolver(self.model, service, self.resolve.clone());
        Peer::resolved_by(resolve, addresses, hello, admit, limits, tls)
    }
}

/// Never ends.
pub(crate) async fn watch(trust: Trust) {
    let mut ticks = tokio::time::interval(CERTIFICATES_EVERY);
    loop {
        ticks.tick().await;
        trust.refresh();
    }
}

/// The certificate of a process, if its topology needs any.
pub(crate) fn trust(
    application: &str,
    topology: &Topology,
    process: &str,
) -> Result<Option<Trust>, StartError> {
    if !topology.needs_certificates() {
        return Ok(None);
    }
    Problems::none_of(missing_certificates(topology, application, [process]))?;
    Ok(Some(Trust::load(application, process, topology.trust_files(process))?))
}

fn connect_peers(
    topology: &Topology,
    data: &Path,
    needs: &[ContractModel],
    modules: &Modules,
    known: &Known<'_>,
) -> Peers {
    let mut services: Vec<(String, Peer)> = Vec::new();
    let mut of_contract = BTreeMap::new();
    for contract in needs.iter().map(|need| need.name).collect::<BTreeSet<_>>() {
        let provider = known.model.provider(contract).and_then(|module| topology.service_of(module.name));
        let Some(service) = provider.filter(|_| modules.of(contract).is_none()) else {
            continue;
        };
        let position = services.iter().position(|(name, _)| *name == service.name).unwrap_or_else(|| {
            let peer = known.peer(topology, service, data, modulith_transport::Limits::default());
            services.push((service.name.clone(), peer));
            services.len() - 1
        });
        of_contract.insert(contract, position);
    }
    Peers::new(services, of_contract)
}

/// Admits the service that was meant and no other, such as one that has the port of an earlier start.
fn only(service: &str, admit: modulith_transport::Admit) -> modulith_transport::Admit {
    let meant = service.to_owned();
    Arc::new(move |other: &HelloInfo| {
        if other.service != meant {
            return Err(format!("service `{}` answers where `{meant}` was called", other.service));
        }
        admit(other)
    })
}

type Routers = Vec<(String, Router)>;

fn build_modules(
    modules: Vec<Module>,
    hosted: &Arc<Hosted>,
    peers: &Arc<Peers>,
    externals: &Externals,
    keys: &Arc<ProcessKeys>,
    secrets: &Keys,
    walks: &TaskTracker,
) -> (Routers, Vec<Driven>) {
    let mut routers = Routers::new();
    let mut all_sagas = Vec::new();
    for module in modules {
        let plans: BTreeMap<_, _> = (module.plans.iter())
            .filter_map(|entry| {
                hosted.participant.plans().get(entry.name).map(|plan| (entry.name, plan.clone()))
            })
            .collect();
        let driven = (!plans.is_empty()).then(|| {
            let identity = hosted.database.identity();
            let (sagas, started) = Sagas::new(module.name, &identity, hosted.participant.clone(), &plans);
            Driven::new(sagas, started, walks.clone())
        });
        let links = Links {
            module: module.name,
            clients: clients(&module, hosted, peers, externals, keys),
            optional: module.optional.clone(),
            sagas: driven.clone().map(|driven| Arc::new(driven) as _),
            plans: module.plans.iter().map(|entry| entry.saga).collect(),
            session_keys: secrets.sessions.clone(),
        };
        if let Some(routes) = module.routes {
            let router = finish(routes(&links));
            routers.extend(module.prefixes.iter().map(|prefix| ((*prefix).to_owned(), router.clone())));
        }
        if let Some(routes) = module.admin_routes {
            let prefix = format!("/admin/{}", module.name);
            let router = finish(Router::new().nest(&prefix, routes(&links)));
            routers.push((prefix, router));
        }
        all_sagas.extend(driven);
    }
    (routers, all_sagas)
}

/// Clients for what a module needs and for what it serves itself.
fn clients(
    module: &Module,
    hosted: &Arc<Hosted>,
    peers: &Arc<Peers>,
    externals: &Externals,
    keys: &Arc<ProcessKeys>,
) -> BTreeMap<&'static str, Client> {
    let own = hosted.modules().all().into_iter().filter(|code| &*code.name == module.name);
    let own: Vec<&'static str> = own
        .flat_map(|code| code.contracts.iter().map(|served| served.contract.name).collect::<Vec<_>>())
        .collect();
    let contracts = module.needs.iter().map(|need| need.name).chain(own);
    contracts
        .filter_map(|contract| {
            let client = match hosted.link(contract) {
                Some(link) => Client::local(Arc::new(link)),
                None => match peers.of(contract) {
                    Some(service) => Client::remote(Arc::new(RemoteLink {
                        service,
                        peers: peers.clone(),
                        keys: keys.clone(),
                        meters: hosted.metrics.peers[service].calls.contract(contract)?.clone(),
                        metrics: hosted.metrics.clone(),
                    })),
                    None => Client::remote(Arc::new(externals.link(contract)?)),
                },
            };
            Some((contract, client))
        })
        .collect()
}

/// What every service answers beside its modules: health, and its sagas for operators.
fn framework_routes(health: Arc<Health>, operated: Operated) -> Routers {
    let alive = finish(Router::new().route("/healthz", get(|| async { "alive\n" })));
    let ready =
        finish(Router::new().route("/readyz", get(move || std::future::ready(readiness(health.missing())))));
    vec![("/healthz".into(), alive), ("/readyz".into(), ready), operate::service::routes(operated)]
}

/// 200, or 503 with what is missing.
pub(crate) fn readiness(missing: Vec<String>) -> axum::response::Response {
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    Problem::new(http::StatusCode::SERVICE_UNAVAILABLE, "not-ready", "Not ready")
        .with("missing", missing)
        .into_response()
}

/// How a topology is called in messages.
pub(crate) fn source(topology: &Topology) -> String {
    topology
        .file
        .as_ref()
        .map_or_else(|| "the built-in topology".to_owned(), |file| file.display().to_string())
}
