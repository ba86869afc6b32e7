//! What happens before the clock starts: users, sessions, products, and one order that is looked at.

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::Connection;

const PASSWORD: &str = "correct horse battery staple";
const PAGE: usize = 100;

/// A product as the catalogue names it; the id is passed back as it came.
pub(crate) struct Product {
    pub(crate) id: String,
}

#[derive(Deserialize)]
struct Session {
    token: String,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Value>,
    next: Option<Value>,
}

/// Signs up `users` users whose addresses are unique to `run`, and returns their tokens.
pub(crate) async fn sessions(
    connection: &mut Connection,
    run: &str,
    users: usize,
) -> anyhow::Result<Vec<String>> {
    let mut tokens = Vec::with_capacity(users);
    for number in 0..users {
        let email = format!("load-{run}-{number}@example.com");
        let sign_up = json!({ "email": email, "name": "Load", "password": PASSWORD }).to_string();
        let answer = connection.call("POST", "/users", "", sign_up.as_bytes()).await?;
        ensure!(answer.status == 201, "signing up: {}", answer.text());
        let log_in = json!({ "email": email, "password": PASSWORD }).to_string();
        let answer = connection
            .call("POST", "/sessions", "", log_in.as_bytes())
            .await?;
        ensure!(answer.status == 200, "logging in: {}", answer.text());
        tokens.push(serde_json::from_slice::<Session>(answer.body)?.token);
    }
    Ok(tokens)
}

/// Up to `max` products that are in stock.
pub(crate) async fn products(connection: &mut Connection, max: usize) -> anyhow::Result<Vec<Product>> {
    let mut products = Vec::new();
    let mut path = format!("/products?limit={PAGE}");
    while products.len() < max {
        let answer = connection.call("GET", &path, "", b"").await?;
        ensure!(answer.status == 200, "listing products: {}", answer.text());
        let page: Page = serde_json::from_slice(answer.body).context("the page of products")?;
        let in_stock = page
            .items
            .iter()
            .filter(|item| item["stock"].as_i64().unwrap_or(0) > 0);
        products.extend(in_stock.map(|item| Product {
            id: item["id"].to_string(),
        }));
        match page.next {
            Some(Value::String(next)) => path = format!("/products?limit={PAGE}&after={next}"),
            Some(Value::Number(next)) => path = format!("/products?limit={PAGE}&after={next}"),
            _ => break,
        }
    }
    products.truncate(max);
    ensure!(
        products.len() >= 2,
        "two products in stock are needed, and {} were found",
        products.len()
    );
    Ok(products)
}

/// The body of an order of one each of two products.
pub(crate) fn order(body: &mut Vec<u8>, first: &Product, second: &Product) {
    body.clear();
    for part in [
        r#"{"lines":[{"product_id":"#,
        &first.id,
        r#","quantity":1},{"product_id":"#,
        &second.id,
        r#","quantity":1}],"card":{"number":"4242424242424242","exp_month":12,"exp_year":2030,"cvc":"123"}}"#,
    ] {
        body.extend_from_slice(part.as_bytes());
    }
}

/// Places one order twice under one key: it must add up, and the repeat must get the same order.
pub(crate) async fn check_order(
    connection: &mut Connection,
    run: &str,
    token: &str,
    products: &[Product],
) -> anyhow::Result<()> {
    let headers = format!("authorization: Bearer {token}\r\nidempotency-key: check-{run}\r\n");
    let mut body = Vec::new();
    order(&mut body, &products[0], &products[1]);
    let mut orders = Vec::new();
    for _ in 0..2 {
        let answer = connection.call("POST", "/orders", &headers, &body).await?;
        ensure!(answer.status == 201, "placing an order: {}", answer.text());
        orders.push(serde_json::from_slice::<Value>(answer.body)?);
    }
    let lines = orders[0]["lines"].as_array().context("an order without lines")?;
    let sum: i64 = lines
        .iter()
        .filter_map(|line| line["total"]["amount"].as_i64())
        .sum();
    ensure!(
        lines.len() == 2 && orders[0]["total"]["amount"] == sum,
        "the order does not add up: {}",
        orders[0]
    );
    ensure!(
        orders[0]["id"] == orders[1]["id"],
        "a repeat of one key made a second order"
    );
    Ok(())
}
