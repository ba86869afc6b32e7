use modulith::{Answer, Never, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold(&self) -> Answer<(), Never>;
}

fn main() {}
