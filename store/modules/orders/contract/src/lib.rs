//! What other modules may ask of orders.

use std::fmt;

use modulith::{Answer, Column, Refusal, Snapshot, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store_payments_contract::Money;
use store_products_contract::ProductId;
use store_users_contract::UserId;
use uuid::Uuid;

#[contract(name = "orders", version = 1)]
pub trait Orders {
    /// One order of a user. Another user's order does not exist.
    #[query]
    fn order(&self, db: &Snapshot<'_>, request: OrderOf) -> Answer<Order, NoSuchOrder>;

    /// A user's orders, newest first.
    #[query]
    fn orders(&self, db: &Snapshot<'_>, request: OrdersOf) -> Answer<Vec<Order>, modulith::Never>;
}

/// A UUID of version 7, so that ids are in the order of time.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, Column,
)]
#[serde(transparent)]
pub struct OrderId(pub Uuid);

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Order {
    pub id: OrderId,
    pub status: OrderStatus,
    pub total: Money,
    pub lines: Vec<OrderLine>,
    /// The client's own words for the order.
    pub client_reference: Option<String>,
    /// RFC 3339, UTC.
    pub placed_at: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Column)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    Paid,
    Cancelled,
}

/// A line with the name and the price of the day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrderLine {
    pub product_id: ProductId,
    pub name: String,
    pub quantity: u32,
    pub unit_price: Money,
    pub total: Money,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrderOf {
    pub user: UserId,
    pub order: OrderId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrdersOf {
    pub user: UserId,
    pub client_reference: Option<String>,
    /// Those older than this one.
    pub after: Option<OrderId>,
    pub limit: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum NoSuchOrder {
    #[refused(404, "no such order")]
    NoSuchOrder,
}
