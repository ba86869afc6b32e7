//! `/cart`: the signed-in customer's own.

use std::collections::HashMap;

use axum::extract::State;
use modulith::Links;
use modulith::http::{Json, Path, Problem, Router, SignedIn, StatusCode, get, put};
use serde::{Deserialize, Serialize};
use store_cart_contract::{CartClient, CartLine, RemoveLine, SetLine};
use store_payments_contract::Money;
use store_products_contract::{ProductId, ProductsClient};
use store_users_contract::UserId;

const QUANTITY_MAX: u32 = 10_000;

#[derive(Clone)]
struct Shelf {
    cart: CartClient,
    products: ProductsClient,
}

pub(crate) fn routes(links: &Links) -> Router {
    Router::new()
        .route("/cart", get(show))
        .route("/cart/lines/{product_id}", put(set_line).delete(remove_line))
        .with_state(Shelf { cart: links.client(), products: links.client() })
}

/// The cart at today's prices.
#[derive(Serialize)]
struct CartView {
    lines: Vec<LineView>,
    /// None for an empty cart.
    total: Option<Money>,
}

#[derive(Serialize)]
struct LineView {
    product_id: ProductId,
    name: String,
    quantity: u32,
    unit_price: Money,
    total: Option<Money>,
}

impl Shelf {
    async fn view(&self, user: UserId) -> Result<Json<CartView>, Problem> {
        let lines = self.cart.lines(user).await?;
        let ids = lines.iter().map(|line| line.product_id.clone()).collect();
        let products = self.products.products(ids).await?;
        let mut products: HashMap<_, _> =
            products.into_iter().map(|found| (found.id.clone(), found)).collect();
        let line = |CartLine { product_id, quantity }| {
            let product = products.remove(&product_id)?;
            let total = product.price.times(quantity);
            Some(LineView { product_id, name: product.name, quantity, unit_price: product.price, total })
        };
        let lines: Vec<_> = lines.into_iter().filter_map(line).collect();
        let totals: Option<Vec<Money>> = lines.iter().map(|line| line.total).collect();
        Ok(Json(CartView { total: totals.and_then(Money::sum), lines }))
    }
}

async fn show(State(shelf): State<Shelf>, caller: SignedIn) -> Result<Json<CartView>, Problem> {
    shelf.view(user(&caller)?).await
}

#[derive(Deserialize)]
struct Quantity {
    quantity: u32,
}

async fn set_line(
    State(shelf): State<Shelf>,
    caller: SignedIn,
    Path(product_id): Path<ProductId>,
    Json(Quantity { quantity }): Json<Quantity>,
) -> Result<Json<CartView>, Problem> {
    if !(1..=QUANTITY_MAX).contains(&quantity) {
        return Err(Problem::invalid([("quantity", format!("must be between 1 and {QUANTITY_MAX}"))]));
    }
    let user = user(&caller)?;
    // Asked for its refusal: what is not in the catalogue does not get into a cart.
    shelf.products.product(product_id.clone()).await?;
    shelf.cart.set_line(SetLine { user, line: CartLine { product_id, quantity } }).await?;
    shelf.view(user).await
}

async fn remove_line(
    State(shelf): State<Shelf>,
    caller: SignedIn,
    Path(product): Path<ProductId>,
) -> Result<StatusCode, Problem> {
    shelf.cart.remove_line(RemoveLine { user: user(&caller)?, product }).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn user(caller: &SignedIn) -> Result<UserId, Problem> {
    caller.id().parse().map_err(|_| Problem::not_found())
}
