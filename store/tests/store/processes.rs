//! The processes of a topology: started in any order, restarted, stopped, and never left behind.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use modulith_test::{Application, Request, child_of, children, is_alive, kill, until};
use modulith_transport::{Address, Hello, Limits, Peer, Priority, Token};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::shop::{Customer, program, split_topology};

async fn split() -> anyhow::Result<Application> {
    Application::start(program().path(), "split", Some(&split_topology()), &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_parent_leaves_no_child() -> anyhow::Result<()> {
    let app = split().await?;
    let family: Vec<u32> =
        children(app.process().expect("started here")).into_iter().map(|(child, _)| child).collect();
    assert_eq!(family.len(), 6, "five services and the gateway");
    app.kill();
    until("all children to end", async || family.iter().all(|child| !is_alive(*child)).then_some(())).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_service_comes_back_and_the_others_go_on() -> anyhow::Result<()> {
    let app = split().await?;
    let parent = app.process().expect("started here");
    let products = child_of(parent, "products").expect("a service of its own");
    kill(products);
    let down = until("the gateway to notice", async || {
        let response = app.get("/products").await.ok()?;
        (response.status == 503).then_some(response)
    });
    // It may be back before anybody asked.
    let down = tokio::time::timeout(Duration::from_millis(500), down).await;
    if let Ok(down) = down {
        assert_eq!(down.headers["content-type"], "application/problem+json");
    }
    Customer::sign_up(&app, "ivo@example.org").await?;
    until("products to come back", async || {
        app.get("/products").await.ok().filter(|response| response.status == 200)
    })
    .await;
    assert_ne!(child_of(parent, "products"), Some(products));
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_its_peers_is_alive_and_says_whom_it_waits_for() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let topology = split_topology();
    let start = |service: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_store"));
        command.args(["run", "--service", service, "--listen", "127.0.0.1:0", "--topology"]).arg(&topology);
        command.arg("--data").arg(data.path()).env("MODULITH_CONTROL", "1").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
    };
    let mut orders = start("orders")?;
    let mut lines = BufReader::new(orders.stdout.take().expect("piped")).lines();
    let waiting = async {
        while let Some(line) = lines.next_line().await? {
            if let Some(missing) = line.strip_prefix("waiting ") {
                return Ok::<_, std::io::Error>(missing.to_owned());
            }
        }
        Ok(String::new())
    };
    let missing = waiting.await?;
    for service in ["products", "payments", "cart"] {
        assert!(missing.contains(&format!("`{service}`")), "{missing}");
    }
    // Its peers come in any order, and it becomes ready.
    let others: Vec<_> =
        ["payments", "users", "cart", "products"].map(start).into_iter().collect::<Result<_, _>>()?;
    loop {
        let line = lines.next_line().await?.expect("orders goes on");
        if line == "ready" {
            break;
        }
    }
    drop(others);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_never_answered_with_an_empty_store() -> anyhow::Result<()> {
    let app = Application::start(program().path(), "monolith", None, &[]).await?;
    let ian = Customer::sign_up(&app, "ian@example.org").await?;
    assert_eq!(ian.get(&app, "/users/me").await?.status, 200);
    // While it runs, a second process on the same data is refused.
    let run = |topology: Option<std::path::PathBuf>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_store"));
        command.args(["run", "--listen", "127.0.0.1:0", "--data"]).arg(app.data());
        if let Some(topology) = topology {
            command.arg("--topology").arg(topology);
        }
        command.kill_on_drop(true).output()
    };
    let second = run(None).await?;
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("in use by another process"), "{said}");
    // A topology that puts the data elsewhere is refused, with the place where it is.
    let moved = run(Some(split_topology())).await?;
    assert!(!moved.status.success());
    let said = String::from_utf8_lossy(&moved.stderr).into_owned();
    assert!(said.contains("store.db") && said.contains("users"), "{said}");
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn internal_sockets_answer_nobody_but_their_peers() -> anyhow::Result<()> {
    let app = split().await?;
    let socket = app.data().join("run/users.sock");
    assert!(socket.exists());
    for (path, status) in [("/users/me", "404"), ("/admin/sagas", "404"), ("/healthz", "200")] {
        let mut stream = BufReader::new(tokio::net::UnixStream::connect(&socket).await?);
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await?;
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        assert!(line.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {line}");
    }
    // Whoever knows the token and is not the gateway speaks for nobody.
    let token = std::fs::read_to_string(app.data().join("keys/internal.token"))?;
    let hello = |service: &str| Hello {
        service: service.to_owned(),
        incarnation: [7; 16],
        token: Token::new(token.trim()),
        // It serves nothing and needs nothing.
        about: b"\x82\xa6serves\x90\xa5needs\x90"[..].into(),
    };
    for (service, refused) in [("cart", true), ("gateway", false)] {
        let address = Address::Unix(socket.clone());
        let limits = Limits::default();
        let peer = Peer::new(vec![address], hello(service), Arc::new(|_| Ok(())), limits);
        let soon = Instant::now() + Duration::from_secs(10);
        peer.connected(soon).await?;
        // An administrator asks who is there.
        let request = b"\x05\x03\x01\0r\x04\x01\0a\0\x01\x09/users/me\0\0";
        let answer = peer.call(soon, Priority::Ordinary, request[..].into()).await;
        match answer {
            Err(fault) if refused => assert!(fault.to_string().contains("not the gateway"), "{fault}"),
            Ok(answer) if !refused => assert_eq!(answer.first(), Some(&6)),
            other => panic!("{service}: {other:?}"),
        }
    }
    let keys = std::fs::metadata(app.data().join("keys/admin.token"))?;
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&keys.permissions()) & 0o777, 0o600);
    let counts = app.send(Request::get("/admin/sagas").admin()).await?;
    assert_eq!((&counts.json["open"], &counts.json["attention"]), (&json!(0), &json!(0)), "{counts:?}");
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_a_taken_port_is_named() -> anyhow::Result<()> {
    for topology in [None, Some(split_topology())] {
        let data = tempfile::tempdir()?;
        let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = taken.local_addr()?.to_string();
        let run = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_store"));
            command.args(["run", "--log", "json", "--listen", &address, "--data"]).arg(data.path());
            if let Some(topology) = &topology {
                command.arg("--topology").arg(topology);
            }
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
            command
        };
        if topology.is_none() {
            let refused = run().output().await?;
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(
                !refused.status.success() && said.contains(&address) && said.contains("in use"),
                "{said}"
            );
        }
        drop(taken);
        let mut running = run().spawn()?;
        let mut lines = BufReader::new(running.stderr.take().expect("piped")).lines();
        let ready = format!("ready on http://{address}");
        let mut services = std::collections::BTreeSet::new();
        while let Some(line) = lines.next_line().await? {
            // The table of the start comes first; after it every line is JSON and names its service.
            let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            services.extend(line["service"].as_str().map(str::to_owned));
            if line["message"] == ready.as_str() && (topology.is_none() || line["service"] == "store") {
                break;
            }
        }
        assert!(
            services.contains("store") && (topology.is_none() || services.contains("orders")),
            "{services:?}"
        );
        let process = running.id().expect("it runs").to_string();
        Command::new("kill").args(["-TERM", &process]).status().await?;
        while lines.next_line().await?.is_some() {}
        assert!(running.wait().await?.success(), "a stop in time is a success");
    }
    Ok(())
}
