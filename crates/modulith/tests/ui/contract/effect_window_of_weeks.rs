use modulith::{CallError, Context, Never, contract};

#[contract(name = "payments", version = 1)]
pub trait Payments {
    #[effect(window = "2 weeks")]
    async fn charge(&self, cx: &Context, amount: i64) -> Result<i64, CallError<Never>>;
}

fn main() {}
