use modulith::{Answer, Never, Tx, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Request;

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold(&self, tx: &mut Tx<'_>, request: Request) -> Answer<(), Never>;
}

fn main() {}
