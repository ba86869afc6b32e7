//! What a process counts of itself, for Prometheus.
//!
//! Every label's values are fixed when the process starts, from the application's model and the topology: an id, a path
//! or anything else that a caller makes up is never one, so memory and answer do not grow with use. Counting is a few
//! relaxed additions on handles that are held where calls pass; adding up is the scrape's business.

mod http;
mod meter;
mod process;
mod text;

use std::sync::Arc;
use std::time::SystemTime;

use ::http::HeaderValue;
use ::http::header::CONTENT_TYPE;
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use modulith_core::ContractModel;
use modulith_data::sqlite::Database;
use modulith_gateway::Pressure;
use modulith_gateway::http::finish;
use modulith_transport::{BreakerState, Peer, ReplicaSnapshot, Snapshot};

pub(crate) use http::{HttpMeters, Metered};
pub(crate) use meter::{CallMeter, ContractMeters, Counter, Ended, Meters};
pub(crate) use text::merged;

use crate::calls::External;
use crate::sagas::Driven;
use text::{Labels, Text};

/// Where a process answers with them; the edge asks for the admin token, a service for the internal one.
pub(crate) const PATH: &str = "/admin/metrics";

/// The counters of one process.
pub(crate) struct Metrics {
    service: String,
    started: SystemTime,
    /// In the order of [`Peers`](crate::calls::Peers).
    pub(crate) peers: Vec<PeerMeters>,
    /// Calls that other services make here.
    pub(crate) answers: Meters,
}

/// Calls to one other service, of ours or external.
pub(crate) struct PeerMeters {
    peer: String,
    pub(crate) calls: Meters,
    /// Attempts behind the first.
    pub(crate) retries: Counter,
}

impl PeerMeters {
    /// `contracts`: those that are called there.
    pub(crate) fn new<'a>(peer: String, contracts: impl IntoIterator<Item = &'a ContractModel>) -> Self {
        Self { peer, calls: Meters::new(contracts), retries: Counter::default() }
    }
}

impl Metrics {
    /// `peers` names the services that this one calls, each with the contracts it calls there.
    pub(crate) fn new<'a>(
        service: &str,
        serves: &'a [ContractModel],
        peers: impl IntoIterator<Item = (String, Vec<&'a ContractModel>)>,
    ) -> Self {
        let peers = peers.into_iter().map(|(peer, contracts)| PeerMeters::new(peer, contracts));
        Self {
            service: service.to_owned(),
            started: SystemTime::now(),
            peers: peers.collect(),
            answers: Meters::new(serves),
        }
    }
}

/// Everything that a process shows.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) metrics: Arc<Metrics>,
    /// Of a process that answers requests from outside, and of one that does so for its gateway.
    pub(crate) http: Arc<HttpMeters>,
    /// These requests, as far as they are in progress.
    pub(crate) pressure: Pressure,
    /// The services that are called.
    pub(crate) peers: Vec<(String, Peer)>,
    /// And those that are none of ours.
    pub(crate) externals: Vec<Arc<External>>,
    /// Absent in a gateway.
    pub(crate) hosts: Option<Hosts>,
}

/// What a process that hosts modules has beside its counters.
#[derive(Clone)]
pub(crate) struct Hosts {
    pub(crate) database: Arc<Database>,
    pub(crate) sagas: Vec<Driven>,
}

impl Shown {
    pub(crate) fn text(&self) -> String {
        let mut text = Text::new(&self.metrics.service);
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        text.family("modulith_build_info", "gauge", "The version of modulith; always 1.");
        text.sample("modulith_build_info", &labels, 1);
        process::write(&mut text, self.metrics.started);
        self.http.write(&mut text);
        self.pressure(&mut text);
        self.peers(&mut text);
        if let Some(hosts) = &self.hosts {
            self.calls(&mut text);
            hosts.writer(&mut text);
            hosts.sagas(&mut text);
        }
        text.finish()
    }

