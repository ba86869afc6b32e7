//! What the macros write, used as an application uses it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use modulith::{
    Answer, AnyBox, BoxFuture, CallError, CallFault, Client, ClientKey, Column, Context, ContractClient,
    Direction, Done, EffectRan, Fault, FaultKind, Found, Handler, Kind, LocalCalls, Never, NotRun, Origin,
    Outcome, Param, ProviderModel, Queried, Refusal, RefusalRecord, Served, Snapshot, Statements, StepKey,
    Tx, Value, contract,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Request {
    pub product: String,
    pub quantity: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hold {
    pub quantity: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum HoldRefused {
    #[refused("only {left:>2} of {product} left {{sic}}, of {product}")]
    SoldOut {
        product: String,
        left: u32,
        internal: Vec<u8>,
    },
    #[refused(404, "{1} is not the product {0}")]
    UnknownProduct(String, i64),
    /// The shop is {closed}:
    /// come back tomorrow.
    ///
    /// Not shown.
    #[refused(503)]
    Closed,
    HTTPTooSlow,
    #[refused("of type {type}")]
    Raw {
        r#type: u8,
    },
    #[refused("{{}}")]
    Braces,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema, Refusal)]
#[refused(402, "{0} are missing")]
pub struct Unpaid(u32);

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum Nothing {}

#[contract(name = "products", version = 3)]
pub trait Products {
    /// How much is left.
    #[query]
    fn left(&self, db: &Snapshot<'_>, product: String) -> modulith::Answer<u32, Never>;

    #[query(heavy)]
    fn report(&self, _: &Snapshot<'_>) -> Answer<Vec<u32>, Never>;

    /// Holds stock.
    #[command]
    #[must_use = "a hold is released or recorded"]
    fn hold(&self, tx: &mut Tx<'_>, request: Request) -> Answer<Hold, HoldRefused>;

    #[command]
    fn clear(&self, tx: &mut Tx<'_>) -> Answer<(), Nothing>;

    #[effect]
    async fn charge(&self, cx: &Context, request: Request) -> Result<i64, CallError<Unpaid>>;

    #[effect]
    async fn refund(&self, cx: &modulith::Context, step: StepKey) -> Result<(), CallError<Never>>;

    #[effect]
    async fn r#move(&self, cx: &Context) -> Result<String, CallError<Never>>;
}

mod inner {
    //! A private contract: the macro's items follow its visibility and leave no warning of their own.
    use modulith::{Answer, Never, Tx, contract};

    #[contract(name = "inner", version = 1)]
    pub(super) trait Inner {
        #[command]
        fn register(&self, tx: &mut Tx<'_>, name: String) -> Answer<(), Never>;
    }

    #[contract(name = "unused", version = 1)]
    trait Unused {
        #[command]
        fn register(&self, tx: &mut Tx<'_>, name: String) -> Answer<(), Never>;
    }
}

#[contract(name = "payments", version = 1)]
pub trait Payments {
    #[effect(window = "7d", look_up = find_charge)]
    async fn charge(&self, cx: &Context, amount: i64) -> Result<i64, CallError<Unpaid>>;

    #[effect]
    async fn find_charge(&self, cx: &Context, key: StepKey) -> Result<Found<i64, Unpaid>, CallError<Never>>;
}

/// The same to its callers.
mod undeclared {
    use super::*;

    #[contract(name = "payments", version = 1)]
    pub(super) trait Payments {
        #[effect]
        async fn charge(&self, cx: &Context, amount: i64) -> Result<i64, CallError<Unpaid>>;

        #[effect]
        async fn find_charge(
            &self,
            cx: &Context,
            key: StepKey,
        ) -> Result<Found<i64, Unpaid>, CallError<Never>>;
    }
}

/// What a provider has under the sequence of a key.
struct PaymentsModule;

impl Payments for PaymentsModule {
    async fn charge(&self, _: &Context, amount: i64) -> Result<i64, CallError<Unpaid>> {
        Ok(amount)
    }

    async fn find_charge(&self, _: &Context, key: StepKey) -> Result<Found<i64, Unpaid>, CallError<Never>> {
        Ok(match key.seq {
            0 => Found::Nothing,
            1 => Found::Refused(Unpaid(7)),
            amount => Found::Done(amount),
        })
    }
}

struct Module {
    stock: u32,
}

impl Products for Module {
    fn left(&self, _db: &Snapshot<'_>, product: String) -> Answer<u32, Never> {
        Ok(self.stock + product.len() as u32)
    }

    fn report(&self, db: &Snapshot<'_>) -> Answer<Vec<u32>, Never> {
        Ok(vec![db.now_ms() as u32])
    }

    fn hold(&self, tx: &mut Tx<'_>, request: Request) -> Answer<Hold, HoldRefused> {
        if request.quantity > self.stock {
            Err(HoldRefused::SoldOut { product: request.product, left: self.stock, internal: Vec::new() })?;
        }
        tx.execute("UPDATE products_stock SET stock = stock - $1", (request.quantity,))?;
        Ok(Hold { quantity: request.quantity })
    }

    fn clear(&self, tx: &mut Tx<'_>) -> Answer<(), Nothing> {
        tx.execute("DELETE FROM products_stock", ())?;
        Ok(())
    }

    async fn charge(&self, cx: &Context, request: Request) -> Result<i64, CallError<Unpaid>> {
        tokio::task::yield_now().await;
        match request.quantity {
            0 => Err(CallError::Refused(Unpaid(7))),
            _ => Ok(cx.request_id.len() as i64),
        }
    }

    async fn refund(&self, _: &Context, _step: StepKey) -> Result<(), CallError<Never>> {
        Ok(())
    }

    async fn r#move(&self, _: &Context) -> Result<String, CallError<Never>> {
        Ok("moved".to_owned())
    }
}

/// An engine that counts its statements.
struct Counting(u64);

impl Statements for Counting {
    fn execute(&mut self, _: &str, _: &[Value<'_>]) -> Result<u64, Fault> {
        self.0 += 1;
        Ok(self.0)
    }

    fn query(
        &mut self,
        _: &str,
        _: &[Value<'_>],
        _: &mut dyn FnMut(&dyn modulith::Columns) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        Ok(())
    }
}

/// The served module behind the client, without a runtime.
struct Local(Served);

impl LocalCalls for Local {
    fn query(&self, method: usize, slot: &mut (dyn Any + Send)) -> Result<Queried, NotRun> {
        let Handler::Query { run, heavy } = &self.0.methods[method].handler else { panic!("not a query") };
        if *heavy {
            return Ok(Queried::IsHeavy);
        }
        run.run(&Snapshot::new(&mut Counting(0), 11), slot)?;
        Ok(Queried::Here)
    }

    fn heavy_query(&self, method: usize, mut slot: AnyBox) -> BoxFuture<'_, Result<AnyBox, NotRun>> {
        let Handler::Query { run, .. } = &self.0.methods[method].handler else { panic!("not a query") };
        Box::pin(async move {
            run.run(&Snapshot::new(&mut Counting(0), 11), slot.as_mut())?;
            Ok(slot)
        })
    }

    fn command(
        &self,
        method: usize,
        request: AnyBox,
        key: Option<ClientKey>,
    ) -> BoxFuture<'_, Result<Done, CallFault>> {
        let Handler::Command { run } = &self.0.methods[method].handler else { panic!("not a command") };
        assert!(key.is_some(), "the client was keyed");
        let ran = run.run(&mut Tx::new(&mut Counting(0), 11), request.as_ref()).map_err(NotRun::from);
        Box::pin(async move { Ok(Done::Ran(ran?)) })
    }

    fn effect(&self, method: usize, request: AnyBox) -> BoxFuture<'_, EffectRan> {
        let Handler::Effect { run, .. } = &self.0.methods[method].handler else { panic!("not an effect") };
        run.run(Context::background("four"), request)
    }
}

#[tokio::test]
async fn a_client_reaches_what_is_served() {
    let served = Products.serve(Arc::new(Module { stock: 5 }));
    let kinds: Vec<_> = served.methods.iter().map(|method| (method.name, method.kind())).collect();
    assert_eq!(
        kinds,
        [
            ("left", Kind::Query),
            ("report", Kind::Query),
            ("hold", Kind::Command),
            ("clear", Kind::Command),
            ("charge", Kind::Effect),
            ("refund", Kind::Effect),
            ("move", Kind::Effect),
        ]
    );
    let client = ProductsClient::from_client(Client::local(Arc::new(Local(served))));
    let products = client.keyed(ClientKey::new("", "", "k", b""));
    let request = |quantity| Request { product: "mug".to_owned(), quantity };

    assert_eq!(products.left("mug".to_owned()).await.unwrap(), 8);
    assert_eq!(products.report().await.unwrap(), [11]);
    assert_eq!(products.hold(request(2)).await.unwrap(), Hold { quantity: 2 });
    let refused = products.hold(request(6)).await.unwrap_err();
    assert_eq!(refused.to_string(), "refused: only  5 of mug left {sic}, of mug");
    products.clear().await.unwrap();
    assert_eq!(products.charge(request(1)).await.unwrap(), 4);
    assert!(matches!(products.charge(request(0)).await, Err(CallError::Refused(Unpaid(7)))));
    assert_eq!(products.r#move().await.unwrap(), "moved");
}

#[test]
fn a_contract_is_served_with_and_without_an_arc() {
    assert_eq!(Products.serve(Module { stock: 1 }).methods.len(), 7);
    assert_eq!(Products.serve(Arc::new(Module { stock: 1 })).contract, ProductsClient::model());
    assert_eq!((ProductsClient::CONTRACT, Products.model().version), ("products", 3));
}

#[test]
fn tokens_know_their_place() {
    assert_eq!((Products.left.contract, Products.left.method, Products.left.index), ("products", "left", 0));
    assert_eq!((Products.r#move.method, Products.r#move.index), ("move", 6));
    assert_eq!(inner::Inner.register.method, "register");
}

/// A fingerprint decides whether two peers may meet: it must not change with a compiler or an unrelated edit.
#[test]
fn a_fingerprint_is_stable() {
    assert_eq!(Products.model().fingerprint(), "256f804914828ed3");
    assert_ne!(Products.model().fingerprint(), inner::Inner.model().fingerprint());
}

#[test]
fn an_effect_declares_what_it_relies_on() {
    let declared =
        ProviderModel { window: Duration::from_secs(7 * 24 * 60 * 60), look_up: Some("find_charge") };
    assert_eq!((Payments.charge.provider, Payments.find_charge.provider), (declared, ProviderModel::DEFAULT));
    let model = Payments.model();
    let of_methods: Vec<_> = model.methods.iter().map(|method| method.provider).collect();
    assert_eq!(of_methods, [Some(declared), Some(ProviderModel::DEFAULT)]);
    assert_eq!(inner::Inner.model().methods[0].provider, None);
    let served = Payments.serve(PaymentsModule);
    let Handler::Effect { provider, .. } = &served.methods[0].handler else { panic!("not an effect") };
    assert_eq!(*provider, declared);
    // What it relies on may be corrected without releasing its callers.
    assert_eq!(model.fingerprint(), undeclared::Payments.model().fingerprint());
}

#[tokio::test]
async fn a_look_up_tells_what_its_effect_did() {
    let served = Payments.serve(PaymentsModule);
    let [charge, find] = &served.methods[..] else { panic!("two methods") };
    let (Handler::Effect { run: charged, .. }, Handler::Effect { run: found, .. }) =
        (&charge.handler, &find.handler)
    else {
        panic!("not effects");
    };
    let look_up = async |seq| {
        let key =
            StepKey { origin: Origin::Saga, src: Default::default(), seq, step: 0, direction: Direction::Do };
        match found.run(Context::background(""), Box::new(key)).await {
            EffectRan::Done(answer) => charged.found(answer),
            _ => panic!("it knows"),
        }
    };
    assert!(look_up(0).await.unwrap().is_none());
    let refused = charge.codec.outcome(&look_up(1).await.unwrap().unwrap()).unwrap();
    assert_eq!(refused, Outcome::Refused(RefusalRecord::of(&Unpaid(7)).unwrap()));
    let done = charge.codec.outcome(&look_up(250).await.unwrap().unwrap()).unwrap();
    assert_eq!(done, Outcome::Done(modulith::encode(&250_i64).unwrap()));
    assert!(charged.found(Box::new(250_i64)).is_err(), "that is no answer of a look-up");
}

#[test]
fn a_refusal_has_code_status_and_text() {
    let internal = Vec::new();
    for (refusal, code, status, text) in [
        (
            HoldRefused::SoldOut { product: "mug".to_owned(), left: 5, internal },
            "sold_out",
            409,
            "only  5 of mug left {sic}, of mug",
        ),
        (
            HoldRefused::UnknownProduct("mug".to_owned(), 7),
            "unknown_product",
            404,
            "7 is not the product mug",
        ),
        (HoldRefused::Closed, "closed", 503, "The shop is {closed}: come back tomorrow."),
        (HoldRefused::HTTPTooSlow, "http_too_slow", 409, "http too slow"),
        (HoldRefused::Raw { r#type: 3 }, "raw", 409, "of type 3"),
        (HoldRefused::Braces, "braces", 409, "{}"),
    ] {
        assert_eq!((refusal.code(), refusal.status(), &*refusal.text()), (code, status, text));
        let record = RefusalRecord::of(&refusal).unwrap();
        assert_eq!((record.code.as_str(), record.typed::<HoldRefused>()), (code, Some(refusal)));
    }
    assert_eq!((Unpaid(7).code(), Unpaid(7).status(), &*Unpaid(7).text()), ("unpaid", 402, "7 are missing"));
}

#[derive(Debug, Clone, PartialEq, Column)]
struct Name(String);

#[derive(Debug, Clone, PartialEq, Column)]
struct Place(Option<u16>);

#[derive(Debug, Clone, Copy, PartialEq, Column)]
enum State {
    Placed,
    OnItsWay,
}

#[test]
fn a_column_is_read_as_it_was_written() {
    fn round<C: Column + Clone + PartialEq + std::fmt::Debug>(column: C, stored: Value<'_>) {
        assert_eq!(column.param(), stored);
        assert_eq!(C::from_value(stored), Ok(column));
    }
    round(Name("mug".to_owned()), Value::Text("mug"));
    round(Place(Some(7)), Value::Integer(7));
    round(Place(None), Value::Null);
    round(State::Placed, Value::Text("placed"));
    round(State::OnItsWay, Value::Text("on_its_way"));
    assert_eq!(State::Placed.param(), Some(State::Placed).param());
}

#[test]
fn a_column_names_what_it_cannot_read() {
    let unknown = State::from_value(Value::Text("lost")).unwrap_err();
    assert_eq!(unknown.kind, FaultKind::Type);
    assert_eq!(unknown.message, "`lost` is no `State`, which is one of `placed`, `on_its_way`");
    assert_eq!(
        State::from_value(Value::Integer(1)).unwrap_err().message,
        "column holds an integer, not text"
    );
    assert_eq!(Place::from_value(Value::Integer(-1)).unwrap_err().kind, FaultKind::Type);
}
