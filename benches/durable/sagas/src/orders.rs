//! Orders: the coordinator, and the third step.

use modulith::{Answer, Handle, Module, Never, Plan, Saga, Setup, SetupError, Tx, contract, migrations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::load;
use crate::payments::{Debit, Payments, PaymentsClient};
use crate::shipping::{Parcel, Shipping, ShippingClient};
use crate::stock::{Stock, StockClient};

const PRICE_MINOR: i64 = 250;

#[contract(name = "orders", version = 1)]
pub(crate) trait OrderBook {
    /// Writes an order down, and answers its number.
    #[command]
    fn record(&self, tx: &mut Tx<'_>, order: Order) -> Answer<i64, Never>;
}

/// A piece of one product; also what the saga begins with.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Order {
    pub(crate) id: i64,
    pub(crate) product: i64,
}

/// Reserve, debit, record, dispatch: each in another module.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct PlaceOrder(pub(crate) Order);

impl Saga for PlaceOrder {
    const NAME: &'static str = "orders.place";
    const VERSION: u32 = 1;
    type Answer = i64;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, i64> {
        plan.step("reserve", Stock.reserve, (), |saga: &Self| saga.0.product).undo(Stock.release);
        plan.step("debit", Payments.debit, (), |saga: &Self| Debit {
            order: saga.0.id,
            amount_minor: PRICE_MINOR,
        })
        .undo(Payments.credit);
        let order = plan.pivot("record", OrderBook.record, (), |saga: &Self| saga.0.clone());
        plan.then("dispatch", Shipping.dispatch, order, |saga: &Self, order: &i64| Parcel {
            order: *order,
            product: saga.0.product,
        });
        order
    }
}

struct OrderBookModule;

impl OrderBook for OrderBookModule {
    fn record(&self, tx: &mut Tx<'_>, Order { id, product }: Order) -> Answer<i64, Never> {
        let now_ms = tx.now_ms();
        let sql = "INSERT INTO orders_order (id, product, placed_at) VALUES ($1, $2, $3)";
        tx.execute(sql, (id, product, now_ms))?;
        Ok(id)
    }
}

pub(crate) fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("orders")
        .migrations(migrations!["../migrations/0001_orders.sql"])
        .serves(OrderBook.serve(OrderBookModule))
        .needs::<StockClient>()
        .needs::<PaymentsClient>()
        .needs::<ShippingClient>()
        .saga::<PlaceOrder>()
        .admin_routes(load::routes))
}