    fn pressure(&self, text: &mut Text<'_>) {
        let pressure = self.pressure.snapshot();
        let name = "modulith_http_in_progress";
        text.single(name, "gauge", "Requests taken whose answer has not begun.", pressure.in_progress);
        let name = "modulith_http_refused_total";
        let help = "Requests refused because the process cannot keep up.";
        text.single(name, "counter", help, pressure.refused);
        let name = "modulith_http_taken_share";
        text.single(name, "gauge", "The share of new requests that is taken.", pressure.share);
        let name = "modulith_turn_wait_seconds";
        let help = "How long what can go on waits for its turn, when it was last measured.";
        text.single(name, "gauge", help, pressure.wait.as_secs_f64());
    }

    fn peers(&self, text: &mut Text<'_>) {
        let ours: Vec<_> = self.peers.iter().map(|(name, peer)| (&**name, peer.snapshot())).collect();
        let others = self.externals.iter().map(|external| (external.name(), external.snapshot()));
        let all: Vec<_> = ours.iter().cloned().chain(others).collect();
        let mut family = |of: &[(&str, Snapshot)],
                          name: &str,
                          kind: &str,
                          help: &str,
                          value: &dyn Fn(&Snapshot) -> u64| {
            text.family(name, kind, help);
            for (peer, snapshot) in of {
                text.sample(name, &[("peer", peer)], value(snapshot));
            }
        };
        let replicas = |snapshot: &Snapshot, is: fn(&ReplicaSnapshot) -> bool| {
            snapshot.replicas.iter().filter(|replica| is(replica)).count() as u64
        };
        family(
            &all,
            "modulith_calls_in_flight",
            "gauge",
            "Calls sent to another service that are not answered, and those that wait for a connection.",
            &|snapshot| snapshot.in_flight as u64,
        );
        family(
            &ours,
            "modulith_peer_replicas_connected",
            "gauge",
            "Replicas of another service that are connected.",
            &|snapshot| replicas(snapshot, |replica| replica.is_connected),
        );
        family(
            &ours,
            "modulith_peer_replicas_ejected",
            "gauge",
            "Replicas of another service that are left out because calls to them failed.",
            &|snapshot| replicas(snapshot, |replica| replica.is_ejected),
        );
        family(
            &all,
            "modulith_breaker_state",
            "gauge",
            "The breaker of another service: 0 closed, 1 half-open, 2 open.",
            &|snapshot| match snapshot.breaker {
                BreakerState::Closed => 0,
                BreakerState::HalfOpen => 1,
                BreakerState::Open => 2,
            },
        );
        family(
            &all,
            "modulith_breaker_opened_total",
            "counter",
            "Times that the breaker of another service has opened.",
            &|snapshot| snapshot.breaker_opened,
        );
    }

    fn calls(&self, text: &mut Text<'_>) {
        let externals = self.externals.iter().map(|external| &external.meters);
        let peers = || self.metrics.peers.iter().chain(externals.clone());
        let calls = || {
            peers().flat_map(|peer| {
                rows(&peer.calls).map(|(contract, method, meter)| {
                    (vec![("peer", &*peer.peer), ("contract", contract), ("method", method)], meter)
                })
            })
        };
        let answers = || {
            rows(&self.metrics.answers)
                .map(|(contract, method, meter)| (vec![("contract", contract), ("method", method)], meter))
        };
        let help = "Calls to other services, each with its retries, by outcome.";
        outcomes(text, "modulith_calls_total", help, calls());
        let help = "Time of calls to other services, retries included.";
        times(text, "modulith_call_duration_seconds", help, calls());
        let help = "Calls that other services made here, by outcome.";
        outcomes(text, "modulith_answers_total", help, answers());
        let help = "Time to answer other services.";
        times(text, "modulith_answer_duration_seconds", help, answers());
        let name = "modulith_call_retries_total";
        text.family(name, "counter", "Attempts at a call behind its first.");
        for peer in peers() {
            text.sample(name, &[("peer", &peer.peer)], peer.retries.get());
        }
    }
}

