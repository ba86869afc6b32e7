//! What other modules may ask of products: prices, and stock in three states.
//!
//! A piece is in *stock*, *held* for an order in the making, or *sold*. What was *supplied* is always the sum
//! of the three: each command moves pieces from one state to another, and the table checks the sum.

mod units;

use std::fmt;

use modulith::{Answer, Column, Never, Refusal, Snapshot, Tx, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store_payments_contract::Money;

pub use units::Units;

#[contract(name = "products", version = 1)]
pub trait Products {
    #[query]
    fn product(&self, db: &Snapshot<'_>, id: ProductId) -> Answer<Product, NoSuchProduct>;

    /// Those of the products that exist, in no particular order.
    #[query]
    fn products(&self, db: &Snapshot<'_>, ids: Vec<ProductId>) -> Answer<Vec<Product>, Never>;

    /// Holds stock for every line, or for none: stock becomes held.
    ///
    /// A hold does not expire on its own; the saga that made it ends it by `release` or `sell`.
    #[command]
    fn hold(&self, tx: &mut Tx<'_>, units: Units) -> Answer<Hold, HoldRefused>;

    /// Held becomes stock again.
    #[command]
    fn release(&self, tx: &mut Tx<'_>, hold: Hold) -> Answer<(), Never>;

    /// Held becomes sold.
    #[command]
    fn sell(&self, tx: &mut Tx<'_>, hold: Hold) -> Answer<(), Never>;

    /// Sold becomes stock again: an order was cancelled, or goods came back.
    #[command]
    fn restock(&self, tx: &mut Tx<'_>, units: Units) -> Answer<(), Never>;

    /// The catalogue, a thousand at a time and in order of id.
    #[query]
    fn catalogue(&self, db: &Snapshot<'_>, page: CataloguePage) -> Answer<Vec<Product>, Never>;
}

/// Where a page of the catalogue begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CataloguePage {
    /// Behind this product; from the first one without it.
    pub after: Option<ProductId>,
}

/// A stock code, as written: `85123A` and `85123a` are two products.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, Column)]
#[serde(transparent)]
pub struct ProductId(pub String);

impl fmt::Display for ProductId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Product {
    pub id: ProductId,
    pub name: String,
    pub price: Money,
    /// Pieces that can be ordered now.
    pub stock: i64,
}

/// Pieces that are held for an order in the making.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Hold(pub Units);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum HoldRefused {
    /// All products of which there are too few.
    #[refused(409, "not enough in stock")]
    SoldOut { products: Vec<ProductId> },
    #[refused(422, "no such product")]
    UnknownProduct { products: Vec<ProductId> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum NoSuchProduct {
    #[refused(404, "no such product")]
    NoSuchProduct,
}
