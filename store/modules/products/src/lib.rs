//! Products: the catalogue and its stock.
//!
//! Owns every piece from its supply to its sale. Knows nothing of orders: who holds stock keeps the hold, and
//! hands it back to sell or release it.

mod catalogue;
mod http;
mod related;
mod stock;

use std::time::Duration;

use modulith::{Answer, Module, Never, Setup, SetupError, Snapshot, Tx, migrations};
use serde::Deserialize;
use store_payments_contract::Money;
use store_products_contract::{
    CataloguePage, Hold, HoldRefused, NoSuchProduct, Product, ProductId, Products, Units,
};
use store_recommendations_contract::RecommendationsClient;

use catalogue::{Catalogue, CatalogueModule};

pub fn module(setup: &Setup<'_>) -> Result<Module, SetupError> {
    let config: Config = setup.config("products")?;
    let wait = Duration::from_millis(config.related_wait_ms);
    Ok(Module::new("products")
        .migrations(migrations!["../migrations/0001_products.sql", "../migrations/0002_catalogue.sql"])
        .serves(Products.serve(ProductsModule))
        .serves(Catalogue.serve(CatalogueModule))
        .needs_optional::<RecommendationsClient>()
        .routes(&["/products"], move |links| http::routes(links, wait))
        .admin_routes(http::admin_routes))
}

struct ProductsModule;

impl Products for ProductsModule {
    fn product(&self, db: &Snapshot<'_>, id: ProductId) -> Answer<Product, NoSuchProduct> {
        Ok(db.row(PRODUCT, (&id,))?.map(product).ok_or(NoSuchProduct::NoSuchProduct)?)
    }

    fn products(&self, db: &Snapshot<'_>, ids: Vec<ProductId>) -> Answer<Vec<Product>, Never> {
        let mut found = Vec::with_capacity(ids.len());
        for id in &ids {
            found.extend(db.row(PRODUCT, (id,))?.map(product));
        }
        Ok(found)
    }

    fn hold(&self, tx: &mut Tx<'_>, units: Units) -> Answer<Hold, HoldRefused> {
        stock::hold(tx, units)
    }

    fn release(&self, tx: &mut Tx<'_>, hold: Hold) -> Answer<(), Never> {
        Ok(stock::release(tx, &hold.0)?)
    }

    fn sell(&self, tx: &mut Tx<'_>, hold: Hold) -> Answer<(), Never> {
        Ok(stock::sell(tx, &hold.0)?)
    }

    fn restock(&self, tx: &mut Tx<'_>, units: Units) -> Answer<(), Never> {
        Ok(stock::restock(tx, &units)?)
    }

    fn catalogue(&self, db: &Snapshot<'_>, page: CataloguePage) -> Answer<Vec<Product>, Never> {
        let after = page.after.unwrap_or(ProductId(String::new()));
        let rows = db.rows(
            "SELECT id, name, price_minor, currency, stock FROM products_product WHERE id > $1 ORDER BY id LIMIT 1000",
            (after,),
        )?;
        Ok(rows.into_iter().map(product).collect())
    }
}

/// `[module.products]` of the topology file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// How long `GET /products/{id}/related` waits for recommendations before it answers from the catalogue.
    #[serde(default = "related_wait_ms")]
    related_wait_ms: u64,
}

fn related_wait_ms() -> u64 {
    200
}

const PRODUCT: &str = "SELECT id, name, price_minor, currency, stock FROM products_product WHERE id = $1";

type ProductRow = (ProductId, String, i64, store_payments_contract::Currency, i64);

fn product((id, name, price_minor, currency, stock): ProductRow) -> Product {
    Product { id, name, price: Money::new(price_minor, currency), stock }
}
