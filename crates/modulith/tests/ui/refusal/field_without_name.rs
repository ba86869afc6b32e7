use modulith::Refusal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum HoldRefused {
    #[refused("only {} left")]
    SoldOut(u32),
}

fn main() {}
