//! The plans of a checkout: hold stock, take money, record the order; then sell what was held.
//!
//! There are four, because a plan has no branches: money is taken by the ledger or by a provider, and the
//! lines came with the order or out of the cart. They share their steps, which stand below.

use modulith::{Handle, Plan, Saga};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store_cart_contract::{Cart, Ordered};
use store_payments_contract::{CardToken, ChargeRequest, Payment, PaymentId, Payments};
use store_products_contract::{Hold, Products, Units};

use crate::book::{NewOrder, OrderBook, Placed, Record};

/// What every checkout begins with.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Purchase {
    pub(crate) order: NewOrder,
    pub(crate) card: CardToken,
}

/// Paid on the ledger: commands all the way, so that in one process a checkout is one transaction.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct PlaceOrder(pub(crate) Purchase);

/// Paid on the ledger, with the lines of the cart.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct PlaceOrderFromCart(pub(crate) Purchase, pub(crate) Ordered);

/// Charged by a provider outside.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct PlaceCharged(pub(crate) Purchase);

/// Charged by a provider outside, with the lines of the cart.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct PlaceChargedFromCart(pub(crate) Purchase, pub(crate) Ordered);

impl Saga for PlaceOrder {
    const NAME: &'static str = "orders.place";
    const VERSION: u32 = 1;
    type Answer = Placed;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, Placed> {
        let hold = hold_stock(plan);
        let payment = debit(plan);
        let placed = record(plan, payment);
        sell_stock(plan, hold);
        placed
    }
}

impl Saga for PlaceOrderFromCart {
    const NAME: &'static str = "orders.place_from_cart";
    const VERSION: u32 = 1;
    type Answer = Placed;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, Placed> {
        let hold = hold_stock(plan);
        let payment = debit(plan);
        let placed = record(plan, payment);
        sell_stock(plan, hold);
        plan.then("clear_cart", Cart.clear, (), |checkout: &Self| checkout.1.clone());
        placed
    }
}

impl Saga for PlaceCharged {
    const NAME: &'static str = "orders.place_charged";
    const VERSION: u32 = 1;
    type Answer = Placed;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, Placed> {
        let hold = hold_stock(plan);
        let payment = charge(plan);
        let placed = record(plan, payment);
        record_charge(plan, payment);
        sell_stock(plan, hold);
        placed
    }
}

impl Saga for PlaceChargedFromCart {
    const NAME: &'static str = "orders.place_charged_from_cart";
    const VERSION: u32 = 1;
    type Answer = Placed;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, Placed> {
        let hold = hold_stock(plan);
        let payment = charge(plan);
        let placed = record(plan, payment);
        record_charge(plan, payment);
        sell_stock(plan, hold);
        plan.then("clear_cart", Cart.clear, (), |checkout: &Self| checkout.1.clone());
        placed
    }
}

/// What the shared steps ask of a checkout.
trait Checkout: Saga {
    fn purchase(&self) -> &Purchase;
}

impl Checkout for PlaceOrder {
    fn purchase(&self) -> &Purchase {
        &self.0
    }
}
impl Checkout for PlaceOrderFromCart {
    fn purchase(&self) -> &Purchase {
        &self.0
    }
}
impl Checkout for PlaceCharged {
    fn purchase(&self) -> &Purchase {
        &self.0
    }
}
impl Checkout for PlaceChargedFromCart {
    fn purchase(&self) -> &Purchase {
        &self.0
    }
}

fn hold_stock<S: Checkout>(plan: &mut Plan<S>) -> Handle<S, Hold> {
    plan.step("hold_stock", Products.hold, (), |checkout: &S| units(&checkout.purchase().order))
        .undo(Products.release)
}

fn debit<S: Checkout>(plan: &mut Plan<S>) -> Handle<S, Payment> {
    plan.step("debit", Payments.debit, (), |checkout: &S| charge_request(checkout.purchase()))
        .undo(Payments.credit)
}

fn charge<S: Checkout>(plan: &mut Plan<S>) -> Handle<S, Payment> {
    plan.step("charge", Payments.charge, (), |checkout: &S| charge_request(checkout.purchase()))
        .undo_by_key(Payments.refund)
}

fn record<S: Checkout>(plan: &mut Plan<S>, payment: Handle<S, Payment>) -> Handle<S, Placed> {
    plan.pivot("record", OrderBook.record, payment, |checkout: &S, payment: &Payment| Record {
        order: checkout.purchase().order.clone(),
        charge: payment.charge.clone(),
    })
}

fn record_charge<S: Checkout>(plan: &mut Plan<S>, payment: Handle<S, Payment>) {
    plan.then("record_charge", Payments.record_charge, payment, |_: &S, payment: &Payment| payment.clone());
}

fn sell_stock<S: Checkout>(plan: &mut Plan<S>, hold: Handle<S, Hold>) {
    plan.then("sell_stock", Products.sell, hold, |_: &S, hold: &Hold| hold.clone());
}

fn units(order: &NewOrder) -> Units {
    order.lines.iter().map(|line| (line.product.clone(), line.quantity)).collect()
}

/// A payment has the number of its order.
fn charge_request(purchase: &Purchase) -> ChargeRequest {
    ChargeRequest {
        payment: PaymentId(purchase.order.id.0),
        amount: purchase.order.total,
        card: purchase.card.clone(),
    }
}
