use modulith::Refusal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum HoldRefused {
    #[refused("only {left} left")]
    SoldOut,
}

fn main() {}
