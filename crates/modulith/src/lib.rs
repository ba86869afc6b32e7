//! Write a modular monolith once; run it as one process on one embedded database, or as many services, each with
//! its own process and database behind a gateway. Only a topology file changes.
//!
//! This page is a ladder: the smallest application that works, then one rung more in each section. The
//! [guide](https://github.com/modulith-rs/modulith/tree/main/docs/guide) has a chapter for each rung.
//!
//! # One module
//!
//! A module has tables, a contract that says what may be asked of it, and HTTP routes. A *query* is a function over a
//! read snapshot of the module's own data. A *command* is a function over a transaction on it. Neither can await, so
//! neither can hold a lock across the network. A handler reaches both through the client that the macro writes.
//!
//! ```no_run
//! use modulith::http::{Json, Path, Problem, Router, get};
//! use modulith::{Answer, App, Links, Migration, Module, Never, Setup, SetupError, Snapshot, Tx, contract};
//!
//! #[contract(name = "tally", version = 1)]
//! pub trait Tally {
//!     #[query]
//!     fn count(&self, db: &Snapshot<'_>, name: String) -> Answer<i64, Never>;
//!     #[command]
//!     fn add(&self, tx: &mut Tx<'_>, name: String) -> Answer<i64, Never>;
//! }
//!
//! struct TallyModule;
//!
//! impl Tally for TallyModule {
//!     fn count(&self, db: &Snapshot<'_>, name: String) -> Answer<i64, Never> {
//!         Ok(db.row("SELECT count FROM tally_count WHERE name = $1", (&name,))?.map_or(0, |(count,)| count))
//!     }
//!     fn add(&self, tx: &mut Tx<'_>, name: String) -> Answer<i64, Never> {
//!         let sql = "INSERT INTO tally_count (name, count) VALUES ($1, 1)
//!                    ON CONFLICT (name) DO UPDATE SET count = tally_count.count + 1 RETURNING count";
//!         Ok(tx.row(sql, (&name,))?.map_or(0, |(count,)| count))
//!     }
//! }
//!
//! fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
//!     const SQL: &str = "CREATE TABLE tally_count (name text PRIMARY KEY NOT NULL, count bigint NOT NULL)";
//!     Ok(Module::new("tally")
//!         .migrations(&[Migration { name: "0001_tally", sql: SQL }])
//!         .serves(Tally.serve(TallyModule))
//!         .routes(&["/tally"], routes))
//! }
//!
//! fn routes(links: &Links) -> Router {
//!     let (reader, writer): (TallyClient, TallyClient) = (links.client(), links.client());
//!     let count = async move |Path(name)| Ok::<_, Problem>(Json(reader.count(name).await?));
//!     let add = async move |Path(name)| Ok::<_, Problem>(Json(writer.add(name).await?));
//!     Router::new().route("/tally/{name}", get(count).post(add))
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     modulith::main(App::new("tally").module(module))
//! }
//! ```
//!
//! `cargo run` serves it on `127.0.0.1:8080` with its database in `./data`. `POST /tally/tea` answers after the row
//! is on disk. `cargo run -- check`, `graph` and `--help` are there too: the application's binary is the tool.
//!
//! Migrations usually stand in files of their own: [`migrations!`].
//!
//! # Refusing
//!
//! What a command declines is a type of its contract. Whatever it wrote before is taken back, and the refusal is the
//! answer. `?` on a statement is a *fault*: nothing is stored, and the caller reads *not run*.
//!
//! ```
//! use modulith::{Answer, CallError, Refusal, Tx, contract};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
//! pub struct Take {
//!     pub product: String,
//!     pub quantity: u32,
//! }
//!
//! #[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
//! pub enum TakeRefused {
//!     #[refused(409, "not enough of {product}")]
//!     SoldOut { product: String },
//! }
//!
//! #[contract(name = "stock", version = 1)]
//! pub trait Stock {
//!     /// Takes pieces out of the stock, or none.
//!     #[command]
//!     fn take(&self, tx: &mut Tx<'_>, request: Take) -> Answer<(), TakeRefused>;
//! }
//!
//! struct StockModule;
//!
//! impl Stock for StockModule {
//!     fn take(&self, tx: &mut Tx<'_>, Take { product, quantity }: Take) -> Answer<(), TakeRefused> {
//!         let changed = tx.execute(
//!             "UPDATE stock_product SET stock = stock - $2 WHERE id = $1 AND stock >= $2",
//!             (&product, quantity),
//!         )?;
//!         if changed == 0 {
//!             return Err(TakeRefused::SoldOut { product }.into());
//!         }
//!         Ok(())
//!     }
//! }
//!
//! // What a caller can tell apart, in the same process and across a connection:
//! async fn buy(stock: &StockClient, request: Take) -> &'static str {
//!     match stock.take(request).await {
//!         Ok(()) => "taken",
//!         Err(CallError::Refused(TakeRefused::SoldOut { .. })) => "sold out: final",
//!         Err(CallError::RefusedOther(_)) => "refused by a newer version, in a case that this build does not know",
//!         Err(CallError::NotRun(_)) => "certainly not run: try again",
//!         Err(CallError::Unknown(_)) => "it may have run: repeat the same key, or look",
//!     }
//! }
//! # let _ = (Stock.serve(StockModule), buy);
//! ```
//!
//! In a handler, `?` turns a [`CallError`] into an [`http::Problem`] with the refusal's status.
//!
//! # Needing another module
//!
//! A module depends on another one's contract and declares the need. Whether the other one runs in this process or
//! elsewhere is decided at start; the calling code is the same.
//!
//! ```
//! # use modulith::{Answer, Never, Snapshot, contract};
//! # #[contract(name = "stock", version = 1)]
//! # pub trait Stock {
//! #     #[query]
//! #     fn left(&self, db: &Snapshot<'_>, product: String) -> Answer<u32, Never>;
//! # }
//! use modulith::http::{Json, Path, Problem, Router, get};
//! use modulith::{Links, Module, Setup, SetupError};
//!
//! fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
//!     Ok(Module::new("shop").needs::<StockClient>().routes(&["/shop"], routes))
//! }
//!
//! fn routes(links: &Links) -> Router {
//!     let stock: StockClient = links.client();
//!     let left = async move |Path(product)| Ok::<_, Problem>(Json(stock.left(product).await?));
//!     Router::new().route("/shop/{product}", get(left))
//! }
//! # let _ = module;
//! ```
//!
//! # Several modules, all or nothing
//!
//! A [`Saga`] is a plan: steps with their undos, as data. Consecutive command steps whose modules share a process are
//! one transaction. Where the topology cuts between two modules, the steps become durable, and a refusal undoes what was
//! done. The *pivot* decides: before it the plan can turn back, after it the plan only goes forward.
//!
//! ```
//! use modulith::{Answer, Handle, Never, Plan, Saga, SagaClient, Tx, contract, http::Problem};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! # #[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
//! # pub struct Hold { pub product: String, pub quantity: u32 }
//! # #[derive(Debug, Serialize, Deserialize, JsonSchema, modulith::Refusal)]
//! # pub enum HoldRefused { SoldOut }
//! #[contract(name = "stock", version = 1)]
//! pub trait Stock {
//!     #[command]
//!     fn hold(&self, tx: &mut Tx<'_>, hold: Hold) -> Answer<Hold, HoldRefused>;
//!     #[command]
//!     fn release(&self, tx: &mut Tx<'_>, hold: Hold) -> Answer<(), Never>;
//!     #[command]
//!     fn sell(&self, tx: &mut Tx<'_>, hold: Hold) -> Answer<(), Never>;
//! }
//!
//! #[contract(name = "orders", version = 1)]
//! pub trait Orders {
//!     #[command]
//!     fn record(&self, tx: &mut Tx<'_>, hold: Hold) -> Answer<i64, Never>;
//! }
//!
//! #[derive(Serialize, Deserialize, JsonSchema)]
//! pub struct PlaceOrder {
//!     product: String,
//!     quantity: u32,
//! }
//!
//! impl Saga for PlaceOrder {
//!     const NAME: &'static str = "orders.place";
//!     const VERSION: u32 = 1;
//!     type Answer = i64;
//!
//!     fn plan(plan: &mut Plan<Self>) -> Handle<Self, i64> {
//!         let hold = plan
//!             .step("hold", Stock.hold, (), |order: &Self| Hold {
//!                 product: order.product.clone(),
//!                 quantity: order.quantity,
//!             })
//!             .undo(Stock.release);
//!         let number = plan.pivot("record", Orders.record, hold, |_: &Self, hold: &Hold| hold.clone());
//!         plan.then("sell", Stock.sell, hold, |_: &Self, hold: &Hold| hold.clone());
//!         number
//!     }
//! }
//!
//! // `.saga::<PlaceOrder>()` on the module, then in its routes: `links.saga()`.
//! async fn place(orders: &SagaClient<PlaceOrder>, order: PlaceOrder) -> Result<i64, Problem> {
//!     Ok(orders.start(order, None).await?)
//! }
//! # let _ = place;
//! # modulith::PlanModel::of::<PlaceOrder>().map_err(|problems| format!("{problems:?}")).unwrap();
//! ```
//!
//! # Reaching the outside world
//!
//! An *effect* is the kind that may await: a card provider, a mail server. It shows the outside the same key on every
//! attempt. It must say *unknown* when it does not know; then the same bytes are sent again while the provider
//! recognises the key, and after that it is asked what it has.
//!
//! ```
//! use modulith::{CallError, Context, Found, Never, StepKey, Unknown, UnknownReason, contract};
//!
//! #[contract(name = "payments", version = 1)]
//! pub trait Payments {
//!     #[effect(window = "24h", look_up = find_charge)]
//!     async fn charge(&self, cx: &Context, amount_minor: i64) -> Result<String, CallError<Never>>;
//!     /// What the provider has under the key of a charge.
//!     #[effect]
//!     async fn find_charge(&self, cx: &Context, key: StepKey)
//!     -> Result<Found<String, Never>, CallError<Never>>;
//!     /// Undoes a step by its key, since a lost answer leaves only the key.
//!     #[effect]
//!     async fn refund(&self, cx: &Context, step: StepKey) -> Result<(), CallError<Never>>;
//! }
//!
//! struct PaymentsModule;
//!
//! impl Payments for PaymentsModule {
//!     async fn charge(&self, cx: &Context, _amount_minor: i64) -> Result<String, CallError<Never>> {
//!         let _header = ("Idempotency-Key", cx.idempotency_key());
//!         // The request went out and no answer came:
//!         Err(Unknown::new(UnknownReason::Provider, "no answer within 10 s").into())
//!     }
//!
//!     async fn find_charge(
//!         &self,
//!         _cx: &Context,
//!         key: StepKey,
//!     ) -> Result<Found<String, Never>, CallError<Never>> {
//!         let _searched_for = key.to_string();
//!         Ok(Found::Nothing)
//!     }
//!
//!     async fn refund(&self, _cx: &Context, _step: StepKey) -> Result<(), CallError<Never>> {
//!         Ok(())
//!     }
//! }
//! # let _ = Payments.serve(PaymentsModule);
//! ```
//!
//! In a plan: `plan.step("charge", Payments.charge, (), ..).undo_by_key(Payments.refund)`.
//!
//! # What nobody is to read
//!
//! A [`Secret`] is stored and sent like any value, and no log and no operator's view shows it.
//!
//! ```
//! use modulith::Secret;
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, Serialize, Deserialize, JsonSchema)]
//! pub struct SignIn {
//!     pub email: String,
//!     pub password: Secret<String>,
//! }
//!
//! let attempt = SignIn { email: "ada@example.org".into(), password: Secret::new("enigma".into()) };
//! assert_eq!(format!("{attempt:?}"), r#"SignIn { email: "ada@example.org", password: Secret(…) }"#);
//! assert_eq!(attempt.password.expose(), "enigma");
//! ```
//!
//! # Configuration
//!
//! A module reads its section of the topology file, with the environment on top. A key that is missing or unknown is
//! reported with the other problems, before anything starts.
//!
//! ```
//! use modulith::{Module, Setup, SetupError};
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     /// `[module.mail] sender = ".."`, or `MODULITH_MAIL_SENDER`.
//!     sender: String,
//! }
//!
//! fn module(setup: &Setup<'_>) -> Result<Module, SetupError> {
//!     let Config { sender } = setup.config("mail")?;
//!     # let _ = sender;
//!     Ok(Module::new("mail"))
//! }
//! # let _ = module;
//! ```
//!
//! # Splitting
//!
//! A topology file says which service hosts which modules. No code changes.
//!
//! ```toml
//! [gateway]
//! listen = "127.0.0.1:8080"
//!
//! [service.stock]
//! modules = ["stock"]
//!
//! [service.shop]
//! modules = ["shop", "orders"]
//! ```
//!
//! `cargo run -- --topology split.toml` starts a process for each service and the gateway, and stops them together.
//!
//! # Inside a program that you have
//!
//! [`App::mount`] starts the modules in an existing axum program and gives a router to merge into its own.
//!
//! ```no_run
//! # fn module(_: &modulith::Setup<'_>) -> Result<modulith::Module, modulith::SetupError> {
//! #     Ok(modulith::Module::new("tally"))
//! # }
//! use modulith::{App, StartError, http::{Router, get}};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), StartError> {
//! let mounted = App::new("shop").module(module).mount("./data").await?;
//! let program: Router = Router::new().route("/hello", get(|| async { "hello" })).merge(mounted.router());
//! // … serve `program` as before, then:
//! mounted.stop().await;
//! # let _ = program;
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! - `runtime` (default): everything. A contract's crate switches it off
//!   (`modulith = { .., default-features = false }`), so that it depends on types and macros only.
pub use modulith_core::*;
pub use modulith_macros::{Column, Refusal, contract};

#[cfg(feature = "runtime")]
pub use modulith_data::{Migration, file_stem, migrations};
#[cfg(feature = "runtime")]
pub use modulith_gateway::{SessionKeys, http};
#[cfg(feature = "runtime")]
pub use modulith_runtime::*;
