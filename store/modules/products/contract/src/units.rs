//! How many of which product.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ProductId;

/// Each product once, in order of id: lines that name a product twice are one demand for it, and no two orders
/// wait for each other's rows in a circle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Units(BTreeMap<ProductId, i64>);

impl Units {
    pub fn iter(&self) -> impl Iterator<Item = (&ProductId, i64)> {
        self.0.iter().map(|(product, quantity)| (product, *quantity))
    }
}

impl FromIterator<(ProductId, u32)> for Units {
    fn from_iter<I: IntoIterator<Item = (ProductId, u32)>>(lines: I) -> Self {
        let mut units = BTreeMap::<_, i64>::new();
        for (product, quantity) in lines {
            *units.entry(product).or_default() += i64::from(quantity);
        }
        Self(units)
    }
}
