use modulith::Column;

#[derive(Column)]
pub struct Money(i64, String);

fn main() {}
