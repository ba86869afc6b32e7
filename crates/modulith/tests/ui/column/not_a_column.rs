use modulith::Column;

#[derive(Column)]
pub struct Price(f64);

fn main() {}
