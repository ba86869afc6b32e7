//! Contracts for programs that are none of ours: `POST /call/{contract}/{method}`, JSON in and out.
//!
//! Only what `[expose]` names, and only to callers whose section names it too; an operator may call all of it. Behind
//! the JSON it is the way that calls of other services take. A method whose answer or refusal holds a secret is left
//! out: inside, the type keeps a secret from logs; nothing would keep it once it is JSON at a stranger's.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use modulith_core::{
    CallFault, Context, ContractModel, Handler, MethodModel, NotRun, NotRunReason, Outcome, SECRET_MARK,
    Unknown, UnknownReason,
};
use modulith_gateway::http::{Calling, Path, Problem, Raw, finish};
use modulith_gateway::{AccessToken, CALL, Caller, KeyError, OPENAPI};
use serde_json::Value;

use crate::calls::{Keyed, Told};
use crate::hosted::{CLIENT_KEYS_KEPT_MS, Found, Hosted, client_step_key};
use crate::model::AppModel;
use crate::topology::Topology;

/// The programs that a topology lets in, with their tokens; one that names no file has its own made in `keys`.
pub(crate) fn callers(topology: &Topology, data: &std::path::Path) -> Result<Vec<Caller>, KeyError> {
    let known = topology.callers.iter().map(|caller| {
        let token = match caller.token_file(data) {
            Some(file) => AccessToken::load(&file),
            None => AccessToken::load_or_create(&data.join("keys"), &caller.made_token()),
        };
        Ok(Caller { name: caller.name.as_str().into(), token: token? })
    });
    known.collect()
}

/// What a topology exposes, without the methods that would tell a secret.
pub(crate) fn contracts(model: &AppModel, topology: &Topology) -> Vec<ContractModel> {
    let served = model.modules.iter().flat_map(|module| &module.contracts);
    let exposed = served.filter(|contract| topology.exposed.iter().any(|name| name == contract.name));
    exposed
        .map(|contract| ContractModel {
            methods: contract.methods.iter().filter(|method| !tells_a_secret(method)).cloned().collect(),
            ..contract.clone()
        })
        .collect()
}

fn tells_a_secret(method: &MethodModel) -> bool {
    fn has_mark(schema: &Value) -> bool {
        match schema {
            Value::Object(fields) => {
                fields.get(SECRET_MARK).is_some_and(|mark| *mark == Value::Bool(true))
                    || fields.values().any(has_mark)
            }
            Value::Array(items) => items.iter().any(has_mark),
            _ => false,
        }
    }
    has_mark(&method.answer) || has_mark(&method.refused)
}

/// The prefix of a contract's calls.
pub(crate) fn prefix(contract: &str) -> String {
    format!("{CALL}/{contract}")
}

/// The document of what is exposed, for the front door; nothing where nothing is.
pub(crate) fn document(model: &AppModel, topology: &Topology) -> Option<(String, Router)> {
    let contracts = contracts(model, topology);
    if contracts.is_empty() {
        return None;
    }
    let document: bytes::Bytes = crate::openapi::document(model.name, &contracts).to_string().into();
    let answer = move |_: Calling| {
        let json = HeaderValue::from_static("application/json");
        std::future::ready(([(CONTENT_TYPE, json)], document.clone()))
    };
    Some((OPENAPI.to_owned(), finish(Router::new().route(OPENAPI, get(answer)))))
}

/// What is exposed, or what one external service has to answer, for the command line.
///
/// # Errors
///
/// Nothing is exposed, or there is no such service; with what would mend it.
pub(crate) fn printed(
    model: &AppModel,
    topology: &Topology,
    external: Option<&str>,
) -> Result<Value, String> {
    let (title, contracts) = match external {
        None => (model.name, contracts(model, topology)),
        Some(name) => {
            let wanted = topology.externals.iter().find(|external| external.name == name);
            let wanted = wanted.ok_or_else(|| format!("there is no `[external.{name}]`"))?;
            let mut needs: Vec<ContractModel> = Vec::new();
            for need in model.modules.iter().flat_map(|module| &module.needs) {
                let is_new = !needs.iter().any(|known| known.name == need.name);
                if is_new && wanted.contracts.iter().any(|contract| contract == need.name) {
                    needs.push(need.clone());
                }
            }
            (name, needs)
        }
    };
    match contracts.is_empty() {
        true => {
            Err("no contract is exposed; write `[expose]` and below it `contracts = [\"NAME\"]`".to_owned())
        }
        false => Ok(crate::openapi::document(title, &contracts)),
    }
}

