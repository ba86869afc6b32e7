//! `NAME sagas list|show|resume|abort`: the operator's side of `/admin/sagas`.
//!
//! It speaks to an application that runs, and never starts one: what an operator asks of a walk lives as long as the
//! process that walks.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use modulith_data::saga::{SagaName, SagaState};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Listed, Ordered, PATH, SAGAS_LISTED_MAX, Shown, Wanted, print};
use crate::client::Running;

/// What is read of one answer: 64 MiB, since a saga is shown with the answers of all its steps.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The subcommand; `place` has the arguments that say where the application and its data are.
pub(crate) fn clap(place: [Arg; 2]) -> clap::Command {
    let place = |command: clap::Command| {
        let url = Arg::new("url").long("url").value_name("URL");
        let json = Arg::new("json").long("json").action(ArgAction::SetTrue);
        command.args(place.clone()).args([
            url.help("where the application runs [default: the front door of the topology]"),
            json.help("print the answer as JSON"),
        ])
    };
    let of_one = |name, about| {
        let id = Arg::new("id").value_name("ID").required(true).value_parser(value_parser!(Name));
        place(clap::Command::new(name).about(about).arg(id.help("as `sagas list` prints it")))
    };
    let states = [SagaState::Running, SagaState::Aborting, SagaState::Done, SagaState::Aborted];
    let list = clap::Command::new("list").about("list sagas, the newest first").args([
        Arg::new("state").long("state").value_name("STATE").value_parser(states.map(SagaState::name)),
        Arg::new("attention")
            .long("attention")
            .action(ArgAction::SetTrue)
            .help("only those that need a person"),
        Arg::new("plan").long("plan").value_name("PLAN").help("only those of this plan"),
        Arg::new("after").long("after").value_name("CURSOR").help("the page behind this one"),
        Arg::new("limit")
            .long("limit")
            .value_name("N")
            .value_parser(value_parser!(u32).range(..=i64::from(SAGAS_LISTED_MAX)))
            .help("sagas on a page [default: 50]"),
    ]);
    clap::Command::new("sagas")
        .about("show the sagas of a running application; let one go on, or turn back")
        .subcommand_required(true)
        .subcommand(place(list))
        .subcommand(of_one("show", "show one saga, its steps, and what may be done about it"))
        .subcommand(of_one("resume", "let a saga go on at once, with its attempts counted anew"))
        .subcommand(of_one("abort", "let a saga turn back, if its pivot is not done"))
}

/// A saga's name on the command line.
#[derive(Clone)]
struct Name(SagaName);

impl std::str::FromStr for Name {
    type Err = modulith_data::saga::NoSagaName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Does what the subcommand says at the application on `front_door`, unless `--url` names another one.
///
/// Exit code 0: done; 1: the application is not reached, or declines, or not all of its services answered.
pub(crate) async fn run(front_door: String, matches: ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((name, matches)) = matches.subcommand() else {
        unreachable!("clap asks for a subcommand");
    };
    let data = matches.get_one::<PathBuf>("data").cloned().unwrap_or_else(|| "./data".into());
    let url = matches.get_one::<String>("url").cloned().unwrap_or(front_door);
    let desk = Desk { running: Running::at(url, &data)?, json: matches.get_flag("json") };
    let id = matches.try_get_one::<Name>("id").ok().flatten().map(|name| name.0.to_string());
    match (name, id) {
        ("show", Some(id)) => desk.show(&id).await,
        ("resume" | "abort", Some(id)) => desk.order(name, &id).await,
        _ => desk.list(wanted(matches)).await,
    }
}

fn wanted(matches: &ArgMatches) -> Wanted {
    let text = |name| matches.get_one::<String>(name).cloned();
    let state = text("state").and_then(|state| serde_json::from_value(Value::from(state)).ok());
    Wanted {
        state,
        attention: matches.get_flag("attention"),
        plan: text("plan"),
        after: text("after"),
        limit: matches.get_one("limit").copied(),
        end: false,
    }
}

/// Where an operator asks.
struct Desk {
    running: Running,
    json: bool,
}

impl Desk {
    async fn list(&self, wanted: Wanted) -> anyhow::Result<ExitCode> {
        let Some(listed) =
            self.ask::<Listed>(http::Method::GET, &format!("{PATH}?{}", wanted.query())).await?
        else {
            return Ok(ExitCode::FAILURE);
        };
        self.print(&listed, print::listed)?;
        for missing in &listed.unreachable {
            eprintln!("sagas of module `{}` are not listed: {}", missing.module, missing.reason);
        }
        Ok(if listed.unreachable.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn show(&self, id: &str) -> anyhow::Result<ExitCode> {
        let Some(shown) = self.ask::<Shown>(http::Method::GET, &format!("{PATH}/{id}")).await? else {
            return Ok(ExitCode::FAILURE);
        };
        self.print(&shown, print::shown)?;
        Ok(ExitCode::SUCCESS)
    }

    async fn order(&self, what: &str, id: &str) -> anyhow::Result<ExitCode> {
        let Some(ordered) = self.ask::<Ordered>(http::Method::POST, &format!("{PATH}/{id}/{what}")).await?
        else {
            return Ok(ExitCode::FAILURE);
        };
        self.print(&ordered, print::ordered)?;
        Ok(ExitCode::SUCCESS)
    }

    fn print<T: serde::Serialize>(&self, answer: &T, text: impl Fn(&T) -> String) -> anyhow::Result<()> {
        match self.json {
            true => println!("{}", serde_json::to_string(answer)?),
            false => print!("{}", text(answer)),
        }
        Ok(())
    }

    /// `None` if the application declined; what it said stands on standard error.
    async fn ask<T: DeserializeOwned>(&self, method: http::Method, path: &str) -> anyhow::Result<Option<T>> {
        let url = format!("{}{path}", self.running.url());
        let bearer = format!("Bearer {}", self.running.admin_token());
        let mut bearer = http::HeaderValue::try_from(bearer).context("the admin token")?;
        bearer.set_sensitive(true);
        let request = http::Request::builder()
            .method(method)
            .uri(&url)
            .header(http::header::AUTHORIZATION, bearer)
            .body(Empty::<bytes::Bytes>::new())
            .with_context(|| format!("the address {url}"))?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await.with_context(|| format!("no answer from {url}"))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the answer of {url} was cut: {error}"))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body).map(Some).with_context(|| format!("the answer of {url}"));
        }
        eprintln!("{}", print::problem(status, &serde_json::from_slice(&body).unwrap_or_default()));
        Ok(None)
    }
}
