//! Services that call each other over mutual TLS: the store in a split whose addresses are TCP.

use std::path::Path;

use modulith_test::{Application, child_of, kill, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::shop::{CARD, Customer, clean_audit, products, program};

const SERVICES: [&str; 5] = ["users", "products", "cart", "payments", "orders"];

/// `store` with these arguments: whether it went well, and what it said.
async fn store(args: &[&str], topology: &Path) -> anyhow::Result<(bool, String)> {
    let mut command = Command::new(program().path());
    let output = command.args(args).arg("--topology").arg(topology).output().await?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_over_mutual_tls_places_orders_and_renews_its_certificates() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let topology = folder.path().join("split.toml");
    // Ports that are free now, all held until each has its own.
    let mut held = Vec::new();
    let mut text = "[trust]\ntls = \"always\"\n[module.payments]\nprovider = \"embedded\"\n".to_owned();
    let mut ports = Vec::new();
    for service in SERVICES {
        let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = socket.local_addr()?;
        text.push_str(&format!("[service.{service}]\nmodules = [\"{service}\"]\nlisten = \"{address}\"\n"));
        ports.push(address);
        held.push(socket);
    }
    std::fs::write(&topology, text)?;
    drop(held);

    let (well, said) = store(&["check"], &topology).await?;
    assert!(!well && said.contains("certs/orders.key does not exist"), "{said}");
    assert!(said.contains("make it with `store certs --topology"), "{said}");
    let (well, said) = store(&["certs"], &topology).await?;
    assert!(well && said.contains("made") && said.contains("certs/gateway.pem"), "{said}");
    let (well, said) = store(&["check"], &topology).await?;
    assert!(well, "{said}");

    let app = Application::start(program().path(), "split over TLS", Some(&topology), &[]).await?;
    let ann = Customer::sign_up(&app, "ann@example.org").await?;
    let product = &products(&app, 1).await?[0];
    let ordered = ann.order(&app, "first", &[(product, 1)], CARD).await?;
    assert_eq!(ordered.status, 201, "{}", ordered.json);

    // Nothing is said to whoever comes without TLS, not even whether the service is well.
    let mut plain = tokio::net::TcpStream::connect(ports[4]).await?;
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    let mut answer = Vec::new();
    // A reset is an end like any other.
    let _ = plain.read_to_end(&mut answer).await;
    assert_eq!(String::from_utf8_lossy(&answer), "");

    // New certificates under a running application; a service that is killed comes back with its new one.
    let (well, said) = store(&["certs", "--renew"], &topology).await?;
    assert!(well, "{said}");
    let family = app.process().expect("started here");
    kill(child_of(family, "payments").expect("a service"));
    let again = until("an order over the new certificate", async || {
        let ordered = ann.order(&app, "second", &[(product, 1)], CARD).await.ok()?;
        (ordered.status == 201).then_some(ordered)
    })
    .await;
    assert_ne!(ordered.json["id"], again.json["id"]);
    clean_audit(&app).await?;
    app.stop().await
}
