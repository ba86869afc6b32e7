//! The plans of cancelling: mark the order cancelled; then give back the money and take back the goods.
//!
//! The pivot comes first and refuses an order that is cancelled, so that however often a customer asks, money
//! and goods move once. There are two, as the order was paid on the ledger or charged by a provider.

use modulith::{Handle, Plan, Saga};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store_orders_contract::OrderOf;
use store_payments_contract::{ChargeId, ChargeRepayment, PaymentId, Payments, Repayment, RepaymentPart};
use store_products_contract::Products;

use crate::book::{Cancelled, OrderBook};

/// The order was paid on the ledger.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct CancelOrder(pub(crate) OrderOf);

/// The order was charged by a provider.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct CancelCharged(pub(crate) OrderOf, pub(crate) ChargeId);

impl Saga for CancelOrder {
    const NAME: &'static str = "orders.cancel";
    const VERSION: u32 = 1;
    type Answer = Cancelled;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, Cancelled> {
        let cancelled = plan.pivot("cancel", OrderBook.cancel, (), |cancel: &Self| cancel.0.clone());
        plan.then("repay", Payments.repay, cancelled, |cancel: &Self, cancelled: &Cancelled| {
            repayment(&cancel.0, cancelled)
        });
        plan.then("restock", Products.restock, cancelled, |_: &Self, cancelled: &Cancelled| {
            cancelled.units.clone()
        });
        cancelled
    }
}

impl Saga for CancelCharged {
    const NAME: &'static str = "orders.cancel_charged";
    const VERSION: u32 = 1;
    type Answer = Cancelled;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, Cancelled> {
        let cancelled = plan.pivot("cancel", OrderBook.cancel, (), |cancel: &Self| cancel.0.clone());
        plan.then(
            "repay_charge",
            Payments.repay_charge,
            cancelled,
            |cancel: &Self, cancelled: &Cancelled| ChargeRepayment {
                charge: cancel.1.clone(),
                amount: cancelled.refund,
            },
        );
        plan.then("repay", Payments.repay, cancelled, |cancel: &Self, cancelled: &Cancelled| {
            repayment(&cancel.0, cancelled)
        });
        plan.then("restock", Products.restock, cancelled, |_: &Self, cancelled: &Cancelled| {
            cancelled.units.clone()
        });
        cancelled
    }
}

fn repayment(cancel: &OrderOf, cancelled: &Cancelled) -> Repayment {
    Repayment {
        reference: format!("cancel {}", cancel.order),
        parts: vec![RepaymentPart { payment: PaymentId(cancel.order.0), amount: cancelled.refund }],
    }
}
