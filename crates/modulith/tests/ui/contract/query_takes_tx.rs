use modulith::{Answer, Never, Tx, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[query]
    fn stock(&self, tx: &mut Tx<'_>) -> Answer<u32, Never>;
}

fn main() {}
