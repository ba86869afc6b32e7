use modulith::{CallError, Context, Found, Never, contract};

#[contract(name = "payments", version = 1)]
pub trait Payments {
    #[effect(window = "1h", look_up = find_charge)]
    async fn charge(&self, cx: &Context, amount: i64) -> Result<i64, CallError<Never>>;
    #[effect]
    async fn find_charge(&self, cx: &Context, key: String) -> Result<Found<i64, Never>, CallError<Never>>;
}

fn main() {}
