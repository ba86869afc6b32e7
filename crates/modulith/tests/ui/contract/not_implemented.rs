use modulith::{Answer, Never, Tx, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold(&self, tx: &mut Tx<'_>) -> Answer<(), Never>;
}

struct Module;

fn main() {
    let _ = Products.serve(Module);
}
