use modulith::{Answer, Never, Tx, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold<T>(&self, tx: &mut Tx<'_>, request: T) -> Answer<(), Never>;
}

fn main() {}
