use modulith::{Answer, Never, Tx, contract};

#[contract]
pub trait Stock {
    #[command]
    fn hold(&self, tx: &mut Tx<'_>) -> Answer<(), Never>;
}

fn main() {}
