use modulith::{Answer, Handle, Never, Plan, Saga, Snapshot, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[query]
    fn stock(&self, db: &Snapshot<'_>) -> Answer<u32, Never>;
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Order;

impl Saga for Order {
    const NAME: &'static str = "orders.order";
    const VERSION: u32 = 1;
    type Answer = u32;
    fn plan(plan: &mut Plan<Self>) -> Handle<Self, u32> {
        plan.pivot("stock", Products.stock, (), |_: &Order| ())
    }
}

fn main() {}
