//! What the store asks of recommendations. No module serves it: a program in another language does, `service.py` for
//! one, or nobody.

use modulith::{Answer, Refusal, Snapshot, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store_products_contract::ProductId;

#[contract(name = "recommendations", version = 1)]
pub trait Recommendations {
    /// What goes with a product, the best first; never the product itself.
    #[query]
    fn related(&self, db: &Snapshot<'_>, to: RelatedTo) -> Answer<Vec<ProductId>, RelatedRefused>;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RelatedTo {
    pub product: ProductId,
    /// At most so many.
    pub limit: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum RelatedRefused {
    /// It came to the catalogue after the service last read it.
    #[refused(404, "no such product")]
    UnknownProduct,
}
