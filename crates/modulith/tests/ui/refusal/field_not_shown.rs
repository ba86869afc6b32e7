use modulith::Refusal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum HoldRefused {
    #[refused("{products} are sold out")]
    SoldOut { products: Vec<String> },
}

fn main() {}
