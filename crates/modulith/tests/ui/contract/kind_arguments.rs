use modulith::{Answer, Never, Snapshot, Tx, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[query(slow)]
    fn stock(&self, db: &Snapshot<'_>) -> Answer<(), Never>;
    #[command(heavy)]
    fn hold(&self, tx: &mut Tx<'_>) -> Answer<(), Never>;
}

fn main() {}
