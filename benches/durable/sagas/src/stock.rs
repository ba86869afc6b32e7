//! Stock: the first step.

use modulith::{Answer, Module, Never, Refusal, Setup, SetupError, Tx, contract, migrations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Products are numbered from 0.
pub(crate) const PRODUCTS: i64 = 1_000;

#[contract(name = "stock", version = 1)]
pub(crate) trait Stock {
    /// Reserves a piece of a product, and answers the product.
    #[command]
    fn reserve(&self, tx: &mut Tx<'_>, product: i64) -> Answer<i64, SoldOut>;
    /// Undoes a reservation.
    #[command]
    fn release(&self, tx: &mut Tx<'_>, product: i64) -> Answer<(), Never>;
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub(crate) enum SoldOut {
    /// there is none left
    SoldOut,
}

struct StockModule;

impl Stock for StockModule {
    fn reserve(&self, tx: &mut Tx<'_>, product: i64) -> Answer<i64, SoldOut> {
        let reserved = tx.execute(
            "UPDATE stock_product SET stock = stock - 1, reserved = reserved + 1 WHERE id = $1 AND stock > 0",
            (product,),
        )?;
        if reserved == 0 {
            return Err(SoldOut::SoldOut.into());
        }
        Ok(product)
    }

    fn release(&self, tx: &mut Tx<'_>, product: i64) -> Answer<(), Never> {
        let sql = "UPDATE stock_product SET stock = stock + 1, reserved = reserved - 1 WHERE id = $1";
        tx.execute(sql, (product,))?;
        Ok(())
    }
}

pub(crate) fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("stock")
        .migrations(migrations!["../migrations/0001_stock.sql"])
        .serves(Stock.serve(StockModule)))
}
