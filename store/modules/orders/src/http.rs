//! `/orders`: the signed-in customer's own.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use modulith::http::{Invalid, Json, Keyed, Path, Problem, Query, Router, SignedIn, StatusCode, get, post};
use modulith::{CallError, Links, SagaClient};
use serde::{Deserialize, Serialize};
use store_cart_contract::{CartClient, CartLine, Ordered};
use store_orders_contract::{Order, OrderId, OrderLine, OrderOf, OrderStatus, OrdersClient, OrdersOf};
use store_payments_contract::{Card, Money, PaidThrough, PaymentsClient};
use store_products_contract::{Product, ProductId, ProductsClient};
use store_users_contract::UserId;
use uuid::Uuid;

use crate::book::{CancelRefused, NewLine, NewOrder, OrderBook, OrderBookClient, Placed};
use crate::cancelling::{CancelCharged, CancelOrder};
use crate::checkout::{PlaceCharged, PlaceChargedFromCart, PlaceOrder, PlaceOrderFromCart, Purchase};
use crate::time;

const LINES_MAX: usize = 1_000;
const QUANTITY_MAX: u32 = 10_000;
const REFERENCE_CHARS_MAX: usize = 200;
const LIMIT_DEFAULT: u32 = 20;
const LIMIT_MAX: u32 = 100;

struct Shop {
    orders: OrdersClient,
    book: OrderBookClient,
    cart: CartClient,
    products: ProductsClient,
    payments: PaymentsClient,
    place: SagaClient<PlaceOrder>,
    place_from_cart: SagaClient<PlaceOrderFromCart>,
    place_charged: SagaClient<PlaceCharged>,
    place_charged_from_cart: SagaClient<PlaceChargedFromCart>,
    cancel: SagaClient<CancelOrder>,
    cancel_charged: SagaClient<CancelCharged>,
}

pub(crate) fn routes(links: &Links) -> Router {
    let shop = Shop {
        orders: links.client(),
        book: links.client(),
        cart: links.client(),
        products: links.client(),
        payments: links.client(),
        place: links.saga(),
        place_from_cart: links.saga(),
        place_charged: links.saga(),
        place_charged_from_cart: links.saga(),
        cancel: links.saga(),
        cancel_charged: links.saga(),
    };
    Router::new()
        .route("/orders", get(list).post(place))
        .route("/orders/{id}", get(order))
        .route("/orders/{id}/cancel", post(cancel))
        .with_state(Arc::new(shop))
}

#[derive(Deserialize)]
struct PlaceBody {
    /// None: what is in the cart.
    lines: Option<Vec<CartLine>>,
    card: Card,
    client_reference: Option<String>,
}

async fn place(
    State(shop): State<Arc<Shop>>,
    caller: SignedIn,
    Keyed { key, body }: Keyed<PlaceBody>,
) -> Result<(StatusCode, Json<Order>), Problem> {
    let user = user(&caller)?;
    // Before anything is read: a repeat gets the first answer even if prices, cart or stock have changed since.
    if let Some(placed) = shop.place.find(key)? {
        return shop.placed(user, placed).await;
    }
    let PlaceBody { lines, card, client_reference } = body;
    let from_cart = lines.is_none();
    let lines = match lines {
        Some(lines) => lines,
        None => shop.cart.lines(user).await?,
    };
    check(&lines, client_reference.as_deref())?;
    let ids = lines.iter().map(|line| line.product_id.clone()).collect();
    // Where the two are elsewhere each is a way there and back, so they are asked at once.
    let (products, card) = tokio::join!(shop.products.products(ids), shop.payments.tokenize(card));
    let (products, card) = (products?, card?);
    let (new_lines, total) = priced(&lines, products)?;
    let id = OrderId(Uuid::now_v7());
    let order = NewOrder { id, user: Some(user), lines: new_lines, total, client_reference, invoice: None };
    let answer = unpaid(&order);
    let purchase = Purchase { order, card: card.token };
    let ordered = Ordered { user, lines };
    let key = Some(key);
    let placed = match (card.paid_through, from_cart) {
        (PaidThrough::Ledger, false) => shop.place.start(PlaceOrder(purchase), key).await,
        (PaidThrough::Ledger, true) => {
            shop.place_from_cart.start(PlaceOrderFromCart(purchase, ordered), key).await
        }
        (PaidThrough::Provider, false) => shop.place_charged.start(PlaceCharged(purchase), key).await,
        (PaidThrough::Provider, true) => {
            shop.place_charged_from_cart.start(PlaceChargedFromCart(purchase, ordered), key).await
        }
    };
    match placed? {
        Placed { order, placed_at_ms } if order == id => {
            Ok((StatusCode::CREATED, Json(Order { placed_at: time::rfc_3339(placed_at_ms), ..answer })))
        }
        // The same key came twice at once, and the other one was first.
        earlier => shop.placed(user, earlier).await,
    }
}

