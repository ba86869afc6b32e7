//! `/products` for customers, `/admin/products` for operators.

use std::time::Duration;

use axum::extract::State;
use modulith::Links;
use modulith::http::{Invalid, Json, Path, Problem, Query, Router, StatusCode, get, post};
use serde::{Deserialize, Serialize};
use store_products_contract::{Product, ProductId, ProductsClient};

use crate::catalogue::{CatalogueClient, Search, Stock, StockPage, StockTotals, Supply};
use crate::related::{Related, RelatedProducts};

const LIMIT_DEFAULT: u32 = 20;
const LIMIT_MAX: u32 = 100;
const RELATED_DEFAULT: u32 = 5;
const RELATED_MAX: u32 = 20;

pub(crate) fn routes(links: &Links, related_wait: Duration) -> Router {
    Router::new()
        .route("/products/{id}/related", get(related))
        .with_state(Related::new(links, related_wait))
        .route("/products", get(list))
        .with_state(links.client::<CatalogueClient>())
        .route("/products/{id}", get(product))
        .with_state(links.client::<ProductsClient>())
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    query: String,
    limit: Option<u32>,
    after: Option<ProductId>,
}

#[derive(Serialize)]
struct Page {
    items: Vec<Product>,
    /// What to send as `after` for the next page.
    next: Option<ProductId>,
}

async fn list(
    State(catalogue): State<CatalogueClient>,
    Query(ListQuery { query, limit, after }): Query<ListQuery>,
) -> Result<Json<Page>, Problem> {
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    let mut invalid = Invalid::default();
    invalid.check((1..=LIMIT_MAX).contains(&limit), "limit", "must be between 1 and 100");
    invalid.check(query.len() <= 200, "query", "must have at most 200 bytes");
    invalid.finish()?;
    let mut items = catalogue.search(Search { text: query, after, limit: limit + 1 }).await?;
    // One more than asked for tells whether there is a next page.
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next = items.last().filter(|_| more).map(|last| last.id.clone());
    Ok(Json(Page { items, next }))
}

async fn product(
    State(products): State<ProductsClient>,
    Path(id): Path<ProductId>,
) -> Result<Json<Product>, Problem> {
    Ok(Json(products.product(id).await?))
}

#[derive(Deserialize)]
struct RelatedQuery {
    limit: Option<u32>,
}

async fn related(
    State(related): State<Related>,
    Path(id): Path<ProductId>,
    Query(RelatedQuery { limit }): Query<RelatedQuery>,
) -> Result<Json<RelatedProducts>, Problem> {
    let limit = limit.unwrap_or(RELATED_DEFAULT);
    let mut invalid = Invalid::default();
    invalid.check((1..=RELATED_MAX).contains(&limit), "limit", "must be between 1 and 20");
    invalid.finish()?;
    related.to(id, limit).await.map(Json)
}

/// `POST /supply`: products, their prices, and stock from one source; a repeat adds nothing.
/// `GET /audit`, `GET /audit/products?after=`: the sums, and each product's.
pub(crate) fn admin_routes(links: &Links) -> Router {
    Router::new()
        .route("/supply", post(supply))
        .route("/audit", get(totals))
        .route("/audit/products", get(stocks))
        .with_state(links.client::<CatalogueClient>())
}

async fn supply(
    State(catalogue): State<CatalogueClient>,
    Json(supply): Json<Supply>,
) -> Result<StatusCode, Problem> {
    let mut invalid = Invalid::default();
    for (place, product) in supply.products.iter().enumerate() {
        invalid.check(
            product.price.amount > 0,
            &format!("products[{place}].price.amount"),
            "must be positive",
        );
    }
    invalid.finish()?;
    catalogue.supply(supply).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn totals(State(catalogue): State<CatalogueClient>) -> Result<Json<StockTotals>, Problem> {
    Ok(Json(catalogue.totals().await?))
}

async fn stocks(
    State(catalogue): State<CatalogueClient>,
    Query(page): Query<StockPage>,
) -> Result<Json<Vec<Stock>>, Problem> {
    Ok(Json(catalogue.stocks(page).await?))
}
