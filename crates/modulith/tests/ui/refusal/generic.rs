use modulith::Refusal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum HoldRefused<T> {
    SoldOut(T),
}

fn main() {}
