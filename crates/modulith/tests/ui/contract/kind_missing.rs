use modulith::{Answer, Never, Tx, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    fn hold(&self, tx: &mut Tx<'_>, quantity: u32) -> Answer<(), Never>;
    #[command]
    fn release(&self, tx: &mut Tx<'_>, quantity: u32) -> Answer<(), Never>;
}

struct Module;

impl Products for Module {
    fn hold(&self, _: &mut Tx<'_>, _: u32) -> Answer<(), Never> {
        Ok(())
    }
    fn release(&self, _: &mut Tx<'_>, _: u32) -> Answer<(), Never> {
        Ok(())
    }
}

fn main() {
    let _ = (Products.serve(Module), Products.release, ProductsClient::release);
}
