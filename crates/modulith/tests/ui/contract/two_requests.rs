use modulith::{Answer, Never, Tx, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold_stock(&self, tx: &mut Tx<'_>, product: String, quantity: u32, until_ms: i64) -> Answer<(), Never>;
}

fn main() {}
