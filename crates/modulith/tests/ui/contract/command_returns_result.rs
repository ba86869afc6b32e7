use modulith::{Never, Tx, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold(&self, tx: &mut Tx<'_>) -> Result<u32, Never>;
}

fn main() {}
