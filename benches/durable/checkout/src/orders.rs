//! Orders: the plan of a checkout, and the order book with its outbox.

use std::sync::OnceLock;

use callers::{Line, Order};
use modulith::http::Router;
use modulith::{
    Answer, Handle, Module, Never, Plan, Saga, SagaClient, Setup, SetupError, Tx, contract, encode,
    migrations,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::payments::{Debit, Payment, Payments, PaymentsClient};
use crate::products::{Products, ProductsClient, Units};

pub(crate) const ORDER: &str = "INSERT INTO orders_order (id, total_minor, placed_at) VALUES ($1, $2, $3)";
pub(crate) const LINE: &str =
    "INSERT INTO orders_line (order_id, line, product_id, name, quantity, unit_price_minor)
     VALUES ($1, $2, $3, $4, $5, $6)";
pub(crate) const EVENT: &str = "INSERT INTO orders_outbox (kind, key, body, at) VALUES ($1, $2, $3, $4)";
/// What the outbox calls the one event that there is.
pub(crate) const PLACED: &str = "order_placed";

#[contract(name = "orders", version = 1)]
pub(crate) trait OrderBook {
    /// Writes an order down, paid, with the event that says so.
    #[command]
    fn record(&self, tx: &mut Tx<'_>, request: Record) -> Answer<Placed, Never>;
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Record {
    order: Order,
    payment: Uuid,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Placed {
    pub(crate) order: Uuid,
    pub(crate) placed_at_ms: i64,
}

/// The event of an order.
#[derive(Serialize)]
pub(crate) struct OrderPlaced<'a> {
    pub(crate) order: Uuid,
    pub(crate) payment: Uuid,
    pub(crate) total_minor: i64,
    pub(crate) lines: &'a [Line],
}

/// Hold stock, take money, record the order. All commands, so that in one process it is one transaction.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct PlaceOrder(pub(crate) Order);

impl Saga for PlaceOrder {
    const NAME: &'static str = "orders.place";
    const VERSION: u32 = 1;
    type Answer = Placed;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, Placed> {
        plan.step("hold", Products.hold, (), |checkout: &Self| Units::of(&checkout.0.lines))
            .undo(Products.release);
        let payment = plan
            .step("debit", Payments.debit, (), |checkout: &Self| Debit {
                payment: checkout.0.id,
                amount_minor: checkout.0.total_minor,
            })
            .undo(Payments.credit);
        plan.pivot("record", OrderBook.record, payment, |checkout: &Self, payment: &Payment| Record {
            order: checkout.0.clone(),
            payment: payment.id,
        })
    }
}

struct OrderBookModule;

impl OrderBook for OrderBookModule {
    fn record(&self, tx: &mut Tx<'_>, Record { order, payment }: Record) -> Answer<Placed, Never> {
        let now_ms = tx.now_ms();
        tx.execute(ORDER, (order.id, order.total_minor, now_ms))?;
        for (number, line) in (0_i64..).zip(&order.lines) {
            let row = (order.id, number, &line.product, &line.name, line.quantity, line.unit_price_minor);
            tx.execute(LINE, row)?;
        }
        let Order { id, total_minor, lines, .. } = &order;
        let event = encode(&OrderPlaced { order: *id, payment, total_minor: *total_minor, lines })?;
        tx.execute(EVENT, (PLACED, *id, event, now_ms))?;
        Ok(Placed { order: *id, placed_at_ms: now_ms })
    }
}

/// A module is declared by a function that captures nothing, so what it hands out stands here.
static CLIENT: OnceLock<SagaClient<PlaceOrder>> = OnceLock::new();

/// Starts checkouts, once the application is mounted.
pub(crate) fn client() -> Option<&'static SagaClient<PlaceOrder>> {
    CLIENT.get()
}

pub(crate) fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("orders")
        .migrations(migrations!["../migrations/0001_orders.sql"])
        .serves(OrderBook.serve(OrderBookModule))
        .needs::<ProductsClient>()
        .needs::<PaymentsClient>()
        .saga::<PlaceOrder>()
        .admin_routes(|links| {
            CLIENT.get_or_init(|| links.saga());
            Router::new()
        }))
}
