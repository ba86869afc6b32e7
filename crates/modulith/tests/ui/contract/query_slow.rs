use modulith::{Answer, Never, Snapshot, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[query(slow)]
    fn stock(&self, db: &Snapshot<'_>) -> Answer<(), Never>;
}

fn main() {}
