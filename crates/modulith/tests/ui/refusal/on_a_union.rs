use modulith::Refusal;

#[derive(Refusal)]
pub union HoldRefused {
    left: u32,
}

fn main() {}
