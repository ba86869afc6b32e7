//! Shipping: the last step, behind the pivot.

use modulith::{Answer, Module, Never, Setup, SetupError, Tx, contract, migrations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[contract(name = "shipping", version = 1)]
pub(crate) trait Shipping {
    /// Makes the parcel of an order.
    #[command]
    fn dispatch(&self, tx: &mut Tx<'_>, parcel: Parcel) -> Answer<(), Never>;
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Parcel {
    pub(crate) order: i64,
    pub(crate) product: i64,
}

struct ShippingModule;

impl Shipping for ShippingModule {
    fn dispatch(&self, tx: &mut Tx<'_>, Parcel { order, product }: Parcel) -> Answer<(), Never> {
        tx.execute("INSERT INTO shipping_parcel (id, product) VALUES ($1, $2)", (order, product))?;
        Ok(())
    }
}

pub(crate) fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("shipping")
        .migrations(migrations!["../migrations/0001_shipping.sql"])
        .serves(Shipping.serve(ShippingModule)))
}
