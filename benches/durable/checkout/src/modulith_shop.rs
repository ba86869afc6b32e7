//! The side of the framework: three modules in one process on one database, driven through a [`SagaClient`].

use std::path::Path;

use anyhow::Context;
use callers::{Load, Order, Report, place_orders};
use modulith::{App, ClientKey, Mounted, SagaClient};

use crate::orders::{self, PlaceOrder};
use crate::{payments, products};

/// The name of the application and of its database's file.
pub(crate) const NAME: &str = "checkout";

pub(crate) async fn run(data: &Path, load: Load) -> anyhow::Result<Report> {
    let shop = mount(data).await?;
    let saga = orders::client().context("the module has not handed out its client")?;
    let report = place_orders(load, move |order| place(saga, order)).await;
    shop.stop().await;
    Ok(report)
}

/// Opens or creates the database with the tables of the modules and of the framework.
pub(crate) async fn mount(data: &Path) -> anyhow::Result<Mounted> {
    let app = App::new(NAME).module(products::module).module(payments::module).module(orders::module);
    Ok(app.mount(data).await?)
}

async fn place(saga: &SagaClient<PlaceOrder>, order: Order) -> anyhow::Result<()> {
    let body = serde_json::to_vec(&order.lines)?;
    let key = ClientKey::new("", "POST /orders", &order.key, &body);
    let id = order.id;
    let placed = saga.start(PlaceOrder(order), Some(key)).await?;
    anyhow::ensure!(placed.order == id, "a fresh key was answered with another order");
    Ok(())
}
