use modulith::Column;

#[derive(Column)]
pub struct OrderId;

fn main() {}
