//! Both peers do the work that is measured: one test body, run against each as a real process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

const CARD: &str = "4242424242424242";
const CARD_DECLINED: &str = "4000000000000002";

#[tokio::test]
async fn monolith() {
    contract(env!("CARGO_BIN_EXE_peer-monolith"), &[]).await;
}

#[tokio::test]
async fn services() {
    contract(env!("CARGO_BIN_EXE_peer-services"), &["--all"]).await;
}

async fn contract(program: &str, arguments: &[&str]) {
    let shop = Shop::start(program, arguments);
    assert_eq!(shop.get("/readyz").await, StatusCode::OK);
    let page = shop.json("/products?limit=200&after=0").await;
    assert_eq!(
        (page["items"].as_array().unwrap().len(), &page["next"]),
        (10, &Value::Null)
    );

    let user = json!({ "email": "a@example.com", "name": "A", "password": "long enough" });
    assert_eq!(shop.post("/users", "", "", &user).await.0, StatusCode::CREATED);
    assert_eq!(shop.post("/users", "", "", &user).await.0, StatusCode::CONFLICT);
    let wrong = json!({ "email": "a@example.com", "password": "not this one" });
    assert_eq!(
        shop.post("/sessions", "", "", &wrong).await.0,
        StatusCode::UNAUTHORIZED
    );
    let (status, session) = shop.post("/sessions", "", "", &user).await;
    assert_eq!(status, StatusCode::OK);
    let token = session["token"].as_str().unwrap();

    let stock = shop.stock(1).await;
    let good = order(&[(1, 2), (2, 1)], CARD);
    assert_eq!(
        shop.post("/orders", token, "", &good).await.0,
        StatusCode::BAD_REQUEST,
        "no key"
    );
    assert_eq!(
        shop.post("/orders", "not a token", "k0", &good).await.0,
        StatusCode::UNAUTHORIZED
    );
    let (status, placed) = shop.post("/orders", token, "k1", &good).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(placed["status"], "paid");
    assert_eq!(
        placed["total"],
        json!({ "amount": 2 * 101 + 102, "currency": "GBP" })
    );
    assert_eq!(placed["lines"][0]["total"]["amount"], 202);
    assert_eq!(shop.stock(1).await, stock - 2);
    assert_eq!(
        shop.post("/orders", token, "k1", &good).await,
        (status, placed),
        "a repeat"
    );
    assert_eq!(shop.stock(1).await, stock - 2);

    let other = order(&[(1, 1)], CARD);
    assert_eq!(
        shop.post("/orders", token, "k1", &other).await.0,
        StatusCode::UNPROCESSABLE_ENTITY
    );

    let stock = (shop.stock(1).await, shop.stock(2).await);
    for _repeat in 0..2 {
        let declined = order(&[(1, 3), (2, 3)], CARD_DECLINED);
        assert_eq!(
            shop.post("/orders", token, "k2", &declined).await.0,
            StatusCode::PAYMENT_REQUIRED
        );
        let unknown = order(&[(1, 3), (99, 1)], CARD);
        assert_eq!(
            shop.post("/orders", token, "k3", &unknown).await.0,
            StatusCode::CONFLICT
        );
    }
    assert_eq!(
        (shop.stock(1).await, shop.stock(2).await),
        stock,
        "refusals take nothing"
    );
}

fn order(lines: &[(i64, i64)], card: &str) -> Value {
    let lines: Vec<Value> = lines
        .iter()
        .map(|(id, n)| json!({ "product_id": id, "quantity": n }))
        .collect();
    json!({ "lines": lines, "card": { "number": card, "exp_month": 12, "exp_year": 2030, "cvc": "123" } })
}

/// A running peer; it is killed when the test ends, and its children end with it.
struct Shop {
    process: Child,
    url: String,
    client: Client,
}

impl Shop {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let name = Path::new(program).file_name().unwrap();
        let data = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&data);
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args(["--listen", "127.0.0.1:0", "--seed-products", "10", "--data"])
            .arg(data);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().strip_prefix("listening on ").expect("the address");
        Self {
            url: format!("http://{address}"),
            process,
            client: Client::new(),
        }
    }

    async fn get(&self, path: &str) -> StatusCode {
        self.client
            .get(format!("{}{path}", self.url))
            .send()
            .await
            .unwrap()
            .status()
    }

    async fn json(&self, path: &str) -> Value {
        self.client
            .get(format!("{}{path}", self.url))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }

    async fn stock(&self, product: i64) -> i64 {
        self.json(&format!("/products/{product}")).await["stock"]
            .as_i64()
            .unwrap()
    }

    async fn post(&self, path: &str, token: &str, key: &str, body: &Value) -> (StatusCode, Value) {
        let mut request = self
            .client
            .post(format!("{}{path}", self.url))
            .bearer_auth(token)
            .json(body);
        if !key.is_empty() {
            request = request.header("idempotency-key", key);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
