//! The cart: what a customer means to buy.
//!
//! Owns products and quantities, no prices: those are the catalogue's until an order is placed.

mod http;

use modulith::{Answer, Module, Never, Setup, SetupError, Snapshot, Tx, migrations};
use store_cart_contract::{Cart, CartLine, CartRefused, Ordered, RemoveLine, SetLine};
use store_products_contract::ProductsClient;
use store_users_contract::UserId;

/// What an order may hold too.
const LINES_MAX: u32 = 1_000;

pub fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("cart")
        .migrations(migrations!["../migrations/0001_cart.sql"])
        .serves(Cart.serve(CartModule))
        .needs::<ProductsClient>()
        .routes(&["/cart"], http::routes))
}

struct CartModule;

impl Cart for CartModule {
    fn lines(&self, db: &Snapshot<'_>, user: UserId) -> Answer<Vec<CartLine>, Never> {
        let rows = db.rows(
            "SELECT product_id, quantity FROM cart_line WHERE user_id = $1 ORDER BY added_at, product_id LIMIT $2",
            (user, LINES_MAX),
        )?;
        Ok(rows.into_iter().map(|(product_id, quantity)| CartLine { product_id, quantity }).collect())
    }

    fn set_line(&self, tx: &mut Tx<'_>, SetLine { user, line }: SetLine) -> Answer<(), CartRefused> {
        let now_ms = tx.now_ms();
        tx.execute(
            "INSERT INTO cart_line (user_id, product_id, quantity, added_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (user_id, product_id) DO UPDATE SET quantity = excluded.quantity",
            (user, &line.product_id, line.quantity, now_ms),
        )?;
        let count = tx.row::<(u32,)>("SELECT count(*) FROM cart_line WHERE user_id = $1", (user,))?;
        if count > Some((LINES_MAX,)) {
            return Err(CartRefused::CartFull { lines_max: LINES_MAX }.into());
        }
        Ok(())
    }

    fn remove_line(&self, tx: &mut Tx<'_>, request: RemoveLine) -> Answer<(), Never> {
        let sql = "DELETE FROM cart_line WHERE user_id = $1 AND product_id = $2";
        tx.execute(sql, (request.user, &request.product))?;
        Ok(())
    }

    fn clear(&self, tx: &mut Tx<'_>, ordered: Ordered) -> Answer<(), Never> {
        for line in &ordered.lines {
            tx.execute(
                "DELETE FROM cart_line WHERE user_id = $1 AND product_id = $2 AND quantity = $3",
                (ordered.user, &line.product_id, line.quantity),
            )?;
        }
        Ok(())
    }
}
