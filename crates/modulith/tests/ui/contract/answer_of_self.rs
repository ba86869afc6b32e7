use modulith::{Answer, Never, Snapshot, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[query]
    fn all(&self, db: &Snapshot<'_>) -> Answer<Box<Self>, Never>;
}

fn main() {}
