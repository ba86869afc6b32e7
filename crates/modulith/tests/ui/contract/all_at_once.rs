use modulith::{Answer, Never, Tx, contract};

#[contract(name = "my_products")]
pub trait Products {
    #[query]
    fn stock(tx: &mut Tx<'_>, product: &str) -> u32;
    fn hold(&self, tx: &mut Tx<'_>) -> Answer<(), Never>;
}

fn main() {}
