//! An application with one saga that goes all ways: a command, an effect, the pivot, and an effect behind it. What
//! the effects come to is what the test says, for each account.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use modulith::http::{Json, Problem};
use modulith::{
    Answer, App, CallError, CallFault, Context, Handle, Links, Migration, Module, Mounted, Never, Plan,
    Refusal, Saga, SagaClient, Secret, Setup, SetupError, Snapshot, StepKey, Tx, Unknown, UnknownReason,
    contract,
};
use modulith_test::{Http, Request, Response, until};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Stands in every request and every answer as a secret.
pub(crate) const PIN: &str = "pin-4711-pin";

/// Whether an effect knows what it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Act {
    Do,
    Unknown,
}

/// What the effects of one account come to: the charge, and what follows the pivot.
static ACCOUNTS: LazyLock<Mutex<HashMap<String, (Act, Act)>>> = LazyLock::new(Mutex::default);
static REFUNDS: Mutex<Vec<StepKey>> = Mutex::new(Vec::new());

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Order {
    account: String,
    pin: Secret<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct Receipt {
    account: String,
    code: Secret<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
enum Full {
    #[refused(409, "the book is full")]
    Full { pin: Secret<String> },
}

#[contract(name = "bank", version = 1)]
trait Bank {
    #[effect]
    async fn charge(&self, cx: &Context, order: Order) -> Result<Receipt, CallError<Full>>;
    #[effect]
    async fn refund(&self, cx: &Context, step: StepKey) -> Result<(), CallError<Never>>;
    #[effect]
    async fn thank(&self, cx: &Context, receipt: Receipt) -> Result<(), CallError<Never>>;
}

#[contract(name = "book", version = 1)]
trait Book {
    #[command]
    fn note(&self, tx: &mut Tx<'_>, order: Order) -> Answer<Receipt, Full>;
    #[command]
    fn erase(&self, tx: &mut Tx<'_>, receipt: Receipt) -> Answer<(), Never>;
    #[command]
    fn record(&self, tx: &mut Tx<'_>, order: Order) -> Answer<Receipt, Full>;
    #[query]
    fn noted(&self, db: &Snapshot<'_>, account: String) -> Answer<i64, Never>;
}

struct Code;

fn attempt(act: Act) -> Result<(), CallFault> {
    match act {
        Act::Do => Ok(()),
        Act::Unknown => Err(Unknown::new(UnknownReason::Provider, "the bank says nothing").into()),
    }
}

impl Bank for Code {
    async fn charge(&self, _: &Context, order: Order) -> Result<Receipt, CallError<Full>> {
        let (act, _) = ACCOUNTS.lock()[&order.account];
        attempt(act)?;
        Ok(Receipt { account: order.account, code: order.pin })
    }

    async fn refund(&self, _: &Context, step: StepKey) -> Result<(), CallError<Never>> {
        REFUNDS.lock().push(step);
        Ok(())
    }

    async fn thank(&self, _: &Context, receipt: Receipt) -> Result<(), CallError<Never>> {
        let (_, act) = ACCOUNTS.lock()[&receipt.account];
        Ok(attempt(act)?)
    }
}

impl Book for Code {
    fn note(&self, tx: &mut Tx<'_>, order: Order) -> Answer<Receipt, Full> {
        if order.account == "full" {
            return Err(Full::Full { pin: order.pin }.into());
        }
        tx.execute("INSERT INTO book_note (account) VALUES ($1)", (&order.account,))?;
        Ok(Receipt { account: order.account, code: order.pin })
    }

    fn erase(&self, tx: &mut Tx<'_>, receipt: Receipt) -> Answer<(), Never> {
        tx.execute("DELETE FROM book_note WHERE account = $1", (&receipt.account,))?;
        Ok(())
    }

    fn record(&self, _: &mut Tx<'_>, order: Order) -> Answer<Receipt, Full> {
        Ok(Receipt { account: order.account, code: order.pin })
    }

    fn noted(&self, db: &Snapshot<'_>, account: String) -> Answer<i64, Never> {
        let count: Option<(i64,)> =
            db.row("SELECT count(*) FROM book_note WHERE account = $1", (account,))?;
        Ok(count.map_or(0, |(count,)| count))
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Buy(Order);

impl Saga for Buy {
    const NAME: &'static str = "book.buy";
    const VERSION: u32 = 1;
    type Answer = Receipt;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, Receipt> {
        plan.step("note", Book.note, (), |buy: &Self| buy.0.clone()).undo(Book.erase);
        let charged =
            plan.step("charge", Bank.charge, (), |buy: &Self| buy.0.clone()).undo_by_key(Bank.refund);
        let recorded = plan.pivot("record", Book.record, (), |buy: &Self| buy.0.clone());
        plan.then("thank", Bank.thank, charged, |_: &Self, receipt: &Receipt| receipt.clone());
        recorded
    }
}

/// Commands all the way.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Jot(Order);

impl Saga for Jot {
    const NAME: &'static str = "book.jot";
    const VERSION: u32 = 1;
    type Answer = Receipt;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, Receipt> {
        plan.step("note", Book.note, (), |jot: &Self| jot.0.clone()).undo(Book.erase);
        plan.pivot("record", Book.record, (), |jot: &Self| jot.0.clone())
    }
}

fn bank(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("bank").serves(Bank.serve(Code)))
}

fn book(_: &Setup<'_>) -> Result<Module, SetupError> {
    const SQL: &str = "CREATE TABLE book_note (account text NOT NULL)";
    Ok(Module::new("book")
        .migrations(&[Migration { name: "0001_book", sql: SQL }])
        .serves(Book.serve(Code))
        .needs::<BankClient>()
        .saga::<Buy>()
        .saga::<Jot>()
        .routes(&["/buy", "/jot"], routes))
}

fn routes(links: &Links) -> Router {
    async fn buy(State(book): State<SagaClient<Buy>>, Json(order): Json<Order>) -> Result<(), Problem> {
        Ok(book.start(Buy(order), None).await.map(drop)?)
    }
    async fn jot(State(book): State<SagaClient<Jot>>, Json(order): Json<Order>) -> Result<(), Problem> {
        Ok(book.start(Jot(order), None).await.map(drop)?)
    }
    let buy = Router::new().route("/buy", post(buy)).with_state(links.saga());
    buy.merge(Router::new().route("/jot", post(jot)).with_state(links.saga()))
}

/// The application, mounted and served.
pub(crate) struct Desk {
    pub(crate) http: Http,
    pub(crate) mounted: Mounted,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
    data: tempfile::TempDir,
}

impl Desk {
    pub(crate) async fn open() -> anyhow::Result<Self> {
        Self::open_on(tempfile::tempdir()?).await
    }

    async fn open_on(data: tempfile::TempDir) -> anyhow::Result<Self> {
        let mounted = App::new("desk").module(bank).module(book).mount(data.path()).await?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router: Router = mounted.router();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let admin = std::fs::read_to_string(data.path().join("keys/admin.token"))?;
        until("the application to be ready", async || mounted.missing().is_empty().then_some(())).await;
        Ok(Self { http: Http::new(&url, admin.trim()), mounted, server, data })
    }

    pub(crate) async fn close(self) -> tempfile::TempDir {
        self.server.abort();
        self.mounted.stop().await;
        self.data
    }

    /// Ends the application, changes what it has recorded, and starts it again.
    pub(crate) async fn open_again_with(self, change: &str) -> anyhow::Result<Self> {
        let data = self.close().await;
        rusqlite::Connection::open(database(&data))?.execute_batch(change)?;
        Self::open_on(data).await
    }

    /// Changes what is recorded, beside the application that runs.
    pub(crate) fn change(&self, change: &str) -> anyhow::Result<()> {
        let connection = rusqlite::Connection::open(database(&self.data))?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        Ok(connection.execute_batch(change)?)
    }

    /// Begins a saga for an account whose effects come to what is said, and does not wait for its end.
    pub(crate) fn buy(
        &self,
        account: &str,
        acts: (Act, Act),
    ) -> tokio::task::JoinHandle<anyhow::Result<Response>> {
        self.script(account, acts);
        let (http, body) = (self.http.clone(), json!({"account": account, "pin": PIN}));
        tokio::spawn(async move { http.send(Request::post("/buy", &body)).await })
    }

    pub(crate) async fn jot(&self, account: &str) -> anyhow::Result<Response> {
        self.http.send(Request::post("/jot", &json!({"account": account, "pin": PIN}))).await
    }

    pub(crate) fn script(&self, account: &str, acts: (Act, Act)) {
        ACCOUNTS.lock().insert(account.to_owned(), acts);
    }

    pub(crate) async fn noted(&self, account: &str) -> anyhow::Result<i64> {
        let book = self.mounted.client::<BookClient>().expect("the book is mounted");
        Ok(book.noted(account.to_owned()).await?)
    }

    pub(crate) fn was_refunded(&self, key: &Value) -> bool {
        REFUNDS.lock().iter().any(|step| json!(step.to_string()) == *key)
    }

    pub(crate) async fn admin(&self, path: &str) -> anyhow::Result<Response> {
        let response = self.http.send(Request::get(format!("/admin/sagas{path}")).admin()).await?;
        assert!(!String::from_utf8_lossy(&response.body).contains(PIN), "{path}: {}", response.json);
        Ok(response)
    }

    pub(crate) async fn order(&self, id: &str, what: &str) -> anyhow::Result<Response> {
        self.http.send(Request::post(format!("/admin/sagas/{id}/{what}"), &json!({})).admin()).await
    }

    pub(crate) async fn show(&self, id: &str) -> anyhow::Result<Value> {
        let response = self.admin(&format!("/{id}")).await?;
        assert_eq!(response.status, 200, "{}", response.json);
        Ok(response.json)
    }

    /// The first saga of a list that is not empty.
    pub(crate) async fn first(&self, query: &str) -> Value {
        until("a saga to be listed", async || {
            let list = self.admin(query).await.ok()?.json;
            list["sagas"].get(0).cloned()
        })
        .await
    }

    /// The saga once it is as it should be.
    pub(crate) async fn becomes(&self, id: &str, is: impl Fn(&Value) -> bool) -> Value {
        until("a saga to become what it should", async || self.show(id).await.ok().filter(&is)).await
    }
}

fn database(data: &tempfile::TempDir) -> PathBuf {
    data.path().join("desk.db")
}
