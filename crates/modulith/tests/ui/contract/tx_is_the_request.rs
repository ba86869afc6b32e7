use modulith::{Answer, Never, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold(&self, quantity: u32) -> Answer<(), Never>;
}

fn main() {}
