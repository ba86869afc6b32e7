use modulith::{Answer, CallError, Context, Handle, Never, Plan, Refusal, Saga, StepKey, Tx, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum Refused {
    SoldOut,
}

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold(&self, tx: &mut Tx<'_>, quantity: u32) -> Answer<String, Refused>;
    #[command]
    fn release(&self, tx: &mut Tx<'_>, hold: String) -> Answer<(), Never>;
    #[command]
    fn discard(&self, tx: &mut Tx<'_>, quantity: u32) -> Answer<(), Never>;
    #[effect]
    async fn refund(&self, cx: &Context, step: StepKey) -> Result<(), CallError<Never>>;
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Order {
    quantity: u32,
}

impl Saga for Order {
    const NAME: &'static str = "orders.order";
    const VERSION: u32 = 1;
    type Answer = String;
    fn plan(plan: &mut Plan<Self>) -> Handle<Self, String> {
        plan.pivot("hold", Products.hold, (), |order: &Order| i64::from(order.quantity))
    }
}

fn main() {}
