//! Moving pieces between stock, held and sold: one statement a product.
//!
//! The table checks that no state falls below zero and that nothing appears or vanishes, so a move that would
//! break the sum is a fault and never a wrong number.

use modulith::{Answer, Fault, FaultKind, Tx};
use store_products_contract::{Hold, HoldRefused, Units};

/// Goes on after a product that falls short, to name them all; the refusal takes everything back.
pub(crate) fn hold(tx: &mut Tx<'_>, units: Units) -> Answer<Hold, HoldRefused> {
    let (mut short, mut unknown) = (Vec::new(), Vec::new());
    for (product, quantity) in units.iter() {
        let held = tx.execute(
            "UPDATE products_product SET stock = stock - $2, held = held + $2 WHERE id = $1 AND stock >= $2",
            (product, quantity),
        )?;
        if held == 0 {
            match tx.row::<(i64,)>("SELECT stock FROM products_product WHERE id = $1", (product,))? {
                Some(_) => short.push(product.clone()),
                None => unknown.push(product.clone()),
            }
        }
    }
    if !unknown.is_empty() {
        return Err(HoldRefused::UnknownProduct { products: unknown }.into());
    }
    if !short.is_empty() {
        return Err(HoldRefused::SoldOut { products: short }.into());
    }
    Ok(Hold(units))
}

pub(crate) fn release(tx: &mut Tx<'_>, units: &Units) -> Result<(), Fault> {
    each(tx, units, "UPDATE products_product SET held = held - $2, stock = stock + $2 WHERE id = $1")
}

pub(crate) fn sell(tx: &mut Tx<'_>, units: &Units) -> Result<(), Fault> {
    each(tx, units, "UPDATE products_product SET held = held - $2, sold = sold + $2 WHERE id = $1")
}

pub(crate) fn restock(tx: &mut Tx<'_>, units: &Units) -> Result<(), Fault> {
    each(tx, units, "UPDATE products_product SET sold = sold - $2, stock = stock + $2 WHERE id = $1")
}

fn each(tx: &mut Tx<'_>, units: &Units, sql: &str) -> Result<(), Fault> {
    for (product, quantity) in units.iter() {
        if tx.execute(sql, (product, quantity))? == 0 {
            return Err(Fault::new(
                FaultKind::Statement,
                format!("product {product} is not in the catalogue"),
            ));
        }
    }
    Ok(())
}
