//! Who asks, until when, how much: as the edge decides it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::{World, ask, get_path, post_json};

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
}

#[tokio::test]
async fn identity_comes_from_a_verified_token_only() {
    let world = World::new();
    for door in [world.monolith().await, world.split().await] {
        let ada = world.session("ada");
        let forged = "modulith-principal: admin\nModulith-Principal: user:YWRh\nmodulith-internal: x\n\
            modulith-request-id: forged\nmodulith-deadline-ms: 1\nmodulith-anything: x";
        for (extra, principal) in [
            (forged.to_owned(), Value::Null),
            (format!("{forged}\n{}", bearer(&ada)), json!("ada")),
            (format!("authorization: bearer  {ada}"), json!("ada")),
        ] {
            let reply = get_path(door, "/orders/who?a=1", &extra).await;
            let told = reply.json();
            assert_eq!(told["principal"], principal, "{extra}");
            assert_eq!(told["left_s"], 10.0);
            assert_eq!(told["target"], "/orders/who?a=1");
            assert_eq!(told["headers"], json!(["host"]), "neither forged headers nor the token go further");
            assert_ne!(told["request_id"], "forged");
            assert_eq!(reply.header("x-request-id"), told["request_id"].as_str());
        }

        let other = World::new().session("ada");
        let expired = world.sessions.issue("ada", Duration::ZERO).unwrap();
        for authorization in [
            bearer(&other),
            bearer(&expired),
            bearer("x"),
            bearer(""),
            bearer(world.admin.expose()),
            "authorization: Basic YWRhOmFkYQ==".into(),
            "authorization: ".into(),
            format!("{}\n{}", bearer(&ada), bearer(&ada)),
        ] {
            let reply = get_path(door, "/orders/guests", &authorization).await;
            assert_eq!((reply.status, &*reply.problem()), (401, "token-invalid"), "{authorization}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
        }

        let reply = get_path(door, "/orders/mine", "").await;
        assert_eq!((reply.status, &*reply.problem()), (401, "sign-in-required"));
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        assert_eq!(get_path(door, "/orders/mine", &bearer(&ada)).await.json(), "ada");
        assert_eq!(get_path(door, "/orders/guests", &bearer(&ada)).await.json(), "ada");
        assert_eq!(get_path(door, "/orders/guests", "").await.json(), Value::Null);
        assert_eq!(get_path(door, "/orders/operators", "").await.status, 401);
        assert_eq!(get_path(door, "/orders/operators", &bearer(&ada)).await.status, 403);

        for path in ["/admin/orders", "/admin/missing", "/admin"] {
            assert_eq!(get_path(door, path, "").await.problem(), "sign-in-required");
            assert_eq!(get_path(door, path, &bearer(&other)).await.problem(), "token-invalid");
            let reply = get_path(door, path, &bearer(&ada)).await;
            assert_eq!((reply.status, &*reply.problem()), (403, "forbidden"));
        }
        let admin = bearer(world.admin.expose());
        assert_eq!(get_path(door, "/admin/orders", &admin).await.body, b"operator");
        assert_eq!(get_path(door, "/admin/missing", &admin).await.status, 404);
        assert_eq!(get_path(door, "/administration", "").await.status, 404);
    }
}

#[tokio::test]
async fn a_request_id_is_kept_if_it_is_sane() {
    let door = World::new().monolith().await;
    let long = "x".repeat(65);
    for (id, kept) in [
        ("a-1_B.2", true),
        (&long[..64], true),
        (&long, false),
        ("a b", false),
        ("a\"b", false),
        ("é", false),
    ] {
        for path in ["/orders/who", "/nowhere"] {
            let reply = get_path(door, path, &format!("x-request-id: {id}")).await;
            let given = reply.header("x-request-id").unwrap();
            assert_eq!(given == id, kept, "{id}");
            assert!(kept || given.len() == 36, "{given}");
        }
    }
}

#[tokio::test]
async fn a_deadline_can_be_shortened_and_not_be_lengthened_beyond_its_maximum() {
    let mut world = World::new();
    let door = world.monolith().await;
    for (ms, left_s) in [("3000", 3.0), ("30000", 30.0), ("999999999", 60.0), ("18446744073709551615", 60.0)]
    {
        let reply = get_path(door, "/orders/who", &format!("request-timeout-ms: {ms}")).await;
        assert_eq!(reply.json()["left_s"], left_s, "{ms}");
    }
    for ms in ["0", "-1", "1.5", "soon", ""] {
        let reply = get_path(door, "/orders/who", &format!("request-timeout-ms: {ms}")).await;
        assert_eq!((reply.status, &*reply.problem()), (400, "request-timeout-invalid"), "{ms}");
    }

    world.limits.grace = Duration::from_millis(10);
    let door = world.monolith().await;
    let started = Instant::now();
    let reply = get_path(door, "/orders/never", "request-timeout-ms: 50").await;
    assert_eq!((reply.status, &*reply.problem()), (504, "deadline-exceeded"), "a read did nothing");
    assert!(started.elapsed() >= Duration::from_millis(60));
    let reply = post_json(door, "/orders/never", "request-timeout-ms: 50", "").await;
    assert_eq!(
        (reply.status, &*reply.problem()),
        (504, "outcome-unknown"),
        "a write may have done something"
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_body_is_told_apart() {
    let door = World::new().monolith().await;
    let order = r#"{"lines":[{"product":"a","quantity":2}]}"#;
    assert_eq!(post_json(door, "/orders", "", order).await.json()["lines"][0]["quantity"], 2);

    for media in ["application/json; charset=utf-8", "Application/JSON", "application/merge-patch+json"] {
        let head = format!("POST /orders HTTP/1.1\ncontent-type: {media}\ncontent-length: {}", order.len());
        assert_eq!(ask(door, &head, order).await.status, 200, "{media}");
    }
    for media in
        ["content-type: text/plain", "content-type: application/jsonx", "content-type: text/x+json", "x: y"]
    {
        let reply = ask(door, &format!("POST /orders HTTP/1.1\n{media}\ncontent-length: 40"), order).await;
        assert_eq!((reply.status, &*reply.problem()), (415, "unsupported-media-type"), "{media}");
    }

    let deep = "[".repeat(10_000);
    for (body, line, column) in [
        ("", 1, 0),
        ("{\"lines\":\n [}", 2, 3),
        ("{\"lines\":[]} x", 1, 14),
        ("{\"lines\":7, oops", 1, 13),
        (&deep, 1, 10_000),
    ] {
        let reply = post_json(door, "/orders", "", body).await;
        assert_eq!((reply.status, &*reply.problem()), (400, "malformed-json"), "{body}");
        assert_eq!(
            (&reply.json()["line"], &reply.json()["column"]),
            (&json!(line), &json!(column)),
            "{reply:?}"
        );
    }

    for (body, field, reason) in [
        ("{}", "lines", "is missing"),
        (r#"{"lines":[{"product":"a","quantity":1},{"product":"b"}]}"#, "lines[1].quantity", "is missing"),
        (
            r#"{"lines":[{"product":"a","quantity":-1}]}"#,
            "lines[0].quantity",
            "invalid value: integer `-1`, expected u32",
        ),
        (r#"{"lines":7}"#, "lines", "invalid type: integer `7`, expected a sequence"),
        ("7", "", "invalid type: integer `7`, expected struct Order"),
    ] {
        let reply = post_json(door, "/orders", "", body).await;
        assert_eq!((reply.status, &*reply.problem()), (422, "invalid"), "{body}");
        assert_eq!(reply.json()["errors"], json!([{ "field": field, "reason": reason }]));
    }

    assert_eq!(get_path(door, "/orders?count=5&after=2", "").await.json(), json!([2, 5]));
    for (query, field) in [("", "count"), ("?count=x", "count"), ("?count=1&after=-1", "after")] {
        let reply = get_path(door, &format!("/orders{query}"), "").await;
        assert_eq!((reply.status, &*reply.problem()), (422, "invalid"), "{query}");
        assert_eq!(reply.json()["errors"][0]["field"], field, "{reply:?}");
    }
    assert_eq!(get_path(door, "/orders?count=%zz", "").await.problem(), "malformed-query");
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_however_it_is_sent() {
    let mut world = World::new();
    for limit in [1 << 20, 3 << 20] {
        world.limits.body_bytes_max = limit;
        for door in [world.monolith().await, world.split().await] {
            let fits =
                serde_json::to_string(&json!({ "lines": [], "padding": "x".repeat(limit - 30) })).unwrap();
            let over = serde_json::to_string(&json!({ "lines": [], "padding": "x".repeat(limit) })).unwrap();
            assert_eq!(post_json(door, "/orders", "", &fits).await.status, 200);
            // Axum's own extractor has a limit of its own, of 2 MiB.
            for path in ["/orders", "/orders/keyed", "/orders/bytes"] {
                let reply = post_json(door, path, "idempotency-key: k", &over).await;
                assert_eq!((reply.status, &*reply.problem()), (413, "body-too-large"), "{path}");
                assert_eq!(reply.json()["body_bytes_max"], limit);

                let head = format!(
                    "POST {path} HTTP/1.1\ncontent-type: application/json\ntransfer-encoding: chunked\nidempotency-key: k"
                );
                let mut chunks: Vec<u8> = Vec::new();
                for chunk in over.as_bytes().chunks(100_000) {
                    chunks.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                    chunks.extend(chunk);
                    chunks.extend(b"\r\n");
                }
                chunks.extend(b"0\r\n\r\n");
                let reply = ask(door, &head, chunks).await;
                assert_eq!((reply.status, &*reply.problem()), (413, "body-too-large"), "{path} in chunks");
            }
        }
    }
}

#[tokio::test]
async fn a_key_counts_per_caller_and_route_and_covers_the_body() {
    let world = World::new();
    let (whole, split) = (world.monolith().await, world.split().await);
    let order = r#"{"lines":[]}"#;
    let ada = bearer(&world.session("ada"));
    let with_key = async |door, path: &str, extra: &str, body: &str| {
        let reply = post_json(door, path, &format!("{extra}\nidempotency-key: 1"), body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        (reply.json()["key"].clone(), reply.json()["body"].clone())
    };
    let first = with_key(whole, "/orders/keyed", &ada, order).await;
    assert_eq!(
        with_key(whole, "/orders/keyed?x=1", &ada, order).await,
        first,
        "the query is no part of the route"
    );
    assert_eq!(with_key(split, "/orders/keyed", &ada, order).await, first, "a key survives a split");
    let spaced = with_key(whole, "/orders/keyed", &ada, r#"{"lines": []}"#).await;
    assert!(spaced.0 == first.0 && spaced.1 != first.1);
    assert_ne!(with_key(whole, "/orders/keyed", "", order).await.0, first.0, "a guest is another caller");

    assert_eq!(post_json(whole, "/orders/keyed", "", order).await.problem(), "idempotency-key-missing");
    let long = format!("idempotency-key: {}", "k".repeat(256));
    for extra in [
        "idempotency-key: ",
        "idempotency-key: a b",
        "idempotency-key: é",
        "idempotency-key: 1\nidempotency-key: 1",
        &long,
    ] {
        let reply = post_json(whole, "/orders/keyed", extra, order).await;
        assert_eq!((reply.status, &*reply.problem()), (400, "idempotency-key-invalid"), "{extra}");
    }
}

#[tokio::test]
async fn a_panic_is_a_500_that_tells_nothing_and_the_server_goes_on() {
    let door = World::new().monolith().await;
    let reply = get_path(door, "/orders/panic", "").await;
    assert_eq!((reply.status, &*reply.problem()), (500, "internal"));
    assert!(!String::from_utf8(reply.body).unwrap().contains("secret"));
    assert_eq!(get_path(door, "/orders/7", "").await.json(), 7);
}
