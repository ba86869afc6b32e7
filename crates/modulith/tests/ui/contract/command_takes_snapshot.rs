use modulith::{Answer, Never, Snapshot, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[command]
    fn hold(&self, db: &Snapshot<'_>) -> Answer<u32, Never>;
}

fn main() {}
