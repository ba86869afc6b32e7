use modulith::contract;

#[contract(name = "products", version = 1)]
pub struct Products;

fn main() {
    let _ = Products;
}
