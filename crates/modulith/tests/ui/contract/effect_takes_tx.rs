use modulith::{CallError, Never, Tx, contract};

#[contract(name = "products", version = 1)]
pub trait Products {
    #[effect]
    async fn charge(&self, tx: &mut Tx<'_>) -> Result<(), CallError<Never>>;
}

fn main() {}
