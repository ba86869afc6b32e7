use modulith::Refusal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
#[refused("sold out")]
pub enum HoldRefused {
    SoldOut,
}

fn main() {}
