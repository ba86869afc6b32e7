use modulith::Refusal;

#[derive(Debug, Refusal)]
pub enum HoldRefused {
    SoldOut,
}

fn main() {}
