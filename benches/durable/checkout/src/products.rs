//! Products: the stock.

use callers::Line;
use modulith::{Answer, Module, Never, Refusal, Setup, SetupError, Tx, contract, migrations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Stock becomes held.
pub(crate) const HOLD: &str =
    "UPDATE products_product SET stock = stock - $2, held = held + $2 WHERE id = $1 AND stock >= $2";
/// Held becomes stock again.
pub(crate) const RELEASE: &str =
    "UPDATE products_product SET held = held - $2, stock = stock + $2 WHERE id = $1";

#[contract(name = "products", version = 1)]
pub(crate) trait Products {
    /// Holds stock for every line, or for none.
    #[command]
    fn hold(&self, tx: &mut Tx<'_>, units: Units) -> Answer<Units, SoldOut>;
    /// Undoes a hold.
    #[command]
    fn release(&self, tx: &mut Tx<'_>, units: Units) -> Answer<(), Never>;
}

/// How many of which product.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Units(Vec<(String, u32)>);

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub(crate) enum SoldOut {
    #[refused(409, "not enough of {product}")]
    SoldOut { product: String },
}

impl Units {
    pub(crate) fn of(lines: &[Line]) -> Self {
        Self(lines.iter().map(|line| (line.product.clone(), line.quantity)).collect())
    }
}

struct ProductsModule;

impl Products for ProductsModule {
    fn hold(&self, tx: &mut Tx<'_>, units: Units) -> Answer<Units, SoldOut> {
        for (product, quantity) in &units.0 {
            if tx.execute(HOLD, (product, *quantity))? == 0 {
                return Err(SoldOut::SoldOut { product: product.clone() }.into());
            }
        }
        Ok(units)
    }

    fn release(&self, tx: &mut Tx<'_>, units: Units) -> Answer<(), Never> {
        for (product, quantity) in &units.0 {
            tx.execute(RELEASE, (product, *quantity))?;
        }
        Ok(())
    }
}

pub(crate) fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("products")
        .migrations(migrations!["../migrations/0001_products.sql"])
        .serves(Products.serve(ProductsModule)))
}
