//! Orders of two lines, for loads that run inside of what they measure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::random::Random;

/// Products in every catalogue, named by [`product`]. There are more of each than any run sells.
pub const PRODUCTS: usize = 1_000;
/// What a piece of anything costs.
pub const PRICE_MINOR: i64 = 250;

/// The id of a product, numbered from 0.
pub fn product(number: usize) -> String {
    format!("BENCH-{number:04}")
}

/// An order, checked and priced, as it is before anything is written.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Order {
    /// In order of time.
    pub id: Uuid,
    /// The client's key: a repeat of it makes no second order.
    pub key: String,
    /// One each of two products.
    pub lines: Vec<Line>,
    /// The sum of the lines.
    pub total_minor: i64,
}

/// So many pieces of one product.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Line {
    pub product: String,
    pub name: String,
    pub quantity: u32,
    pub unit_price_minor: i64,
}

/// The endless orders of one caller: the same products in every run, under new ids and keys.
#[derive(Debug)]
pub struct Orders {
    caller: usize,
    number: u64,
    random: Random,
}

impl Orders {
    /// Callers are numbered from 0.
    pub fn of(caller: usize) -> Self {
        Self { caller, number: 0, random: Random::new(caller as u64) }
    }
}

impl Iterator for Orders {
    type Item = Order;

    fn next(&mut self) -> Option<Order> {
        let (first, second) = self.random.two_below(PRODUCTS);
        let lines: Vec<_> = [first, second].into_iter().map(line).collect();
        self.number += 1;
        Some(Order {
            id: Uuid::now_v7(),
            key: format!("caller-{}-order-{}", self.caller, self.number),
            total_minor: lines.iter().map(|line| line.unit_price_minor * i64::from(line.quantity)).sum(),
            lines,
        })
    }
}

fn line(number: usize) -> Line {
    Line {
        product: product(number),
        name: format!("Product {number}"),
        quantity: 1,
        unit_price_minor: PRICE_MINOR,
    }
}
