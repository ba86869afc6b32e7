use modulith::Column;

#[derive(Column)]
pub struct Id<T>(T);

fn main() {}
