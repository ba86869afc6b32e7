use modulith::Refusal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum HoldRefused {
    #[refused("only {lefft} of {product} left")]
    SoldOut { product: String, left: u32 },
}

fn main() {}
