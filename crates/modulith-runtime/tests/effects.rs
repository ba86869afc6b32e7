//! Effects in plans: what a provider is asked, how often, and under which key, when it does not answer as it
//! should; and the undo by key, which is an effect itself.
//!
//! One application is mounted for each test. Its bank does what the test's script says and notes what it was
//! asked; a script is found by the name in the request, and by the step's key for an undo.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::LazyLock;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use modulith::http::{Json, Keyed, Problem};
use modulith::{
    Answer, App, CallError, Context, Handle, Links, Migration, Module, Mounted, NotRun, NotRunReason, Plan,
    Refusal, Saga, SagaClient, Setup, SetupError, StepKey, Tx, Unknown, UnknownReason, contract, encode,
};
use modulith_core::{Direction, Origin};
use modulith_test::{Http, Request, Response, until};
use parking_lot::{Mutex, MutexGuard};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_after_an_effect_undoes_it_by_its_key() -> anyhow::Result<()> {
    let shop = Shop::open("refused", Script::default()).await?;
    let refused = shop.buy(Pivot::Refuses).await?;
    assert_eq!((refused.status, refused.problem()), (409, "closed"), "{}", refused.json);
    shop.settled().await;
    let [charge] = &shop.charges()[..] else { panic!("{:?}", shop.charges()) };
    shop.refunded_once_after(1, charge.key);
    let again = shop.buy(Pivot::Refuses).await?;
    assert_eq!((again.status, again.problem()), (409, "closed"), "{}", again.json);
    assert_eq!((shop.charges().len(), shop.refunds().len()), (1, 1), "a repeat asks nobody");
    shop.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_is_repeated_until_it_is_done() -> anyhow::Result<()> {
    for (name, refund, attempts) in [
        ("undo unknown", vec![Act::Unknown, Act::Unknown], 3),
        ("undo panics", vec![Act::Panic], 2),
        ("undo not run", vec![Act::NotRun, Act::Unknown, Act::NotRun], 4),
    ] {
        let shop = Shop::open(name, Script { refund: refund.into(), ..Script::default() }).await?;
        let refused = shop.buy(Pivot::Refuses).await?;
        assert_eq!((refused.status, refused.problem()), (409, "closed"), "{name}: {}", refused.json);
        shop.settled().await;
        shop.refunded_once_after(attempts, shop.charges()[0].key);
        shop.close().await;
    }
    Ok(())
}

/// An effect that is attempted again asks others again, within its own key.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_effect_asks_has_the_same_key_each_time() -> anyhow::Result<()> {
    let shop = Shop::open("within", Script::default()).await?;
    let bank: BankClient = shop.mounted.client().expect("the bank is served here");
    let outer =
        StepKey { origin: Origin::Saga, src: Uuid::from_u128(7), seq: 1, step: 0, direction: Direction::Do };
    for (key, amount_minor) in [(Some(outer), 5), (Some(outer), 5), (Some(outer), 6), (None, 5), (None, 5)] {
        let charge = Charge { account: shop.account.clone(), amount_minor };
        let within = Context { key, ..Context::background("within") };
        assert_eq!(within.scope(bank.charge(charge)).await?, amount_minor);
    }
    let keys: Vec<StepKey> = shop.charges().into_iter().map(|charge| charge.key).collect();
    assert_eq!(keys[0], keys[1]);
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 4, "{keys:?}");
    assert!(!keys.contains(&outer));
    shop.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_effect_is_asked_again_with_the_same_key_and_bytes() -> anyhow::Result<()> {
    for (name, charge) in [
        ("unknown", vec![Act::Unknown, Act::Unknown]),
        // What may have happened once still may have when later attempts certainly did nothing, however many.
        ("unknown, not run", [vec![Act::Unknown], vec![Act::NotRun; 7]].concat()),
        ("panics, not run", [vec![Act::Panic], vec![Act::NotRun; 7]].concat()),
        // More often than a step is tried that can be given up.
        ("unknown, long", vec![Act::Unknown; 8]),
    ] {
        for pivot in [Pivot::Records, Pivot::Refuses] {
            let attempts = charge.len() + 1;
            let script = Script { charge: charge.clone().into(), ..Script::default() };
            let shop = Shop::open(&format!("{name}: {pivot:?}"), script).await?;
            let answer = shop.buy(pivot).await?;
            shop.settled().await;
            let charges = shop.charges();
            assert_eq!(charges.len(), attempts, "{name}: {charges:?}");
            assert!(charges.iter().all(|charge| *charge == charges[0]), "{name}: {charges:?}");
            match pivot {
                Pivot::Records => {
                    assert_eq!((answer.status, &answer.json), (200, &json!(500)), "{name}");
                    assert_eq!(shop.refunds(), [], "{name}");
                }
                Pivot::Refuses => {
                    assert_eq!((answer.status, answer.problem()), (409, "closed"), "{name}");
                    shop.refunded_once_after(1, charges[0].key);
                }
            }
            shop.close().await;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_that_never_runs_is_given_up_and_not_undone() -> anyhow::Result<()> {
    let shop = Shop::open("never runs", Script { after: Act::NotRun, ..Script::default() }).await?;
    let aborted = shop.buy(Pivot::Records).await?;
    assert_eq!((aborted.status, aborted.problem()), (503, "aborted"), "{}", aborted.json);
    shop.settled().await;
    let charges = shop.charges();
    assert!(charges.len() > 1, "it is tried more than once: {charges:?}");
    assert!(charges.iter().all(|charge| *charge == charges[0]), "{charges:?}");
    assert_eq!(shop.refunds(), []);

    // It is sealed, so nothing is tried for a repeat, even if the provider would do it now.
    shop.rewrite(Script::default());
    let again = shop.buy(Pivot::Records).await?;
    assert_eq!((again.status, again.problem()), (503, "aborted"), "{}", again.json);
    assert_eq!((shop.charges().len(), shop.refunds().len()), (charges.len(), 0));
    shop.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declined_effect_is_final_and_not_undone() -> anyhow::Result<()> {
    let charge = [Act::Unknown, Act::Decline].into();
    let shop = Shop::open("declined", Script { charge, ..Script::default() }).await?;
    for _ in 0..2 {
        let declined = shop.buy(Pivot::Records).await?;
        assert_eq!((declined.status, declined.problem()), (402, "declined"), "{}", declined.json);
    }
    shop.settled().await;
    assert_eq!((shop.charges().len(), shop.refunds().len()), (2, 0));
    shop.close().await;
    Ok(())
}

/// Neither given up nor forgotten: a person is told, and it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_effect_that_stays_unknown_needs_attention() -> anyhow::Result<()> {
    let shop = Shop::open("stays unknown", Script { after: Act::Unknown, ..Script::default() }).await?;
    let answer = async {
        until("a saga to need attention", async || (shop.counts().await == Some((1, 1))).then_some(())).await;
        shop.rewrite(Script::default());
        shop.settled().await;
        shop.buy(Pivot::Records).await
    };
    let (first, answer) = tokio::join!(shop.buy(Pivot::Records), answer);
    let answer = answer?;
    assert_eq!((answer.status, &answer.json), (200, &json!(500)), "{}", answer.json);
    // Its caller may have left before.
    assert!(matches!(first?.status, 200 | 504));
    assert!(shop.charges().iter().all(|charge| *charge == shop.charges()[0]));
    assert_eq!((shop.refunds(), shop.counts().await), (vec![], Some((0, 0))));
    shop.close().await;
    Ok(())
}

/// What the bank does with one request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Do,
    Unknown,
    NotRun,
    Decline,
    Panic,
}

/// What the bank does for one customer: first what is listed, then `after`.
#[derive(Debug, Clone)]
struct Script {
    charge: VecDeque<Act>,
    refund: VecDeque<Act>,
    after: Act,
}

impl Default for Script {
    fn default() -> Self {
        Self { charge: VecDeque::new(), refund: VecDeque::new(), after: Act::Do }
    }
}

/// What the bank was asked once: under which key, and the bytes.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    key: StepKey,
    request: Vec<u8>,
}

/// One customer of the bank, which is one test.
struct Account {
    script: Script,
    charges: Vec<Asked>,
    refunds: Vec<Asked>,
}

static BANK: LazyLock<Mutex<HashMap<String, Account>>> = LazyLock::new(Mutex::default);

fn bank() -> MutexGuard<'static, HashMap<String, Account>> {
    BANK.lock()
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct Charge {
    account: String,
    amount_minor: i64,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
enum Declined {
    #[refused(402, "the card was declined")]
    Declined,
}

#[contract(name = "bank", version = 1)]
trait Bank {
    #[effect]
    async fn charge(&self, cx: &Context, charge: Charge) -> Result<i64, CallError<Declined>>;
    #[effect]
    async fn refund(&self, cx: &Context, step: StepKey) -> Result<(), CallError<modulith::Never>>;
}

struct BankModule;

impl Bank for BankModule {
    async fn charge(&self, cx: &Context, charge: Charge) -> Result<i64, CallError<Declined>> {
        let asked = Asked { key: cx.key.unwrap(), request: encode(&charge).unwrap() };
        let act = {
            let mut bank = bank();
            let account = bank.get_mut(&charge.account).unwrap();
            account.charges.push(asked);
            account.script.charge.pop_front().unwrap_or(account.script.after)
        };
        match act {
            Act::Decline => Err(CallError::Refused(Declined::Declined)),
            act => act.perform().map(|()| charge.amount_minor).map_err(Into::into),
        }
    }

    async fn refund(&self, cx: &Context, step: StepKey) -> Result<(), CallError<modulith::Never>> {
        let asked = Asked { key: cx.key.unwrap(), request: encode(&step).unwrap() };
        let act = {
            let mut bank = bank();
            let charged = |account: &&mut Account| account.charges.iter().any(|charge| charge.key == step);
            let account = bank.values_mut().find(charged).expect("what is undone was asked for");
            account.refunds.push(asked);
            account.script.refund.pop_front().unwrap_or(Act::Do)
        };
        Ok(act.perform()?)
    }
}

impl Act {
    fn perform(self) -> Result<(), modulith::CallFault> {
        match self {
            Act::Do => Ok(()),
            Act::Unknown => Err(Unknown::new(UnknownReason::Provider, "no answer").into()),
            Act::NotRun => Err(NotRun::new(NotRunReason::Unavailable, "not connected").into()),
            Act::Panic => panic!("the bank's code is broken, as the script says"),
            Act::Decline => unreachable!("a refund is never declined"),
        }
    }
}

fn bank_module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("bank").serves(Bank.serve(BankModule)))
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
enum Pivot {
    Records,
    Refuses,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
enum Closed {
    #[refused(409, "the book is closed")]
    Closed,
}

#[contract(name = "book", version = 1)]
trait Book {
    #[command]
    fn record(&self, tx: &mut Tx<'_>, entry: Entry) -> Answer<i64, Closed>;
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct Entry {
    amount_minor: i64,
    pivot: Pivot,
}

struct BookModule;

impl Book for BookModule {
    fn record(&self, tx: &mut Tx<'_>, entry: Entry) -> Answer<i64, Closed> {
        tx.execute("INSERT INTO book_entry (amount_minor) VALUES ($1)", (entry.amount_minor,))?;
        match entry.pivot {
            Pivot::Records => Ok(entry.amount_minor),
            Pivot::Refuses => Err(Closed::Closed.into()),
        }
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Buy {
    account: String,
    pivot: Pivot,
}

impl Saga for Buy {
    const NAME: &'static str = "book.buy";
    const VERSION: u32 = 1;
    type Answer = i64;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, i64> {
        let charged = plan
            .step("charge", Bank.charge, (), |buy: &Self| Charge {
                account: buy.account.clone(),
                amount_minor: 500,
            })
            .undo_by_key(Bank.refund);
        plan.pivot("record", Book.record, charged, |buy: &Self, amount_minor: &i64| Entry {
            amount_minor: *amount_minor,
            pivot: buy.pivot,
        })
    }
}

fn book_module(_: &Setup<'_>) -> Result<Module, SetupError> {
    const SQL: &str = "CREATE TABLE book_entry (amount_minor bigint NOT NULL)";
    Ok(Module::new("book")
        .migrations(&[Migration { name: "0001_book", sql: SQL }])
        .serves(Book.serve(BookModule))
        .needs::<BankClient>()
        .saga::<Buy>()
        .routes(&["/buy"], routes))
}

fn routes(links: &Links) -> Router {
    async fn buy(
        State(book): State<SagaClient<Buy>>,
        Keyed { key, body }: Keyed<Buy>,
    ) -> Result<Json<i64>, Problem> {
        Ok(Json(book.start(body, Some(key)).await?))
    }
    Router::new().route("/buy", post(buy)).with_state(links.saga())
}

/// The application, mounted and served; and one account at the bank.
struct Shop {
    account: String,
    http: Http,
    mounted: Mounted,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
    _data: tempfile::TempDir,
}

impl Shop {
    async fn open(account: &str, script: Script) -> anyhow::Result<Self> {
        let new = Account { script, charges: Vec::new(), refunds: Vec::new() };
        assert!(bank().insert(account.to_owned(), new).is_none(), "one account a test: {account}");
        let data = tempfile::tempdir()?;
        let app = App::new("effects").module(bank_module).module(book_module);
        let mounted = app.mount(data.path()).await?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router: Router = mounted.router();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let admin = std::fs::read_to_string(data.path().join("keys/admin.token"))?;
        until("the application to be ready", async || mounted.missing().is_empty().then_some(())).await;
        Ok(Self {
            account: account.to_owned(),
            http: Http::new(&url, admin.trim()),
            mounted,
            server,
            _data: data,
        })
    }

    /// Always under the same key.
    async fn buy(&self, pivot: Pivot) -> anyhow::Result<Response> {
        let body = json!({"account": self.account, "pivot": pivot});
        self.http.send(Request::post("/buy", &body).key("the-key")).await
    }

    /// How many sagas are open, and how many of them need attention.
    async fn counts(&self) -> Option<(i64, i64)> {
        let counts = self.http.send(Request::get("/admin/sagas").admin()).await.ok()?.json;
        Some((counts["open"].as_i64()?, counts["attention"].as_i64()?))
    }

    async fn settled(&self) {
        until("sagas to end", async || (self.counts().await?.0 == 0).then_some(())).await;
    }

    fn charges(&self) -> Vec<Asked> {
        bank()[&self.account].charges.clone()
    }

    fn refunds(&self) -> Vec<Asked> {
        bank()[&self.account].refunds.clone()
    }

    fn rewrite(&self, script: Script) {
        bank().get_mut(&self.account).unwrap().script = script;
    }

    /// The refund of `step` was asked for so often, always with its one key, and the last time was the end of it.
    fn refunded_once_after(&self, attempts: usize, step: StepKey) {
        let refunds = self.refunds();
        assert_eq!(refunds.len(), attempts, "{}: {refunds:?}", self.account);
        let expected = Asked { key: step.undo(), request: encode(&step).unwrap() };
        assert!(refunds.iter().all(|refund| *refund == expected), "{}: {refunds:?}", self.account);
    }

    async fn close(self) {
        self.server.abort();
        self.mounted.stop().await;
    }
}
