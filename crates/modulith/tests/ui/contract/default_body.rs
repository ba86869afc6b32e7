use modulith::{Answer, Never, Tx, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold(&self, _tx: &mut Tx<'_>) -> Answer<(), Never> {
        Ok(())
    }
}

fn main() {}
