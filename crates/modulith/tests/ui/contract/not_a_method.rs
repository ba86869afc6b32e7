use modulith::{Answer, Never, Tx, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold(&self, tx: &mut Tx<'_>) -> Answer<(), Never>;

    const LIMIT: u32;
}

fn main() {}
