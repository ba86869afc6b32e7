//! Orders: checkout, cancelling, returns.
//!
//! Owns what was bought by whom at which price, and the plans that get it there: an order is recorded exactly
//! when its stock is held and its money taken. Owns no stock and no money.

mod admin;
mod book;
mod cancelling;
mod checkout;
mod http;
mod returns;
mod time;

use modulith::{Answer, Fault, Module, Never, Setup, SetupError, Snapshot, migrations};
use store_cart_contract::CartClient;
use store_orders_contract::{NoSuchOrder, Order, OrderId, OrderLine, OrderOf, OrderStatus, Orders, OrdersOf};
use store_payments_contract::{Currency, Money, PaymentsClient};
use store_products_contract::ProductsClient;
use uuid::Uuid;

use book::{OrderBook, OrderBookModule};
use cancelling::{CancelCharged, CancelOrder};
use checkout::{PlaceCharged, PlaceChargedFromCart, PlaceOrder, PlaceOrderFromCart};
use returns::ReturnGoods;

pub fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("orders")
        .migrations(migrations!["../migrations/0001_orders.sql", "../migrations/0002_returns.sql"])
        .serves(Orders.serve(OrdersModule))
        .serves(OrderBook.serve(OrderBookModule))
        .needs::<ProductsClient>()
        .needs::<PaymentsClient>()
        .needs::<CartClient>()
        .saga::<PlaceOrder>()
        .saga::<PlaceOrderFromCart>()
        .saga::<PlaceCharged>()
        .saga::<PlaceChargedFromCart>()
        .saga::<CancelOrder>()
        .saga::<CancelCharged>()
        .saga::<ReturnGoods>()
        .routes(&["/orders"], http::routes)
        .admin_routes(admin::routes))
}

struct OrdersModule;

impl Orders for OrdersModule {
    fn order(&self, db: &Snapshot<'_>, OrderOf { user, order }: OrderOf) -> Answer<Order, NoSuchOrder> {
        let found = db.row(
            "SELECT id, status, currency, total_minor, client_reference, placed_at FROM orders_order
             WHERE id = $1 AND user_id = $2",
            (order, user),
        )?;
        Ok(read(db, found.ok_or(NoSuchOrder::NoSuchOrder)?)?)
    }

    fn orders(&self, db: &Snapshot<'_>, request: OrdersOf) -> Answer<Vec<Order>, Never> {
        let OrdersOf { user, client_reference, after, limit } = request;
        let before = after.unwrap_or(OrderId(Uuid::max()));
        let found: Vec<OrderRow> = match client_reference {
            None => db.rows(
                "SELECT id, status, currency, total_minor, client_reference, placed_at FROM orders_order
                 WHERE user_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
                (user, before, limit),
            )?,
            Some(reference) => db.rows(
                "SELECT id, status, currency, total_minor, client_reference, placed_at FROM orders_order
                 WHERE user_id = $1 AND id < $2 AND client_reference = $4 ORDER BY id DESC LIMIT $3",
                (user, before, limit, reference),
            )?,
        };
        Ok(found.into_iter().map(|row| read(db, row)).collect::<Result<_, _>>()?)
    }
}

type OrderRow = (OrderId, OrderStatus, Currency, i64, Option<String>, i64);

/// The order of a row, with its lines.
fn read(db: &Snapshot<'_>, row: OrderRow) -> Result<Order, Fault> {
    let (id, status, currency, total_minor, client_reference, placed_at) = row;
    let lines = db.rows(
        "SELECT product_id, name, quantity, unit_price_minor FROM orders_line WHERE order_id = $1 ORDER BY line",
        (id,),
    )?;
    let line = |(product_id, name, quantity, unit_price_minor): (_, _, u32, i64)| OrderLine {
        product_id,
        name,
        quantity,
        unit_price: Money::new(unit_price_minor, currency),
        total: Money::new(unit_price_minor * i64::from(quantity), currency),
    };
    Ok(Order {
        id,
        status,
        total: Money::new(total_minor, currency),
        lines: lines.into_iter().map(line).collect(),
        client_reference,
        placed_at: time::rfc_3339(placed_at),
    })
}