/// What will be answered, but for the time.
fn unpaid(order: &NewOrder) -> Order {
    let currency = order.total.currency;
    let line = |line: &NewLine| OrderLine {
        product_id: line.product.clone(),
        name: line.name.clone(),
        quantity: line.quantity,
        unit_price: Money::new(line.unit_price_minor, currency),
        total: Money::new(line.unit_price_minor * i64::from(line.quantity), currency),
    };
    Order {
        id: order.id,
        status: OrderStatus::Paid,
        total: order.total,
        lines: order.lines.iter().map(line).collect(),
        client_reference: order.client_reference.clone(),
        placed_at: String::new(),
    }
}

impl Shop {
    /// The order as it was placed, also when it was cancelled since: every answer to a key is the same.
    async fn placed(&self, user: UserId, placed: Placed) -> Result<(StatusCode, Json<Order>), Problem> {
        let order = self.orders.order(OrderOf { user, order: placed.order }).await?;
        Ok((StatusCode::CREATED, Json(Order { status: OrderStatus::Paid, ..order })))
    }
}

fn check(lines: &[CartLine], client_reference: Option<&str>) -> Result<(), Problem> {
    let mut invalid = Invalid::default();
    invalid.check((1..=LINES_MAX).contains(&lines.len()), "lines", "must be 1 to 1,000, or in the cart");
    for (place, line) in lines.iter().enumerate().take(LINES_MAX) {
        if !(1..=QUANTITY_MAX).contains(&line.quantity) {
            invalid.add(format!("lines[{place}].quantity"), "must be between 1 and 10,000");
        }
    }
    let reference_fits = client_reference.is_none_or(|text| text.chars().count() <= REFERENCE_CHARS_MAX);
    invalid.check(reference_fits, "client_reference", "must have at most 200 characters");
    invalid.finish()
}

/// The lines with names and prices of today, and their sum.
fn priced(lines: &[CartLine], products: Vec<Product>) -> Result<(Vec<NewLine>, Money), Problem> {
    let products: HashMap<ProductId, Product> =
        products.into_iter().map(|product| (product.id.clone(), product)).collect();
    let mut invalid = Invalid::default();
    let mut priced = Vec::with_capacity(lines.len());
    let mut totals = Vec::with_capacity(lines.len());
    for (place, CartLine { product_id, quantity }) in lines.iter().enumerate() {
        let Some(product) = products.get(product_id) else {
            invalid.add(format!("lines[{place}].product_id"), "is no product");
            continue;
        };
        totals.push(product.price.times(*quantity));
        priced.push(NewLine {
            product: product_id.clone(),
            name: product.name.clone(),
            quantity: *quantity,
            unit_price_minor: product.price.amount,
        });
    }
    invalid.finish()?;
    let total = totals.into_iter().collect::<Option<Vec<Money>>>().and_then(Money::sum);
    let total =
        total.ok_or_else(|| Problem::invalid([("lines", "have no sum: too much, or in two currencies")]))?;
    Ok((priced, total))
}

#[derive(Deserialize)]
struct ListQuery {
    limit: Option<u32>,
    after: Option<OrderId>,
    client_reference: Option<String>,
}

#[derive(Serialize)]
struct Page {
    items: Vec<Order>,
    /// What to send as `after` for the next page.
    next: Option<OrderId>,
}

async fn list(
    State(shop): State<Arc<Shop>>,
    caller: SignedIn,
    Query(ListQuery { limit, after, client_reference }): Query<ListQuery>,
) -> Result<Json<Page>, Problem> {
    let user = user(&caller)?;
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::invalid([("limit", "must be between 1 and 100")]));
    }
    // One more than asked for tells whether there is a next page.
    let mut items = shop.orders.orders(OrdersOf { user, client_reference, after, limit: limit + 1 }).await?;
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next = items.last().filter(|_| more).map(|last| last.id);
    Ok(Json(Page { items, next }))
}

async fn order(
    State(shop): State<Arc<Shop>>,
    caller: SignedIn,
    Path(order): Path<OrderId>,
) -> Result<Json<Order>, Problem> {
    Ok(Json(shop.orders.order(OrderOf { user: user(&caller)?, order }).await?))
}

async fn cancel(
    State(shop): State<Arc<Shop>>,
    caller: SignedIn,
    Path(order): Path<OrderId>,
) -> Result<Json<Order>, Problem> {
    let of = OrderOf { user: user(&caller)?, order };
    let cancelled = match shop.book.charge(of.clone()).await? {
        None => shop.cancel.start(CancelOrder(of.clone()), None).await,
        Some(charge) => shop.cancel_charged.start(CancelCharged(of.clone(), charge), None).await,
    };
    match cancelled {
        Ok(_) => {}
        // Then it is as the customer wants it.
        Err(CallError::Refused(refused))
            if matches!(refused.of(OrderBook.cancel), Some(CancelRefused::AlreadyCancelled)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Json(shop.orders.order(of).await?))
}

fn user(caller: &SignedIn) -> Result<UserId, Problem> {
    caller.id().parse().map_err(|_| Problem::not_found())
}
