//! Returns that were booked elsewhere: units that came back, without saying which order they belong to.
//!
//! Each unit is matched to the latest earlier order of the same customer that still has the product; it is
//! refunded at the price of the return, but never above what was paid. What cannot be matched is written down.

use std::collections::BTreeMap;

use modulith::{Answer, Fault, Handle, Plan, Refusal, Saga, Tx};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store_orders_contract::{OrderId, OrderStatus};
use store_payments_contract::{Currency, Money, PaymentId, Payments, Repayment, RepaymentPart};
use store_products_contract::{Products, Units};
use store_users_contract::UserId;

use crate::book::{NewLine, OrderBook};

/// Match the return; then give back the money and take back the goods.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct ReturnGoods(pub(crate) TakeBack);

impl Saga for ReturnGoods {
    const NAME: &'static str = "orders.return_goods";
    const VERSION: u32 = 1;
    type Answer = TakenBack;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, TakenBack> {
        let taken = plan.pivot("take_back", OrderBook.take_back, (), |goods: &Self| goods.0.clone());
        plan.then("repay", Payments.repay, taken, |goods: &Self, taken: &TakenBack| Repayment {
            reference: format!("return {}", goods.0.invoice),
            parts: taken.refunds.clone(),
        });
        plan.then("restock", Products.restock, taken, |_: &Self, taken: &TakenBack| taken.units.clone());
        taken
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct TakeBack {
    /// Comes once.
    pub(crate) invoice: String,
    /// None: a guest, whose earlier orders nobody can tell.
    pub(crate) user: Option<UserId>,
    pub(crate) returned_at_ms: i64,
    pub(crate) currency: Currency,
    pub(crate) lines: Vec<NewLine>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct TakenBack {
    pub(crate) refunds: Vec<RepaymentPart>,
    pub(crate) units: Units,
    pub(crate) returned: Returned,
}

/// What came of a return.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Returned {
    pub(crate) refunded_minor: i64,
    /// Lines of which at least one unit found no order.
    pub(crate) unmatched_lines: i64,
    pub(crate) unmatched_minor: i64,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub(crate) enum TakeBackRefused {
    /// a return with this invoice number is recorded
    AlreadyTakenBack,
}

/// Units of one line of an order that can still come back.
type Returnable = (OrderId, i64, u32, i64);

pub(crate) fn take_back(tx: &mut Tx<'_>, goods: TakeBack) -> Answer<TakenBack, TakeBackRefused> {
    let known: Option<(i64,)> =
        tx.row("SELECT returned_at FROM orders_return WHERE invoice = $1", (&goods.invoice,))?;
    if known.is_some() {
        return Err(TakeBackRefused::AlreadyTakenBack.into());
    }
    let mut refunds = BTreeMap::<OrderId, i64>::new();
    let mut units = Vec::new();
    let mut returned = Returned::default();
    for (number, line) in (0_i64..).zip(&goods.lines) {
        let mut left = line.quantity;
        while left > 0 {
            let Some((order, order_line, returnable, paid_minor)) = latest(tx, &goods, line)? else {
                break;
            };
            let matched = left.min(returnable);
            tx.execute(
                "UPDATE orders_line SET returned = returned + $3 WHERE order_id = $1 AND line = $2",
                (order, order_line, matched),
            )?;
            *refunds.entry(order).or_default() += i64::from(matched) * line.unit_price_minor.min(paid_minor);
            units.push((line.product.clone(), matched));
            left -= matched;
        }
        if left > 0 {
            returned.unmatched_lines += 1;
            returned.unmatched_minor += i64::from(left) * line.unit_price_minor;
            tx.execute(
                "INSERT INTO orders_unmatched (invoice, line, product_id, name, quantity, unit_price_minor)
                 VALUES ($1, $2, $3, $4, $5, $6)",
                (&goods.invoice, number, &line.product, &line.name, left, line.unit_price_minor),
            )?;
        }
    }
    for (order, refund_minor) in &refunds {
        let sql = "UPDATE orders_order SET refunded_minor = refunded_minor + $2 WHERE id = $1";
        tx.execute(sql, (order, refund_minor))?;
    }
    returned.refunded_minor = refunds.values().sum();
    tx.execute(
        "INSERT INTO orders_return (invoice, user_id, returned_at, refunded_minor, unmatched_lines, unmatched_minor)
         VALUES ($1, $2, $3, $4, $5, $6)",
        (
            &goods.invoice,
            goods.user,
            goods.returned_at_ms,
            returned.refunded_minor,
            returned.unmatched_lines,
            returned.unmatched_minor,
        ),
    )?;
    let part = |(order, minor): (OrderId, i64)| RepaymentPart {
        payment: PaymentId(order.0),
        amount: Money::new(minor, goods.currency),
    };
    Ok(TakenBack {
        refunds: refunds.into_iter().map(part).collect(),
        units: units.into_iter().collect(),
        returned,
    })
}

/// The latest line that a returned line can have come from. Orders that a provider charged are left out: the
/// books of elsewhere do not reach into the provider's.
fn latest(tx: &mut Tx<'_>, goods: &TakeBack, line: &NewLine) -> Result<Option<Returnable>, Fault> {
    let Some(user) = goods.user else { return Ok(None) };
    tx.row(
        "SELECT l.order_id, l.line, l.quantity - l.returned, l.unit_price_minor
         FROM orders_order o JOIN orders_line l ON l.order_id = o.id
         WHERE o.user_id = $1 AND l.product_id = $2 AND l.returned < l.quantity AND o.placed_at <= $3
            AND o.status = $4 AND o.currency = $5 AND o.charge IS NULL
         ORDER BY o.placed_at DESC, o.invoice DESC, l.line DESC LIMIT 1",
        (user, &line.product, goods.returned_at_ms, OrderStatus::Paid, goods.currency),
    )
}
