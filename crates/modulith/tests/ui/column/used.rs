use modulith::{Column, Snapshot};

#[derive(Column)]
pub struct Money(i64, String);

fn main() {
    let _ = |db: &Snapshot<'_>| db.row::<(Money,)>("SELECT price FROM products", ());
}
