//! The catalogue as the module's own endpoints use it: searching, supplying, auditing.

use modulith::{Answer, Fault, Never, Snapshot, Tx, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store_payments_contract::Money;
use store_products_contract::{Product, ProductId};

/// Private to the module.
#[contract(name = "catalogue", version = 1)]
pub(crate) trait Catalogue {
    /// Products whose name holds the text, in order of id.
    #[query]
    fn search(&self, db: &Snapshot<'_>, search: Search) -> Answer<Vec<Product>, Never>;

    /// The products on both sides of one in the order of ids, the nearest first: codes of one family stand together.
    #[query]
    fn neighbours(&self, db: &Snapshot<'_>, wanted: Neighbours) -> Answer<Vec<Product>, Never>;

    /// Adds products, or changes name and price of those that exist, and adds to their stock what this source
    /// did not supply before.
    #[command]
    fn supply(&self, tx: &mut Tx<'_>, supply: Supply) -> Answer<(), Never>;

    #[query(heavy)]
    fn totals(&self, db: &Snapshot<'_>) -> Answer<StockTotals, Never>;

    /// In order of id.
    #[query(heavy)]
    fn stocks(&self, db: &Snapshot<'_>, page: StockPage) -> Answer<Vec<Stock>, Never>;
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Search {
    /// Empty: all products.
    pub(crate) text: String,
    pub(crate) after: Option<ProductId>,
    pub(crate) limit: u32,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Neighbours {
    pub(crate) of: ProductId,
    pub(crate) limit: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Supply {
    /// Who supplies: `opening`, or the name of an order book.
    pub(crate) source: String,
    pub(crate) products: Vec<Supplied>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Supplied {
    pub(crate) id: ProductId,
    pub(crate) name: String,
    pub(crate) price: Money,
    pub(crate) units: u32,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct StockTotals {
    products: i64,
    stock: i64,
    held: i64,
    sold: i64,
    supplied: i64,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct StockPage {
    after: Option<ProductId>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Stock {
    id: ProductId,
    stock: i64,
    held: i64,
    sold: i64,
    supplied: i64,
}

pub(crate) struct CatalogueModule;

impl Catalogue for CatalogueModule {
    fn search(&self, db: &Snapshot<'_>, search: Search) -> Answer<Vec<Product>, Never> {
        let pattern = format!("%{}%", escaped(&search.text.to_lowercase()));
        let after = search.after.unwrap_or(ProductId(String::new()));
        let rows = db.rows(
            r"SELECT id, name, price_minor, currency, stock FROM products_product
              WHERE id > $1 AND folded LIKE $2 ESCAPE '\' ORDER BY id LIMIT $3",
            (&after, &pattern, search.limit),
        )?;
        Ok(rows.into_iter().map(crate::product).collect())
    }

    fn neighbours(&self, db: &Snapshot<'_>, wanted: Neighbours) -> Answer<Vec<Product>, Never> {
        let before = db.rows(
            "SELECT id, name, price_minor, currency, stock FROM products_product
             WHERE id < $1 ORDER BY id DESC LIMIT $2",
            (&wanted.of, wanted.limit),
        )?;
        let after = db.rows(
            "SELECT id, name, price_minor, currency, stock FROM products_product
             WHERE id > $1 ORDER BY id LIMIT $2",
            (&wanted.of, wanted.limit),
        )?;
        let (mut before, mut after) = (before.into_iter(), after.into_iter());
        let nearest_first = std::iter::from_fn(|| match (after.next(), before.next()) {
            (None, None) => None,
            pair => Some(pair),
        });
        let products =
            nearest_first.flat_map(|(after, before)| [after, before]).flatten().map(crate::product);
        Ok(products.take(wanted.limit as usize).collect())
    }

    fn supply(&self, tx: &mut Tx<'_>, supply: Supply) -> Answer<(), Never> {
        for product in &supply.products {
            let new = units_new(tx, &supply.source, product)?;
            let Supplied { id, name, price: Money { amount, currency }, .. } = product;
            tx.execute(
                "INSERT INTO products_product (id, name, folded, price_minor, currency, stock, held, sold, supplied)
                 VALUES ($1, $2, $3, $4, $5, $6, 0, 0, $6)
                 ON CONFLICT (id) DO UPDATE SET name = excluded.name, folded = excluded.folded,
                    price_minor = excluded.price_minor, currency = excluded.currency,
                    stock = products_product.stock + excluded.stock,
                    supplied = products_product.supplied + excluded.supplied",
                (id, name, name.to_lowercase(), amount, currency, new),
            )?;
        }
        Ok(())
    }

    fn totals(&self, db: &Snapshot<'_>) -> Answer<StockTotals, Never> {
        // The casts are for PostgreSQL, where a sum of bigints is wider than they are.
        let sums = db.row(
            "SELECT count(*), CAST(coalesce(sum(stock), 0) AS bigint), CAST(coalesce(sum(held), 0) AS bigint),
                CAST(coalesce(sum(sold), 0) AS bigint), CAST(coalesce(sum(supplied), 0) AS bigint)
             FROM products_product",
            (),
        )?;
        let (products, stock, held, sold, supplied) = sums.unwrap_or_default();
        Ok(StockTotals { products, stock, held, sold, supplied })
    }

    fn stocks(&self, db: &Snapshot<'_>, page: StockPage) -> Answer<Vec<Stock>, Never> {
        let after = page.after.unwrap_or(ProductId(String::new()));
        let rows = db.rows(
            "SELECT id, stock, held, sold, supplied FROM products_product WHERE id > $1 ORDER BY id LIMIT 1000",
            (after,),
        )?;
        let stock = |(id, stock, held, sold, supplied)| Stock { id, stock, held, sold, supplied };
        Ok(rows.into_iter().map(stock).collect())
    }
}

/// How many of the units the source did not supply before.
fn units_new(tx: &mut Tx<'_>, source: &str, product: &Supplied) -> Result<u32, Fault> {
    let (id, units) = (&product.id, product.units);
    let known = "SELECT units FROM products_supply WHERE source = $1 AND product = $2";
    let before = tx.row::<(u32,)>(known, (source, id))?.map_or(0, |(units,)| units);
    if units > before {
        tx.execute(
            "INSERT INTO products_supply (source, product, units) VALUES ($1, $2, $3)
             ON CONFLICT (source, product) DO UPDATE SET units = excluded.units",
            (source, id, units),
        )?;
    }
    Ok(units.saturating_sub(before))
}

/// The text as `LIKE` finds it literally.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_")
}