impl Hosts {
    fn writer(&self, text: &mut Text<'_>) {
        let writer = self.database.writer();
        let name = "modulith_writer_queue_length";
        text.single(name, "gauge", "Work that waits for the writer of the database.", writer.waiting);
        let name = "modulith_writer_batches_total";
        text.single(name, "counter", "Batches of work, each committed with one sync.", writer.batches);
        let name = "modulith_writer_work_total";
        text.single(name, "counter", "Pieces of work in these batches.", writer.work);
        let name = "modulith_writer_queue_seconds";
        let help = "How long the youngest work of the last batch had waited.";
        text.single(name, "gauge", help, writer.last_wait.as_secs_f64());
        let name = "modulith_writer_refused_total";
        text.single(name, "counter", "Work that was refused a place in the queue.", writer.shed);
        let name = "modulith_writer_shedding";
        let help = "Whether new work is refused because the queue stays long.";
        text.single(name, "gauge", help, u8::from(writer.is_shedding));
        let name = "modulith_writer_late_total";
        text.single(
            name,
            "counter",
            "Work that was dropped unstarted, too late or no longer waited for.",
            writer.late,
        );
    }

    /// Read from the table of sagas at each scrape. A database that cannot be read shows none.
    fn sagas(&self, text: &mut Text<'_>) {
        let counted: Vec<_> = (self.sagas.iter())
            .filter_map(|Driven { sagas, .. }| {
                let counts = sagas.world().database.read_framework(|db| sagas.table().counts(db));
                Some((sagas.module(), counts.ok()?.ok()?))
            })
            .collect();
        let name = "modulith_sagas_open";
        text.family(name, "gauge", "Sagas that have not ended.");
        for (module, (open, _)) in &counted {
            text.sample(name, &[("module", module)], open);
        }
        let name = "modulith_sagas_attention";
        text.family(name, "gauge", "Open sagas that need a person.");
        for (module, (_, attention)) in &counted {
            text.sample(name, &[("module", module)], attention);
        }
    }
}

/// All rows there are: contract, method, and what was counted.
fn rows(meters: &Meters) -> impl Iterator<Item = (&'static str, &'static str, &CallMeter)> {
    let contracts = meters.contracts.iter().map(|contract| &**contract).chain([&meters.rest]);
    contracts.flat_map(|contract| {
        let methods = contract.methods.iter().map(|(method, meter)| (*method, &**meter));
        let methods = methods.chain([(meter::OTHER, &*contract.other)]);
        methods.map(|(method, meter)| (contract.contract, method, meter))
    })
}

type Row<'a> = (Vec<(&'a str, &'a str)>, &'a CallMeter);

fn outcomes<'a>(text: &mut Text<'_>, name: &str, help: &str, rows: impl Iterator<Item = Row<'a>>) {
    text.family(name, "counter", help);
    for (labels, meter) in rows {
        for (ended, count) in Ended::ALL.iter().zip(meter.ends()) {
            let labels: Labels<'_> = &[&labels[..], &[("outcome", ended.name())]].concat();
            text.sample(name, labels, count);
        }
    }
}

fn times<'a>(text: &mut Text<'_>, name: &str, help: &str, rows: impl Iterator<Item = Row<'a>>) {
    text.family(name, "histogram", help);
    for (labels, meter) in rows {
        text.histogram(name, &labels, &meter.times());
    }
}

/// Which services answered a gateway that asked for their metrics.
pub(crate) fn up<'a>(services: impl Iterator<Item = (&'a str, bool)>) -> String {
    let name = "modulith_service_up";
    let mut texts: Vec<String> = Vec::new();
    for (service, up) in services {
        let mut text = Text::new(service);
        text.single(name, "gauge", "Whether the service answered the gateway.", u8::from(up));
        texts.push(text.finish());
    }
    merged(texts.iter().map(String::as_str))
}

/// The answer to a scrape.
pub(crate) fn answer(text: String) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(text::CONTENT_TYPE))], text).into_response()
}

/// `/admin/metrics` of a process that hosts modules.
pub(crate) fn routes(shown: Shown) -> (String, Router) {
    let scrape = move || {
        let shown = shown.clone();
        async move { answer(shown.text()) }
    };
    (PATH.to_owned(), finish(Router::new().route(PATH, get(scrape))))
}
