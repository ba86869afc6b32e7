//! From sign-up to order, in every topology: what works, what is refused, and what a repeat does.

use modulith_test::{Application, Request};
use serde_json::{Value, json};

use crate::shop::{
    CARD, Customer, DECLINED, INSUFFICIENT, card, clean_audit, order, products, program, settled, stock,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_signs_up_and_orders() -> anyhow::Result<()> {
    program().in_every_topology(sign_up_to_order).await
}

async fn sign_up_to_order(app: &Application) -> anyhow::Result<()> {
    let user = json!({"email": "Ada@Example.org", "name": "Ada", "password": "correct horse battery"});
    let created = app.send(Request::post("/users", &user)).await?;
    assert_eq!(created.status, 201, "{}", created.json);
    assert_eq!(app.send(Request::post("/users", &user)).await?.status, 409);
    let invalid =
        app.send(Request::post("/users", &json!({"email": "x", "name": "", "password": "1"}))).await?;
    assert_eq!(invalid.status, 422);
    assert_eq!(invalid.json["errors"].as_array().map(Vec::len), Some(3), "{}", invalid.json);
    let wrong = json!({"email": "ada@example.org", "password": "incorrect horse"});
    assert_eq!(app.send(Request::post("/sessions", &wrong)).await?.status, 401);
    assert_eq!(app.get("/users/me").await?.status, 401);
    let ada = Customer::sign_in(app, "ada@example.org").await?;
    let me = ada.get(app, "/users/me").await?;
    assert_eq!((me.status, &me.json["id"]), (200, &created.json["id"]));

    let shelf = products(app, 3).await?;
    let before = stock(app, &shelf[0]).await?;
    let placed = ada.order(app, "k-1", &[(&shelf[0], 2), (&shelf[1], 1)], CARD).await?;
    assert_eq!(placed.status, 201, "{}", placed.json);
    assert_eq!(placed.json["status"], "paid");
    assert_eq!(placed.json["client_reference"], "a test");
    let lines = placed.json["lines"].as_array().expect("an order has lines");
    let total: i64 = lines.iter().filter_map(|line| line["total"]["amount"].as_i64()).sum();
    assert_eq!(placed.json["total"]["amount"], json!(total));

    // A repeat of the key is the same order; another body under it is not.
    let again = ada.order(app, "k-1", &[(&shelf[0], 2), (&shelf[1], 1)], CARD).await?;
    assert_eq!((again.status, &again.json), (201, &placed.json));
    let other = ada.order(app, "k-1", &[(&shelf[0], 3)], CARD).await?;
    assert_eq!(other.status, 422, "{}", other.json);
    settled(app).await;
    assert_eq!(stock(app, &shelf[0]).await?, before - 2);

    // Only its owner's order exists.
    let path = format!("/orders/{}", placed.json["id"].as_str().unwrap());
    assert_eq!(ada.get(app, &path).await?.json["id"], placed.json["id"]);
    let bob = Customer::sign_up(app, "bob@example.org").await?;
    assert_eq!(bob.get(app, &path).await?.status, 404);
    assert_eq!(bob.send(app, Request::post(format!("{path}/cancel"), &json!({}))).await?.status, 404);
    let list = ada.get(app, "/orders?limit=10&client_reference=a%20test").await?;
    assert_eq!(list.json["items"].as_array().map(Vec::len), Some(1), "{}", list.json);

    // Cancelled once, however often it is asked for.
    for _ in 0..2 {
        let cancelled = ada.send(app, Request::post(format!("{path}/cancel"), &json!({}))).await?;
        assert_eq!(
            (cancelled.status, &cancelled.json["status"]),
            (200, &json!("cancelled")),
            "{}",
            cancelled.json
        );
    }
    settled(app).await;
    assert_eq!(stock(app, &shelf[0]).await?, before);
    let report = clean_audit(app).await?;
    assert_eq!(report["orders"], json!(1));
    assert_eq!(report["payments_minor"], json!(total));
    assert_eq!(report["refunds_minor"], json!(total));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_at_any_step_leaves_nothing() -> anyhow::Result<()> {
    program().in_every_topology(refusals).await
}

async fn refusals(app: &Application) -> anyhow::Result<()> {
    let shelf = products(app, 2).await?;
    let eve = Customer::sign_up(app, "eve@example.org").await?;
    let before = (stock(app, &shelf[0]).await?, stock(app, &shelf[1]).await?);

    // At the first step: the stock; and the product is named.
    let sold_out = eve.order(app, "a", &[(&shelf[1], 1), (&shelf[0], before.0 + 1)], CARD).await?;
    assert_eq!(sold_out.status, 409, "{}", sold_out.json);
    assert!(sold_out.json.to_string().contains(&shelf[0]), "{}", sold_out.json);
    // At the second step: the card.
    for (key, number) in [("b", DECLINED), ("c", INSUFFICIENT)] {
        let declined = eve.order(app, key, &[(&shelf[0], 1)], number).await?;
        assert_eq!(declined.status, 402, "{}", declined.json);
        let again = eve.order(app, key, &[(&shelf[0], 1)], number).await?;
        assert_eq!(
            (again.status, again.problem()),
            (402, declined.problem()),
            "a refusal is an answer like any other"
        );
    }
    settled(app).await;
    assert_eq!((stock(app, &shelf[0]).await?, stock(app, &shelf[1]).await?), before);

    // Before the saga: what was sent.
    let bad = [
        (order(&[(&shelf[0], 0)], CARD), 422),
        (order(&[(&shelf[0], 1_000_000)], CARD), 422),
        (order(&[("no-such-product", 1)], CARD), 422),
        (order(&[(&shelf[0], 1)], "4242424242424241"), 422),
        (json!({"lines": []}), 422),
        (json!({"card": card(CARD)}), 422),
        (json!("what"), 422),
    ];
    for (number, (body, status)) in bad.into_iter().enumerate() {
        let response = eve.send(app, Request::post("/orders", &body).key(&format!("bad-{number}"))).await?;
        assert_eq!(response.status, status, "{body}: {}", response.json);
    }
    let body = order(&[(&shelf[0], 1)], CARD);
    assert_eq!(eve.send(app, Request::post("/orders", &body)).await?.status, 400, "no key");
    assert_eq!(app.send(Request::post("/orders", &body).key("k")).await?.status, 401, "no session");
    let report = clean_audit(app).await?;
    assert_eq!(
        (&report["orders"], &report["payments"], &report["held_units"]),
        (&json!(0), &json!(0), &json!(0))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cart_becomes_an_order() -> anyhow::Result<()> {
    program().in_every_topology(from_the_cart).await
}

async fn from_the_cart(app: &Application) -> anyhow::Result<()> {
    let shelf = products(app, 2).await?;
    let cleo = Customer::sign_up(app, "cleo@example.org").await?;
    let line = |product: &str| format!("/cart/lines/{product}");
    let empty = cleo.send(app, Request::post("/orders", &json!({"card": card(CARD)})).key("empty")).await?;
    assert_eq!(empty.status, 422, "{}", empty.json);
    for (product, quantity) in [(&shelf[0], 1), (&shelf[1], 5), (&shelf[0], 3)] {
        let put = cleo.send(app, Request::put(line(product), &json!({"quantity": quantity}))).await?;
        assert!(put.status < 300, "{}", put.json);
    }
    assert_eq!(cleo.send(app, Request::put(line(&shelf[0]), &json!({"quantity": 0}))).await?.status, 422);
    let gone = cleo.send(app, Request::new(http::Method::DELETE, line(&shelf[1]))).await?;
    assert!(gone.status < 300, "{}", gone.json);
    let ordered = cleo.send(app, Request::post("/orders", &json!({"card": card(CARD)})).key("cart")).await?;
    assert_eq!(ordered.status, 201, "{}", ordered.json);
    assert_eq!(ordered.json["lines"][0]["quantity"], json!(3));
    settled(app).await;
    let cart = cleo.get(app, "/cart").await?;
    assert_eq!(cart.json["lines"], json!([]), "{}", cart.json);
    let again = cleo.send(app, Request::post("/orders", &json!({"card": card(CARD)})).key("cart")).await?;
    assert_eq!(
        (again.status, again.json),
        (201, ordered.json),
        "the key is looked up before the cart is read"
    );
    clean_audit(app).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_input_makes_a_500() -> anyhow::Result<()> {
    program().in_every_topology(odd_requests).await
}

async fn odd_requests(app: &Application) -> anyhow::Result<()> {
    let mia = Customer::sign_up(app, "mia@example.org").await?;
    let large = format!("{{\"email\": \"{}\"}}", "x".repeat(2 << 20));
    let json_header = |request: Request| request.header("content-type", "application/json");
    let cases: Vec<(&str, Request, u16)> = vec![
        ("malformed JSON", json_header(Request::new(http::Method::POST, "/users")).body("{\"email\""), 400),
        (
            "wrong media type",
            Request::new(http::Method::POST, "/users").header("content-type", "text/plain").body("{}"),
            415,
        ),
        ("too large", json_header(Request::new(http::Method::POST, "/users")).body(large), 413),
        ("unknown route", Request::get("/no-such-thing"), 404),
        ("unknown route below a module", Request::get("/orders/1/2/3/4"), 404),
        ("wrong method", Request::new(http::Method::DELETE, "/products"), 405),
        ("unknown product", Request::get("/products/none"), 404),
        ("no number", Request::get("/products?limit=many"), 422),
        ("limit of zero", Request::get("/products?limit=0"), 422),
        (
            "a forged identity",
            Request::get("/users/me").header("modulith-principal", "{\"User\":\"x\"}"),
            401,
        ),
        ("a forged token", Request::get("/users/me").token("a.b.c"), 401),
        ("an operator's door", Request::get("/admin/sagas"), 401),
        ("an operator's door for a user", Request::get("/admin/sagas").token(&mia.token), 403),
        ("dots", Request::get("/products/%2e%2e/users"), 404),
    ];
    for (name, request, status) in cases {
        let response = app.send(request).await?;
        let allowed: &[u16] = if name == "no number" { &[400, 422] } else { &[status] };
        assert!(allowed.contains(&response.status), "{name}: {} {}", response.status, response.json);
        assert_eq!(response.headers["content-type"], "application/problem+json", "{name}");
        assert_eq!(response.json["status"], Value::from(response.status), "{name}");
        assert!(response.headers.contains_key("x-request-id"), "{name}");
        assert!(status != 405 || response.headers.contains_key("allow"), "{name}");
    }
    assert_eq!(app.get("/healthz").await?.status, 200);
    assert_eq!(app.get("/readyz").await?.status, 200);
    Ok(())
}
