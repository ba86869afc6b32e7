//! The order book as the module's own plans and endpoints use it.

use modulith::{Answer, Never, Refusal, Snapshot, Tx, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store_orders_contract::{NoSuchOrder, OrderId, OrderOf, OrderStatus};
use store_payments_contract::{ChargeId, Currency, Money};
use store_products_contract::{ProductId, Units};
use store_users_contract::UserId;

use crate::returns::{self, Returned, TakeBack, TakeBackRefused, TakenBack};

/// Private to the module.
#[contract(name = "orderbook", version = 1)]
pub(crate) trait OrderBook {
    /// Writes an order down, paid. The pivot of every checkout.
    #[command]
    fn record(&self, tx: &mut Tx<'_>, request: Record) -> Answer<Placed, RecordRefused>;

    /// Marks an order cancelled, and tells what has to be given back for it. The pivot of every cancelling.
    #[command]
    fn cancel(&self, tx: &mut Tx<'_>, request: OrderOf) -> Answer<Cancelled, CancelRefused>;

    /// Matches a return to earlier orders. The pivot of every return.
    #[command]
    fn take_back(&self, tx: &mut Tx<'_>, request: TakeBack) -> Answer<TakenBack, TakeBackRefused>;

    /// How an order was paid: by a charge of the provider, or on the ledger.
    #[query]
    fn charge(&self, db: &Snapshot<'_>, request: OrderOf) -> Answer<Option<ChargeId>, NoSuchOrder>;

    /// Those of the invoices that are recorded.
    #[query]
    fn recorded(&self, db: &Snapshot<'_>, invoices: Vec<String>) -> Answer<Vec<String>, Never>;

    /// What came of a return, if it is known.
    #[query]
    fn returned(&self, db: &Snapshot<'_>, invoice: String) -> Answer<Option<Returned>, Never>;

    #[query(heavy)]
    fn totals(&self, db: &Snapshot<'_>) -> Answer<OrderTotals, Never>;

    /// In order of id.
    #[query(heavy)]
    fn sums(&self, db: &Snapshot<'_>, page: OrderPage) -> Answer<Vec<OrderSums>, Never>;

    /// In order of id.
    #[query(heavy)]
    fn units(&self, db: &Snapshot<'_>, page: UnitsPage) -> Answer<Vec<ProductUnits>, Never>;
}

/// An order that is about to be placed. Its id is made before its saga begins.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NewOrder {
    pub(crate) id: OrderId,
    /// None: a guest, of an imported order book.
    pub(crate) user: Option<UserId>,
    pub(crate) lines: Vec<NewLine>,
    pub(crate) total: Money,
    pub(crate) client_reference: Option<String>,
    pub(crate) invoice: Option<Invoice>,
}

/// Priced in the currency of the order's total.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NewLine {
    pub(crate) product: ProductId,
    pub(crate) name: String,
    pub(crate) quantity: u32,
    pub(crate) unit_price_minor: i64,
}

/// Where an order that was booked elsewhere came from.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Invoice {
    pub(crate) number: String,
    pub(crate) placed_at_ms: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Record {
    pub(crate) order: NewOrder,
    pub(crate) charge: Option<ChargeId>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Placed {
    pub(crate) order: OrderId,
    pub(crate) placed_at_ms: i64,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub(crate) enum RecordRefused {
    /// an order with this invoice number is recorded
    AlreadyRecorded,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Cancelled {
    pub(crate) refund: Money,
    pub(crate) units: Units,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub(crate) enum CancelRefused {
    #[refused(404, "no such order")]
    NoSuchOrder,
    #[refused("the order is cancelled")]
    AlreadyCancelled,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct OrderTotals {
    orders: i64,
    orders_minor: i64,
    refunded_minor: i64,
    units_sold: i64,
    units_returned: i64,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct OrderPage {
    after: Option<OrderId>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct OrderSums {
    id: OrderId,
    status: OrderStatus,
    total_minor: i64,
    refunded_minor: i64,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct UnitsPage {
    after: Option<ProductId>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ProductUnits {
    id: ProductId,
    sold: i64,
    returned: i64,
}

pub(crate) struct OrderBookModule;

impl OrderBook for OrderBookModule {
    fn record(&self, tx: &mut Tx<'_>, Record { order, charge }: Record) -> Answer<Placed, RecordRefused> {
        let NewOrder { id, user, lines, total, client_reference, invoice } = order;
        let (invoice, placed_at) = match invoice {
            Some(invoice) => (Some(invoice.number), invoice.placed_at_ms),
            None => (None, tx.now_ms()),
        };
        let new = tx.execute(
            "INSERT INTO orders_order (id, user_id, status, currency, total_minor, refunded_minor, client_reference,
                invoice, charge, placed_at)
             VALUES ($1, $2, $3, $4, $5, 0, $6, $7, $8, $9)
             ON CONFLICT (invoice) WHERE invoice IS NOT NULL DO NOTHING",
            (id, user, OrderStatus::Paid, total.currency, total.amount, client_reference, invoice, charge, placed_at),
        )?;
        if new == 0 {
            return Err(RecordRefused::AlreadyRecorded.into());
        }
        for (number, line) in (0_i64..).zip(&lines) {
            tx.execute(
                "INSERT INTO orders_line (order_id, line, product_id, name, quantity, returned, unit_price_minor)
                 VALUES ($1, $2, $3, $4, $5, 0, $6)",
                (id, number, &line.product, &line.name, line.quantity, line.unit_price_minor),
            )?;
        }
        Ok(Placed { order: id, placed_at_ms: placed_at })
    }

    fn cancel(&self, tx: &mut Tx<'_>, OrderOf { user, order }: OrderOf) -> Answer<Cancelled, CancelRefused> {
        let found: Option<(OrderStatus, Currency, i64)> = tx.row(
            "SELECT status, currency, total_minor - refunded_minor FROM orders_order WHERE id = $1 AND user_id = $2",
            (order, user),
        )?;
        let (status, currency, refund_minor) = found.ok_or(CancelRefused::NoSuchOrder)?;
        if status == OrderStatus::Cancelled {
            return Err(CancelRefused::AlreadyCancelled.into());
        }
        let left: Vec<(ProductId, u32)> = tx.rows(
            "SELECT product_id, quantity - returned FROM orders_line WHERE order_id = $1 AND returned < quantity",
            (order,),
        )?;
        tx.execute("UPDATE orders_line SET returned = quantity WHERE order_id = $1", (order,))?;
        tx.execute(
            "UPDATE orders_order SET status = $2, refunded_minor = total_minor WHERE id = $1",
            (order, OrderStatus::Cancelled),
        )?;
        Ok(Cancelled { refund: Money::new(refund_minor, currency), units: left.into_iter().collect() })
    }

    fn take_back(&self, tx: &mut Tx<'_>, request: TakeBack) -> Answer<TakenBack, TakeBackRefused> {
        returns::take_back(tx, request)
    }

    fn charge(
        &self,
        db: &Snapshot<'_>,
        OrderOf { user, order }: OrderOf,
    ) -> Answer<Option<ChargeId>, NoSuchOrder> {
        let found =
            db.row("SELECT charge FROM orders_order WHERE id = $1 AND user_id = $2", (order, user))?;
        let (charge,) = found.ok_or(NoSuchOrder::NoSuchOrder)?;
        Ok(charge)
    }

    fn recorded(&self, db: &Snapshot<'_>, invoices: Vec<String>) -> Answer<Vec<String>, Never> {
        let mut recorded = Vec::new();
        for invoice in invoices {
            if db.row::<(OrderId,)>("SELECT id FROM orders_order WHERE invoice = $1", (&invoice,))?.is_some()
            {
                recorded.push(invoice);
            }
        }
        Ok(recorded)
    }

    fn returned(&self, db: &Snapshot<'_>, invoice: String) -> Answer<Option<Returned>, Never> {
        let sql =
            "SELECT refunded_minor, unmatched_lines, unmatched_minor FROM orders_return WHERE invoice = $1";
        Ok(db.row(sql, (invoice,))?.map(|(refunded_minor, unmatched_lines, unmatched_minor)| Returned {
            refunded_minor,
            unmatched_lines,
            unmatched_minor,
        }))
    }

    fn totals(&self, db: &Snapshot<'_>) -> Answer<OrderTotals, Never> {
        // The casts are for PostgreSQL, where a sum of bigints is wider than they are.
        let sums = db.row(
            "SELECT count(*), CAST(coalesce(sum(total_minor), 0) AS bigint),
                CAST(coalesce(sum(refunded_minor), 0) AS bigint) FROM orders_order",
            (),
        )?;
        let units = db.row(
            "SELECT CAST(coalesce(sum(quantity), 0) AS bigint), CAST(coalesce(sum(returned), 0) AS bigint)
             FROM orders_line",
            (),
        )?;
        let (orders, orders_minor, refunded_minor) = sums.unwrap_or_default();
        let (units_sold, units_returned) = units.unwrap_or_default();
        Ok(OrderTotals { orders, orders_minor, refunded_minor, units_sold, units_returned })
    }

    fn sums(&self, db: &Snapshot<'_>, page: OrderPage) -> Answer<Vec<OrderSums>, Never> {
        let after = page.after.unwrap_or(OrderId(uuid::Uuid::nil()));
        let rows = db.rows(
            "SELECT id, status, total_minor, refunded_minor FROM orders_order WHERE id > $1 ORDER BY id LIMIT 1000",
            (after,),
        )?;
        let sums =
            |(id, status, total_minor, refunded_minor)| OrderSums { id, status, total_minor, refunded_minor };
        Ok(rows.into_iter().map(sums).collect())
    }

    fn units(&self, db: &Snapshot<'_>, page: UnitsPage) -> Answer<Vec<ProductUnits>, Never> {
        let after = page.after.unwrap_or(ProductId(String::new()));
        let rows = db.rows(
            "SELECT product_id, CAST(sum(quantity) AS bigint), CAST(sum(returned) AS bigint) FROM orders_line
             WHERE product_id > $1 GROUP BY product_id ORDER BY product_id LIMIT 1000",
            (after,),
        )?;
        Ok(rows.into_iter().map(|(id, sold, returned)| ProductUnits { id, sold, returned }).collect())
    }
}
