use modulith::{Answer, Never, Tx, contract};

pub struct Request;

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold(&self, tx: &mut Tx<'_>, request: Request) -> Answer<(), Never>;
}

fn main() {}
