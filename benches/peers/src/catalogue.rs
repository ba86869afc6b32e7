//! Products and their stock, the same in both peers.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use sqlx::{QueryBuilder, Sqlite, Transaction};

use crate::api::{Line, Money, OrderLine};
use crate::database::Database;
use crate::problem::Problem;

/// What this module stores.
pub const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS products (
        id INTEGER PRIMARY KEY NOT NULL,
        name TEXT NOT NULL,
        price INTEGER NOT NULL,
        stock INTEGER NOT NULL CHECK (stock >= 0)
    ) STRICT;";

const STOCK_SEEDED: i64 = 1_000_000_000;

type Row = (i64, String, i64, i64);

#[derive(Serialize)]
struct Product {
    id: i64,
    name: String,
    price: Money,
    stock: i64,
}

#[derive(Serialize)]
struct Page {
    items: Vec<Product>,
    next: Option<i64>,
}

#[derive(Deserialize)]
struct PageOf {
    limit: Option<u32>,
    after: Option<i64>,
}

/// `GET /products` and `GET /products/{id}`.
pub fn router(database: Database) -> Router {
    Router::new()
        .route("/products", get(list))
        .route("/products/{id}", get(one))
        .with_state(database)
}

/// Fills an empty catalogue with `products` products of nearly endless stock.
///
/// # Errors
///
/// When the database refuses.
pub async fn seed(database: &Database, products: i64) -> sqlx::Result<()> {
    let mut tx = database.begin().await?;
    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM products")
        .fetch_one(&mut *tx)
        .await?;
    if found == 0 {
        let ids: Vec<i64> = (1..=products).collect();
        for some in ids.chunks(1_000) {
            let mut insert = QueryBuilder::<Sqlite>::new("INSERT INTO products (id, name, price, stock) ");
            insert.push_values(some, |mut row, id| {
                row.push_bind(id)
                    .push_bind(format!("product {id}"))
                    .push_bind(100 + id % 900)
                    .push_bind(STOCK_SEEDED);
            });
            insert.build().execute(&mut *tx).await?;
        }
    }
    tx.commit().await
}

/// Takes every line's stock within `tx` and prices the lines.
///
/// # Errors
///
/// 409 when a product is unknown or has too little; the caller must roll back, since earlier lines
/// are taken already.
pub async fn take(
    tx: &mut Transaction<'static, Sqlite>,
    lines: &[Line],
) -> Result<(Vec<OrderLine>, i64), Problem> {
    let mut taken = Vec::with_capacity(lines.len());
    for line in lines {
        let product: Option<(String, i64)> = sqlx::query_as(
            "UPDATE products SET stock = stock - $1 WHERE id = $2 AND stock >= $1 RETURNING name, price",
        )
        .bind(line.quantity)
        .bind(line.product_id)
        .fetch_optional(&mut **tx)
        .await?;
        let (name, price) = product.ok_or_else(|| {
            Problem::new(
                StatusCode::CONFLICT,
                format_args!("product {} is out of stock", line.product_id),
            )
        })?;
        taken.push(OrderLine::new(line, name, price));
    }
    let total = taken.iter().map(|line| line.total.amount).sum();
    Ok((taken, total))
}

async fn list(State(database): State<Database>, Query(page): Query<PageOf>) -> Result<Json<Page>, Problem> {
    let limit = page.limit.unwrap_or(50).clamp(1, 200);
    let rows: Vec<Row> =
        sqlx::query_as("SELECT id, name, price, stock FROM products WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(page.after.unwrap_or(0))
            .bind(limit)
            .fetch_all(&database.read)
            .await?;
    let next = rows
        .last()
        .map(|last| last.0)
        .filter(|_| rows.len() == limit as usize);
    Ok(Json(Page {
        items: rows.into_iter().map(Product::from).collect(),
        next,
    }))
}

async fn one(State(database): State<Database>, Path(id): Path<i64>) -> Result<Json<Product>, Problem> {
    let row: Option<Row> = sqlx::query_as("SELECT id, name, price, stock FROM products WHERE id = $1")
        .bind(id)
        .fetch_optional(&database.read)
        .await?;
    let row = row.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no such product"))?;
    Ok(Json(row.into()))
}

impl From<Row> for Product {
    fn from((id, name, price, stock): Row) -> Self {
        Self {
            id,
            name,
            price: Money::new(price),
            stock,
        }
    }
}
