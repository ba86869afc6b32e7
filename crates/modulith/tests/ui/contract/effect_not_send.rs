use std::rc::Rc;

use modulith::{CallError, Context, Never, contract};

#[contract(name = "payments", version = 1)]
pub trait Payments {
    #[effect]
    async fn charge(&self, cx: &Context) -> Result<(), CallError<Never>>;
}

struct Module;

impl Payments for Module {
    async fn charge(&self, _: &Context) -> Result<(), CallError<Never>> {
        let shared = Rc::new(());
        std::future::ready(()).await;
        drop(shared);
        Ok(())
    }
}

fn main() {}
