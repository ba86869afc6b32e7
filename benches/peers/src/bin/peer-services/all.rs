//! Starts the five services and serves the proxy in front of them.
//!
//! Every child takes a free port and prints it. A child holds the read end of a pipe whose other end
//! is ours, so it ends with us even when we are killed; if a child ends first, we end too.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use peers::serve::{Parent, serve};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::front::{self, Upstreams};
use crate::{Options, Service};

const END_WITHIN: Duration = Duration::from_secs(5);

struct Running {
    child: Child,
    /// Kept apart from the child, because waiting for a child closes what it holds.
    pipe: ChildStdin,
    url: String,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let mut users = start(options, Service::Users, &[]).await?;
    let mut products = start(options, Service::Products, &[]).await?;
    let mut cart = start(options, Service::Cart, &[]).await?;
    let mut payments = start(options, Service::Payments, &[]).await?;
    let needs = [
        "--products",
        &products.url,
        "--cart",
        &cart.url,
        "--payments",
        &payments.url,
    ];
    let mut orders = start(options, Service::Orders, &needs).await?;
    let upstreams = Upstreams {
        users: users.url.clone(),
        products: products.url.clone(),
        cart: cart.url.clone(),
        payments: payments.url.clone(),
        orders: orders.url.clone(),
    };
    let served = tokio::select! {
        served = serve(front::router(upstreams)?, options.listen, Parent::Absent) => served,
        _ = users.child.wait() => Err(anyhow::anyhow!("the service users ended")),
        _ = products.child.wait() => Err(anyhow::anyhow!("the service products ended")),
        _ = cart.child.wait() => Err(anyhow::anyhow!("the service cart ended")),
        _ = payments.child.wait() => Err(anyhow::anyhow!("the service payments ended")),
        _ = orders.child.wait() => Err(anyhow::anyhow!("the service orders ended")),
    };
    for Running { mut child, pipe, .. } in [orders, payments, cart, products, users] {
        drop(pipe);
        if timeout(END_WITHIN, child.wait()).await.is_err() {
            child.kill().await?;
        }
    }
    served
}

async fn start(options: &Options, service: Service, needs: &[&str]) -> anyhow::Result<Running> {
    let name = service.to_possible_value().expect("no service is hidden");
    let name = name.get_name();
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--child", "--listen", "127.0.0.1:0", "--service", name])
        .args(needs);
    command
        .arg("--data")
        .arg(&options.data)
        .arg("--seed-products")
        .arg(options.seed_products.to_string());
    command.arg("--readers").arg(options.pools.readers.to_string());
    command.arg("--writers").arg(options.pools.writers.to_string());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let pipe = child.stdin.take().expect("it is piped");
    let stdout = child.stdout.take().expect("it is piped");
    let line = BufReader::new(stdout)
        .lines()
        .next_line()
        .await?
        .with_context(|| format!("{name} did not start"))?;
    match line.strip_prefix("listening on ") {
        Some(address) => Ok(Running {
            child,
            pipe,
            url: format!("http://{address}"),
        }),
        None => bail!("{name} printed {line:?} instead of its address"),
    }
}
