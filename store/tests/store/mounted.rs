//! One module inside somebody else's axum program, beside its routes and its state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use modulith::{App, CallError};
use modulith_test::{Http, Request, until};
use store_products_contract::{ProductId, ProductsClient};
use tokio::net::TcpListener;

#[derive(Clone, Default)]
struct Visits(Arc<AtomicU32>);

async fn visits(State(visits): State<Visits>) -> String {
    visits.0.fetch_add(1, Ordering::Relaxed).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_moves_into_an_existing_program() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let mounted = App::new("existing").module(store_products::module).mount(data.path()).await?;
    let program =
        Router::new().route("/visits", get(visits)).merge(mounted.router()).with_state(Visits::default());

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        axum::serve(listener, program)
            .with_graceful_shutdown(async {
                let _ = stopped.await;
            })
            .await
    });
    until("the modules to be ready", async || mounted.missing().is_empty().then_some(())).await;
    let http = Http::new(&url, "");
    assert_eq!(http.send(Request::get("/visits")).await?.body, "0");
    assert_eq!(http.send(Request::get("/visits")).await?.body, "1");
    let products = http.send(Request::get("/products?limit=2")).await?;
    assert_eq!((products.status, products.json["items"].as_array().map(Vec::len)), (200, Some(2)));
    // The modules' paths are behind modulith's edge; the program's own are not touched by it.
    assert_eq!(http.send(Request::get("/products/none")).await?.problem(), "no-such-product");
    assert_eq!(http.send(Request::get("/orders")).await?.body, "", "the program's own 404");
    // The program's own code calls a module through its typed client.
    let products: ProductsClient = mounted.client().expect("the module serves it");
    let found = products.product(ProductId("none".into())).await;
    assert!(matches!(found, Err(CallError::Refused(_))), "{found:?}");
    drop(http);
    let _ = stop.send(());
    server.await??;
    mounted.stop().await;
    Ok(())
}
