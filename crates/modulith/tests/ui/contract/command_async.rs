use modulith::{Answer, Never, Tx, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    async fn hold(&self, tx: &mut Tx<'_>) -> Answer<(), Never>;
}

struct Module;

impl Products for Module {
    async fn hold(&self, _: &mut Tx<'_>) -> Answer<(), Never> {
        Ok(())
    }
}

fn main() {
    let _ = Products.serve(Module);
}
