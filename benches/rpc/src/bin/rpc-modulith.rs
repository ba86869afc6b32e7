//! The framework: the module `echo` in one service, and `driver`, whose tasks call it, in another.
//!
//! `POST /admin/driver/load` begins a load, once in the life of the process; `GET` gives its report when it has ended.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use callers::Load;
use modulith::http::{Json, Problem, Router, StatusCode, post};
use modulith::{App, Links, Module, Setup, SetupError};
use rpc::echo::{self, EchoClient, Trace, context};
use rpc::{Caller, Message, Report, drive};
use serde::Deserialize;

fn main() -> ExitCode {
    modulith::main(App::new("rpc").module(echo::module).module(driver))
}

fn driver(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("driver").needs::<EchoClient>().admin_routes(routes))
}

#[derive(Deserialize)]
struct Asked {
    callers: usize,
    seconds: f64,
    warmup_seconds: f64,
    trace: Trace,
}

fn routes(links: &Links) -> Router {
    let echo: EchoClient = links.client();
    let report = Arc::new(OnceLock::<Report>::new());
    let told = report.clone();
    let begin = async move |Json(asked): Json<Asked>| {
        let Asked { callers, seconds, warmup_seconds, trace } = asked;
        let load = Load { callers, seconds, warmup_seconds };
        tokio::spawn(async move {
            let caller = |number| Asking {
                echo: echo.clone(),
                user: Arc::from("somebody"),
                // As long as a UUID; the last digits are the call's number.
                request: format!("{number:08x}-0000-7000-8000-000000000000").into_bytes(),
                calls: 0,
                trace,
            };
            let seen = drive(load, load.interval(), caller).await;
            report.get_or_init(|| seen);
        });
        StatusCode::ACCEPTED
    };
    let progress = async move || {
        let missing = || Problem::new(StatusCode::NOT_FOUND, "no-report", "No load has ended");
        told.get().cloned().map(Json).ok_or_else(missing)
    };
    Router::new().route("/load", post(begin).get(progress))
}

/// A caller whose every call is a request of its own.
struct Asking {
    echo: EchoClient,
    user: Arc<str>,
    request: Vec<u8>,
    calls: u64,
    trace: Trace,
}

impl Caller for Asking {
    async fn call(&mut self) -> anyhow::Result<()> {
        self.calls += 1;
        let digits = self.request.iter_mut().rev().take(12).enumerate();
        digits.for_each(|(at, digit)| *digit = b"0123456789abcdef"[(self.calls >> (4 * at)) as usize % 16]);
        let context = context(&self.user, str::from_utf8(&self.request)?, self.trace);
        context.scope(self.echo.echo(Message::filled())).await?.check()
    }
}
