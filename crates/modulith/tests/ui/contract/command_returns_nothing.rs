use modulith::{Tx, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold(&self, tx: &mut Tx<'_>);
}

fn main() {}