/// The calls of the contracts that this process hosts.
pub(crate) fn routes(model: &AppModel, topology: &Topology, hosted: &Arc<Hosted>) -> Vec<(String, Router)> {
    let here = contracts(model, topology)
        .into_iter()
        .filter(|contract| hosted.modules().of(contract.name).is_some());
    let methods: BTreeMap<_, Vec<_>> = here
        .map(|contract| (contract.name, contract.methods.iter().map(|method| method.name).collect()))
        .collect();
    let prefixes: Vec<String> = methods.keys().map(|contract| prefix(contract)).collect();
    let allowed =
        topology.callers.iter().map(|caller| (caller.name.clone(), caller.contracts.clone())).collect();
    let exposed = Arc::new(Exposed { hosted: hosted.clone(), methods, allowed });
    let router = finish(Router::new().route("/call/{contract}/{method}", post(call)).with_state(exposed));
    prefixes.into_iter().map(|prefix| (prefix, router.clone())).collect()
}

struct Exposed {
    hosted: Arc<Hosted>,
    /// By contract.
    methods: BTreeMap<&'static str, Vec<&'static str>>,
    /// What each caller may call.
    allowed: BTreeMap<String, Vec<String>>,
}

impl Exposed {
    /// Whether the caller's section names the contract, or this method of it.
    fn may_call(&self, caller: &str, contract: &str, method: &str) -> bool {
        let allows = |allowed: &String| match allowed.split_once('.') {
            None => allowed == contract,
            Some(pair) => pair == (contract, method),
        };
        self.allowed.get(caller).is_some_and(|allowed| allowed.iter().any(allows))
    }
}

async fn call(
    State(exposed): State<Arc<Exposed>>,
    Calling(caller): Calling,
    Path((contract, method)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    if let Some(caller) = caller
        && !exposed.may_call(&caller, &contract, &method)
    {
        return Err(undeclared(&caller, &contract, &method));
    }
    let methods = exposed.methods.get(&*contract).ok_or_else(Problem::not_found)?;
    if !methods.contains(&&*method) {
        return Err(Problem::not_found());
    }
    let found = exposed.hosted.find(&contract, &method)?;
    let json = found.served().codec.json;
    let is_query = matches!(found.served().handler, Handler::Query { .. });
    let raw = Raw::from_request(request, &()).await?;
    let deadline = Context::current().deadline_or_default();
    let told = tokio::time::timeout_at(deadline.into(), run(&exposed.hosted, found, raw)).await;
    let told = told.unwrap_or_else(|_late| {
        // The edge would answer too, and cannot tell a query from the rest.
        Ok(match is_query {
            true => NotRun::new(NotRunReason::Deadline, "the query took too long").into(),
            false => CallFault::from(Unknown::new(UnknownReason::Deadline, "no answer in time")).into(),
        })
    })?;
    let done = |answer: &[u8]| match (json.write_answer)(answer) {
        Ok(body) => Ok(answered(body)),
        Err(fault) => Err(Unknown::new(UnknownReason::Unreadable, fault.message).into()),
    };
    match told {
        Told::Outcome(Outcome::Done(answer)) => done(&answer),
        Told::Written(sent) => done(&sent[1..]),
        Told::Outcome(Outcome::Refused(record)) => {
            // As the contract spells it; a field that has this name too is not shown.
            let code = record.code.clone();
            Err(Problem::from(record).with("code", code))
        }
        Told::NotRun(not_run) => Err(not_run.into()),
        Told::Unknown(unknown) => Err(unknown.into()),
        Told::Saga(_) => Err(Unknown::new(UnknownReason::Unreadable, "an answer of another kind").into()),
    }
}

/// As another service's call would be, from JSON.
async fn run(hosted: &Arc<Hosted>, found: Found, raw: Raw) -> Result<Told, Problem> {
    let json = found.served().codec.json;
    let read = |bytes: &[u8]| (json.read_request)(bytes).map(bytes::Bytes::from);
    let (contract, method) = (found.contract_name(), found.served().name);
    let context = Context::current();
    Ok(match found.served().handler {
        Handler::Query { heavy, .. } => match (read(&raw.bytes)?, heavy) {
            (request, true) => {
                hosted.clone().heavy_query(context.deadline_or_default(), found, request, |_| ()).await
            }
            (request, false) => hosted.query(&found, &request),
        },
        Handler::Command { .. } => {
            let (key, bytes) = raw.keyed()?;
            let keyed = Keyed {
                key: client_step_key(&key, contract, method),
                hash: key.body_hash(),
                kept_ms: CLIENT_KEYS_KEPT_MS,
            };
            let (deadline, request) = (context.deadline_or_default(), read(&bytes)?);
            hosted.command(deadline, found, keyed, request).await.unwrap_or_else(Told::from)
        }
        Handler::Effect { .. } => {
            let (key, bytes) = raw.keyed()?;
            // Shown to the provider, so that a repeat here is a repeat there.
            let key = Some(client_step_key(&key, contract, method));
            hosted.call_effect(found, read(&bytes)?, Context { key, ..context }).await
        }
    })
}

fn undeclared(caller: &str, contract: &str, method: &str) -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "contract-not-declared",
        "The contract is not among those of this caller",
    )
    .detail(format!(
        "Neither `{contract}` nor `{contract}.{method}` stands in `contracts` of `[caller.{caller}]`."
    ))
}

fn answered(body: Vec<u8>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}
