use modulith::{Answer, CallError, Context, Found, Never, Snapshot, StepKey, contract};

#[contract(name = "payments", version = 1)]
pub trait Payments {
    #[effect(window = "1h", look_up = find_charge)]
    async fn charge(&self, cx: &Context, amount: i64) -> Result<i64, CallError<Never>>;
    #[query]
    fn find_charge(&self, db: &Snapshot<'_>, key: StepKey) -> Answer<Found<i64, Never>, Never>;
}

fn main() {}
