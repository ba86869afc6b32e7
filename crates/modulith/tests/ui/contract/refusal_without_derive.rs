use modulith::{Answer, Snapshot, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub enum Refused {
    SoldOut,
}

#[contract(name = "products", version = 1)]
pub trait Products {
    #[query]
    fn stock(&self, db: &Snapshot<'_>) -> Answer<u32, Refused>;
}

fn main() {}
