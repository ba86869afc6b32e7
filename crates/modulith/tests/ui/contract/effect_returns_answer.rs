use modulith::{Answer, Context, Never, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[effect]
    async fn charge(&self, cx: &Context) -> Answer<(), Never>;
}

fn main() {}
