use modulith::Column;

#[derive(Column)]
pub enum OrderState {
    Placed,
    Paid(i64),
}

fn main() {}
