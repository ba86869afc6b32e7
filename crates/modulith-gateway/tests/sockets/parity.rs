//! A client cannot tell a monolith from a split application.

use crate::world::{Reply, World, ask};

/// What may differ: when it was sent, and how it was framed.
fn comparable(mut reply: Reply) -> Reply {
    let differs = |name: &str| matches!(name, "date" | "transfer-encoding" | "connection");
    reply.headers.retain(|(name, _)| !differs(name));
    reply.headers.sort();
    reply
}

#[tokio::test]
async fn whole_and_split_answer_alike() {
    let mut world = World::new();
    world.limits.grace = std::time::Duration::from_millis(400);
    let (whole, split) = (world.monolith().await, world.split().await);
    let json = "content-type: application/json\ncontent-length: 12";
    let order = r#"{"lines":[]}"#;
    let ada = format!("authorization: Bearer {}", world.session("zoë"));
    let admin = format!("authorization: Bearer {}", world.admin.expose());
    let requests = [
        (200, "GET /orders?count=1 HTTP/1.1".into(), ""),
        (200, "GET http://other.test/orders/who?x=%20y HTTP/1.1".into(), ""),
        (200, format!("GET /orders/mine HTTP/1.1\n{ada}"), ""),
        (200, "GET /orders/7 HTTP/1.1".into(), ""),
        (200, "GET /orders/7 HTTP/1.0".into(), ""),
        (200, "HEAD /orders/7 HTTP/1.1".into(), ""),
        (404, "HEAD /orders/x HTTP/1.1".into(), ""),
        (204, "GET /orders/none HTTP/1.1".into(), ""),
        (200, "DELETE /orders/7 HTTP/1.1".into(), ""),
        (200, format!("POST /orders HTTP/1.1\n{json}"), order),
        (200, format!("PUT /orders/keyed HTTP/1.1\n{json}\nidempotency-key: k"), order),
        (200, "POST /orders/echo HTTP/1.1\ntransfer-encoding: chunked".into(), "3\r\nabc\r\n0\r\n\r\n"),
        (200, "POST /orders/bytes HTTP/1.1\ncontent-length: 3\nexpect: 100-continue-not".into(), "abc"),
        (200, "GET /products/caf%C3%A9%20au HTTP/1.1".into(), ""),
        (200, format!("GET /admin/orders HTTP/1.1\n{admin}"), ""),
        (410, "POST /orders/refused HTTP/1.1\ncontent-length: 0".into(), ""),
        (401, "GET /orders/mine HTTP/1.1".into(), ""),
        (401, "GET /orders HTTP/1.1\nauthorization: Bearer x".into(), ""),
        (401, "GET /admin/orders HTTP/1.1".into(), ""),
        (403, format!("GET /admin/orders HTTP/1.1\n{ada}"), ""),
        (403, format!("GET /orders/operators HTTP/1.1\n{ada}"), ""),
        (404, "GET / HTTP/1.1".into(), ""),
        (404, "GET /ordersx HTTP/1.1".into(), ""),
        (404, "GET /orders/7/lines HTTP/1.1".into(), ""),
        (404, "GET /orders/ HTTP/1.1".into(), ""),
        (404, "GET /orders/seven HTTP/1.1".into(), ""),
        (404, "GET /products HTTP/1.1".into(), ""),
        (404, "GET /products/%FF HTTP/1.1".into(), ""),
        (404, "GET //orders/7 HTTP/1.1".into(), ""),
        (404, "GET /products/../orders/7 HTTP/1.1".into(), ""),
        (404, "GET /products/%2e%2e HTTP/1.1".into(), ""),
        (404, "GET /products/a%2Fb HTTP/1.1".into(), ""),
        (404, "GET /products/./a HTTP/1.1".into(), ""),
        (404, "OPTIONS * HTTP/1.1".into(), ""),
        (405, "PATCH /orders HTTP/1.1\ncontent-length: 0".into(), ""),
        (405, "OPTIONS /orders/7 HTTP/1.1".into(), ""),
        (405, "BREW /products/tea HTTP/1.1".into(), ""),
        (400, "GET /orders?count=%G HTTP/1.1".into(), ""),
        (422, "GET /orders HTTP/1.1".into(), ""),
        (400, format!("POST /orders HTTP/1.1\n{json}"), "{\"lines\":[}}"),
        (422, format!("POST /orders HTTP/1.1\n{json}"), "{\"lines\":{}}"),
        (415, "POST /orders HTTP/1.1\ncontent-length: 12".into(), order),
        (400, format!("POST /orders/keyed HTTP/1.1\n{json}"), order),
        (500, "GET /orders/panic HTTP/1.1".into(), ""),
        (504, "GET /orders/never HTTP/1.1\nrequest-timeout-ms: 20".into(), ""),
        (504, "POST /orders/never HTTP/1.1\nrequest-timeout-ms: 20\ncontent-length: 0".into(), ""),
    ];
    for (status, head, body) in requests {
        // Twice, so that the second goes over a connection that is already there.
        for _ in 0..2 {
            let head = format!("{head}\nx-request-id: same");
            let whole = comparable(ask(whole, &head, body).await);
            let split = comparable(ask(split, &head, body).await);
            // The time that is left is the one thing a handler sees differ.
            assert_eq!(whole, split, "{head}");
            assert_eq!(whole.status, status, "{head}: {whole:?}");
            if status >= 400 && !head.starts_with("HEAD") {
                whole.problem();
            }
            if status == 405 {
                assert!(whole.header("allow").is_some_and(|allow| allow.contains("GET")), "{whole:?}");
            }
        }
    }
}
