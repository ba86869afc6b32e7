use modulith::Column;

#[derive(Column)]
pub struct OrderId {
    id: i64,
}

fn main() {}
