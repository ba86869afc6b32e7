use modulith::Column;

#[derive(Column)]
pub enum OrderState {}

fn main() {}
