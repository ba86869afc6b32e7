//! A service on another host, over mutual TLS, whose packets get lost: two network namespaces and a cable.
//!
//! Needs root and `ip` of iproute2; without them it is skipped, except where `CI` is set.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use modulith_test::{Application, until};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::buyers::Buyer;
use super::{AT_ONCE, PATIENT_MS, is_lost, others_answer};
use crate::shop::program;

/// Silence is borne for 6 s; the kernel alone would take a quarter of an hour.
const NOTICED_MAX: Duration = Duration::from_secs(20);
/// A hardware address that nobody has: what is sent there is dropped, without a word to the sender.
const NOBODY: &str = "02:00:00:00:00:01";

/// Two ends of a wire, one of them in a network namespace of its own.
struct Cable {
    namespace: String,
    device: String,
    here: Ipv4Addr,
    there: Ipv4Addr,
}

impl Cable {
    fn lay() -> anyhow::Result<Self> {
        let process = std::process::id();
        // The network for tests between devices, of RFC 2544; four addresses of it, drawn by the process.
        let first = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + process % 0x8000 * 4;
        let (here, there) = (Ipv4Addr::from(first + 1), Ipv4Addr::from(first + 2));
        let (namespace, device) = (format!("modulith-{process}"), format!("mod{process}"));
        ip(&["netns", "add", &namespace])?;
        // From here on it is taken away again, however far this gets.
        let cable = Self { namespace, device, here, there };
        let (device, there) = (&*cable.device, format!("{}/30", cable.there));
        ip(&["link", "add", device, "type", "veth", "peer", "name", "there", "netns", &cable.namespace])?;
        ip(&["addr", "add", &format!("{}/30", cable.here), "dev", device])?;
        ip(&["link", "set", device, "up"])?;
        cable.ip_there(&["addr", "add", &there, "dev", "there"])?;
        cable.ip_there(&["link", "set", "there", "up"])?;
        cable.ip_there(&["link", "set", "lo", "up"])?;
        Ok(cable)
    }

    fn ip_there(&self, args: &[&str]) -> anyhow::Result<()> {
        ip(&[&["-n", &*self.namespace], args].concat())
    }

    /// From now on every packet is lost, in both directions.
    fn cut(&self) -> anyhow::Result<()> {
        let lost = ["lladdr", NOBODY, "nud", "permanent", "dev"];
        ip(&[&["neigh", "replace", &self.there.to_string()], &lost[..], &[&*self.device]].concat())?;
        self.ip_there(&[&["neigh", "replace", &self.here.to_string()], &lost[..], &["there"]].concat())
    }

    fn mend(&self) -> anyhow::Result<()> {
        ip(&["neigh", "del", &self.there.to_string(), "dev", &self.device])?;
        self.ip_there(&["neigh", "del", &self.here.to_string(), "dev", "there"])
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = ip(&["link", "del", &self.device]);
        let _ = ip(&["netns", "del", &self.namespace]);
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    let output = std::process::Command::new("ip").args(args).output().context("ip of iproute2")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {said}", args.join(" "));
    Ok(())
}

/// `store run --service NAME`, here or at the other end of the cable, until it says `ready`: with its URL, if it has one.
async fn start(
    service: &str,
    topology: &Path,
    data: &Path,
    cable: Option<&Cable>,
) -> anyhow::Result<(Child, String)> {
    let store = program().path().to_owned();
    let mut command = match cable {
        Some(cable) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &cable.namespace]).arg(store);
            command
        }
        None => Command::new(store),
    };
    command.args(["run", "--service", service, "--topology"]).arg(topology).arg("--data").arg(data);
    if service == "gateway" {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    command.env("MODULITH_CONTROL", "1").env("MODULITH_LOG", "error").kill_on_drop(true);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let url = loop {
        let line = lines.next_line().await?.with_context(|| format!("{service} ended"))?;
        if let Some(url) = line.strip_prefix("ready") {
            break url.trim().to_owned();
        }
    };
    // What it says later must not fill the pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((child, url))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_is_noticed_and_mended() -> anyhow::Result<()> {
    let cable = match Cable::lay() {
        Ok(cable) => cable,
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("skipped: {error:#}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let (here, there) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let topology = here.path().join("hosts.toml");
    let near: String = ["users", "products", "cart", "orders"]
        .map(|service| format!("[service.{service}]\nmodules = [\"{service}\"]\n"))
        .concat();
    let far = format!(
        "[service.payments]\nmodules = [\"payments\"]\nlisten = \"{}:7001\"\n[module.payments]\nprovider = \"embedded\"\n",
        cable.there
    );
    std::fs::write(&topology, near + &far)?;
    let store = program().path().to_owned();
    let certs = Command::new(&store).args(["certs", "--topology"]).arg(&topology).output().await?;
    ensure!(certs.status.success(), "{}", String::from_utf8_lossy(&certs.stderr));

    // The first process makes the keys; the other host gets a copy.
    let mut processes = vec![start("users", &topology, here.path(), None).await?];
    std::fs::create_dir(there.path().join("keys"))?;
    for key in std::fs::read_dir(here.path().join("keys"))? {
        let key = key?;
        std::fs::copy(key.path(), there.path().join("keys").join(key.file_name()))?;
    }
    processes.push(start("payments", &topology, there.path(), Some(&cable)).await?);
    for service in ["products", "cart", "orders"] {
        processes.push(start(service, &topology, here.path(), None).await?);
    }
    let (gateway, url) = start("gateway", &topology, here.path(), None).await?;
    let app = Application::at(&store, "two hosts", &topology, here, url)?;
    let buyer = Buyer::sign_up(&app).await?;

    let silent = async {
        buyer.acknowledges(4).await;
        cable.cut()?;
        let begun = Instant::now();
        until("orders to notice", async || is_lost(&app).await.then_some(())).await;
        let noticed = begun.elapsed();
        let ready = app.get("/readyz").await?;
        let missing = ready.json["missing"].to_string();
        ensure!(ready.status == 503 && missing.contains("service `orders`: service `payments`"), "{missing}");
        // Who calls waits for the first attempt to connect again; from then on nobody waits.
        until("an order to be refused at once", async || {
            let answer = buyer.order(PATIENT_MS).await;
            (answer.status == 503 && answer.took < AT_ONCE).then_some(())
        })
        .await;
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let answer = buyer.order(PATIENT_MS).await;
            ensure!(answer.status == 503, "{answer:?}");
            slowest = slowest.max(answer.took);
        }
        others_answer(&buyer, &["/products?limit=5", "/orders"]).await?;
        cable.mend()?;
        let mended = Instant::now();
        buyer.acknowledges(4).await;
        Ok((noticed, slowest, mended.elapsed()))
    };
    let (_, (noticed, slowest, recovered)) = buyer.buys_while(PATIENT_MS, silent).await?;
    eprintln!(
        "silent: noticed after {} ms; then refused after at most {} ms; orders again {} ms after the network",
        noticed.as_millis(),
        slowest.as_millis(),
        recovered.as_millis(),
    );
    assert!(noticed < NOTICED_MAX, "{noticed:?}");
    assert!(slowest < AT_ONCE, "{slowest:?}");
    buyer.asks_again().await;
    buyer.stands(&app).await?;
    drop((gateway, processes));
    Ok(())
}
