use modulith::{Answer, Never, Snapshot, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[query(look_up = find_stock)]
    fn stock(&self, db: &Snapshot<'_>) -> Answer<u32, Never>;
}

fn main() {}
