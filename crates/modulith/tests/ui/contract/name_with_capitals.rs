use modulith::{Answer, Never, Tx, contract};

#[contract(name = "Products", version = 1)]
pub trait Products {
    #[command]
    fn hold(&self, tx: &mut Tx<'_>) -> Answer<(), Never>;
}

fn main() {}
